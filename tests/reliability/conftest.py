"""Fixtures: the corpus, the command line in this process, and a folder as a user has it, with adapters and an index."""

import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from dinomed.apps import cli

FAST = ("--set", "fit.epochs=2", "--set", "fit.min_steps=0", "--quiet")


@pytest.fixture(scope="session")
def corpus() -> SimpleNamespace:
    """The functions of `tests/reliability/corpus/images.py`."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "corpus" / "images.py")))


@pytest.fixture(scope="session")
def user_folder(tmp_path_factory: pytest.TempPathFactory, lesion_manifest: Path, tiny_backbone: Path) -> Path:
    """lesions/, derm.parquet, ssl/ (a backbone), cls/ and seg/ (adapters), idx/ (an index). Read-only."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(lesion_manifest.parent / "lesions", folder / "lesions")
    shutil.copy(lesion_manifest, folder / "derm.parquet")
    shutil.copytree(tiny_backbone, folder / "ssl")
    backbone, data = ("--backbone", str(folder / "ssl")), ("--data", str(folder / "derm.parquet"))
    for arguments in (
        ("train", "classify", *backbone, *data, "-o", str(folder / "cls"), *FAST),
        ("train", "segment", *backbone, *data, "-o", str(folder / "seg"), *FAST),
        ("index", str(folder / "derm.parquet"), *backbone, "-o", str(folder / "idx"), "--quiet"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(list(arguments))
        assert not end.value.code
    return folder
