"""Licences of all installed packages that dinomed needs: none is under the GPL or the AGPL."""

import re
from importlib.metadata import PackageNotFoundError, distribution

WITHOUT_LICENCE = {
    "cuda-toolkit": "a package of NVIDIA without content of its own, which names the libraries of CUDA for torch",
}
"""Packages that state no licence, each with the reason why it is accepted."""
COPYLEFT = re.compile(r"(?<!L)GPL|(?<!Lesser )General Public License", re.IGNORECASE)


def needed_packages() -> dict[str, str]:
    """Return the installed packages that dinomed needs, directly or through others, with the text of their licences."""
    licences: dict[str, str] = {}
    waiting = ["dinomed"]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in licences:
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:  # an extra that is not installed, or a package of another system
            continue
        fields = package.metadata
        stated = [fields.get("License-Expression"), (fields.get("License") or "").partition("\n")[0]]
        stated += [text for text in fields.get_all("Classifier") or () if text.startswith("License")]
        licences[name] = "; ".join(text for text in stated if text)
        waiting += [re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in package.requires or ()]
    return licences


def test_no_package_is_under_the_gpl() -> None:
    licences = needed_packages()
    assert len(licences) > 40  # torch, gradio, monai and what they need
    assert {name: text for name, text in licences.items() if COPYLEFT.search(text)} == {}
    assert {name for name, text in licences.items() if not text} <= set(WITHOUT_LICENCE)


def test_the_pattern_finds_what_it_is_for() -> None:
    for text in ("GPL-3.0-only", "AGPL-3.0", "License :: OSI Approved :: GNU General Public License v3 (GPLv3)"):
        assert COPYLEFT.search(text), text
    for text in ("LGPL-2.1", "GNU Lesser General Public License", "Apache-2.0", "MIT"):
        assert not COPYLEFT.search(text), text
