"""A workspace for the examples of the Python API: synthetic lesions, a tiny backbone, two adapters, an index."""

import os
import runpy
import shutil
from pathlib import Path

import pytest

import dinomed
from dinomed.datasets.synthetic.endoscopy import write_endoscopy


@pytest.fixture(scope="session")
def api_files(tmp_path_factory: pytest.TempPathFactory, lesion_manifest: Path, tiny_backbone: Path) -> Path:
    """The files that the examples read; they are copied for each test."""
    folder = tmp_path_factory.mktemp("api")
    shutil.copytree(lesion_manifest.parent / "lesions", folder / "lesions")
    shutil.copy(lesion_manifest, folder)
    shutil.copytree(tiny_backbone, folder / "runs" / "ssl")
    write_endoscopy(folder / "videos", count=50, size=(60, 80))[0].rename(folder / "clip.avi")
    shutil.rmtree(folder / "videos")
    volumes = runpy.run_path(str(Path(__file__).parents[2] / "volumes" / "made.py"))
    volumes["write_series"](folder / "ct", volumes["numbers"]((4, 30, 40)))
    before = Path.cwd()
    os.chdir(folder)
    try:
        dinomed.train("classify", "runs/ssl", "lesions.parquet", out="runs/cls", head="logistic", device="cpu")
        small = {"fit.epochs": 1, "fit.min_steps": 5, "image_size": 32}
        dinomed.train("segment", "runs/ssl", "lesions.parquet", out="runs/seg", settings=small, device="cpu")
        dinomed.build_index("runs/ssl", "lesions.parquet", out="runs/index", device="cpu")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def workspace(api_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh copy of the files of the examples, as the current folder."""
    shutil.copytree(api_files, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"
