"""Bill of materials of the installed packages that dinomed needs, as CycloneDX 1.6 (JSON), on stdout.

Usage: ``make bill-of-materials`` writes ``bom.json``. The network is not used. Equal installations give equal bytes.
"""

import json
import re
import site
import sys
from importlib.metadata import Distribution, distributions
from typing import Any

# Not `sys.path`: setuptools, once imported, adds the copies of packages that it carries.
FOLDERS = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]


def normal(name: str) -> str:
    """Return the name of a package as registries write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed_packages(root: str = "dinomed") -> dict[str, Distribution]:
    """Return the installed packages that `root` needs, also through others and by extras, and `root` itself."""
    packages: dict[str, Distribution] = {}
    waiting = [root]
    while waiting:
        name = normal(waiting.pop())
        if name in packages:
            continue
        installed = next(iter(distributions(name=name, path=FOLDERS)), None)
        if installed is None:  # an extra that is not installed, or a package of another system
            continue
        packages[name] = installed
        waiting += _requirements(installed)
    return packages


def licence_texts(package: Distribution) -> list[str]:
    """Return what the metadata of a package state about its licence, the SPDX expression first; without empty texts."""
    fields = package.metadata
    stated = [fields.get("License-Expression"), (fields.get("License") or "").partition("\n")[0]]
    stated += [text for text in fields.get_all("Classifier") or () if text.startswith("License")]
    return [text for text in stated if text]


def _requirements(package: Distribution) -> list[str]:
    return [normal(re.split(r"[^\w.-]", text, maxsplit=1)[0]) for text in package.requires or ()]


def _component(name: str, package: Distribution) -> dict[str, Any]:
    component: dict[str, Any] = {"type": "library", "bom-ref": _reference(name, package), "name": name}
    component |= {"version": package.version, "purl": _reference(name, package)}
    if expression := package.metadata.get("License-Expression"):
        component["licenses"] = [{"expression": expression}]
    elif texts := licence_texts(package):
        component["licenses"] = [{"license": {"name": texts[0][:200]}}]
    return component


def _reference(name: str, package: Distribution) -> str:
    return f"pkg:pypi/{name}@{package.version}"


def bill_of_materials(root: str = "dinomed") -> dict[str, Any]:
    """Return the bill: `root` as the application, its packages as components, and which package needs which."""
    packages = needed_packages(root)
    dependencies = []
    for name, package in sorted(packages.items()):
        required = [entry for entry in _requirements(package) if entry in packages and entry != name]
        needed = {_reference(entry, packages[entry]) for entry in required}
        dependencies.append({"ref": _reference(name, package), "dependsOn": sorted(needed)})
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": _component(root, packages[root]) | {"type": "application"}},
        "components": [_component(name, package) for name, package in sorted(packages.items()) if name != root],
        "dependencies": dependencies,
    }


if __name__ == "__main__":
    json.dump(bill_of_materials(), sys.stdout, indent=2)
    print()
