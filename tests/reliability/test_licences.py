"""Licences and bill of materials of all installed packages that dinomed needs: none is under the GPL or the AGPL."""

import json
import re
import runpy
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "bill_of_materials.py"
BILL = SimpleNamespace(**runpy.run_path(str(SCRIPT)))

WITHOUT_LICENCE = {
    "axe-playwright-python": "its file LICENSE is that of the MIT licence; it carries axe-core under the MPL-2.0",
    "cuda-toolkit": "a package of NVIDIA without content of its own, which names the libraries of CUDA for torch",
}
"""Packages that state no licence, each with the reason why it is accepted."""
COPYLEFT = re.compile(r"(?<!L)GPL|(?<!Lesser )General Public License", re.IGNORECASE)


def test_no_package_is_under_the_gpl() -> None:
    licences = {name: "; ".join(BILL.licence_texts(package)) for name, package in BILL.needed_packages().items()}
    assert len(licences) > 40  # torch, gradio, monai and what they need
    assert {name: text for name, text in licences.items() if COPYLEFT.search(text)} == {}
    assert {name for name, text in licences.items() if not text} <= set(WITHOUT_LICENCE)


def test_the_pattern_finds_what_it_is_for() -> None:
    for text in ("GPL-3.0-only", "AGPL-3.0", "License :: OSI Approved :: GNU General Public License v3 (GPLv3)"):
        assert COPYLEFT.search(text), text
    for text in ("LGPL-2.1", "GNU Lesser General Public License", "Apache-2.0", "MIT"):
        assert not COPYLEFT.search(text), text


def test_copies_of_packages_elsewhere_on_the_path_do_not_count(tmp_path: Path, monkeypatch: Any) -> None:
    """setuptools, once imported, adds the packages that it carries to the path of the process."""
    expected = BILL.bill_of_materials()
    carried = tmp_path / "torch-0.0.1.dist-info"
    carried.mkdir()
    (carried / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 0.0.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert version("torch") == "0.0.1"
    assert BILL.bill_of_materials() == expected


def test_the_bill_of_materials_names_every_package_once_with_its_version() -> None:
    """The required properties of CycloneDX 1.6: type and name of a component; unique references."""
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=True, timeout=120)
    bill = json.loads(done.stdout)
    assert bill == BILL.bill_of_materials()
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.6", 1)
    assert bill["metadata"]["component"]["name"] == "dinomed"
    components = bill["components"]
    assert {part["name"] for part in components} == set(BILL.needed_packages()) - {"dinomed"}
    assert all(part["type"] == "library" and part["version"] for part in components)
    references = [part["bom-ref"] for part in (bill["metadata"]["component"], *components)]
    assert len(references) == len(set(references))
    assert sorted(row["ref"] for row in bill["dependencies"]) == sorted(references)
    assert {ref for row in bill["dependencies"] for ref in row["dependsOn"]} < set(references)
    assert "://" not in done.stdout  # no address of a registry
