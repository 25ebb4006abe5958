"""The images of a bare folder are decoded in processes with limits, those of a manifest are not; in every command."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dinomed
from dinomed.datasets.manifest import write_manifest
from dinomed.datasets.scan.scan import scan
from dinomed.images.read import read_image_and_header
from dinomed.isolation.pool import DecodingPool


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the files whose pixels decoding processes were asked for."""
    names: set[str] = set()
    run = DecodingPool.run

    def note(self: DecodingPool, target: str, calls: Any) -> Any:
        if target.endswith((":read_pixels", ":shown_pixels")):
            names.update(Path(call[0]).name for call in calls)
        return run(self, target, calls)

    monkeypatch.setattr(DecodingPool, "run", note)
    return names


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images without a manifest."""
    root = tmp_path_factory.mktemp("bare") / "images"
    root.mkdir()
    rng = np.random.default_rng(0)
    for index in range(10):
        pixels = np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((12, 12, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{index}.png")
    return root


ALL = {f"{index}.png" for index in range(10)}


def test_curate_decodes_a_bare_folder_in_processes(folder: Path, tmp_path: Path, decoded: set[str]) -> None:
    sizes = {"quality.min_short_side_px": 32}
    dinomed.curate(folder, tmp_path / "c.parquet", exclude=[folder / "0.png"], settings=sizes)
    assert decoded == ALL
    decoded.clear()
    write_manifest(scan(folder, make_split=False).manifest, tmp_path / "m.parquet")
    dinomed.curate(tmp_path / "m.parquet", tmp_path / "d.parquet", settings=sizes)
    assert not decoded


def test_audit_decodes_a_bare_folder_in_processes(folder: Path, tmp_path: Path, decoded: set[str]) -> None:
    shutil.copytree(folder, tmp_path / "test")
    Image.new("RGB", (96, 72), (9, 99, 9)).save(tmp_path / "test" / "new.png")
    assert dinomed.audit(folder, tmp_path / "test", out=tmp_path / "page.html")["counts"]["exact"] == 10
    assert decoded == {*ALL, "new.png"}


@pytest.mark.parametrize("bare", [{"train", "test"}, {"train"}, {"test"}], ids=["both", "train", "test"])
def test_audit_checks_pairs_of_a_bare_folder_in_processes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bare: set[str]
) -> None:
    """The keypoints of pairs are found after the hashes."""
    read: set[Path] = set()

    def note(path: str | Path, **options: Any) -> Any:
        read.add(Path(path).resolve().parent)
        return read_image_and_header(path, **options)

    sides = {"train": folder, "test": tmp_path / "test"}
    shutil.copytree(folder, sides["test"])
    (sides["test"] / "9.png").unlink()
    manifests = {name: scan(place, make_split=False).manifest for name, place in sides.items()}
    monkeypatch.setattr("dinomed.images.read.read_image_and_header", note)
    monkeypatch.setattr("dinomed.pretrain.curation.audit.audit._exact", lambda train, test: [])
    found = dinomed.audit(*(sides[name] if name in bare else manifests[name] for name in sides))
    assert found["counts"]["near"] >= 9
    assert read == {sides[name].resolve() for name in sides if name not in bare}


@pytest.mark.parametrize("workers", [0, 1])
def test_pretrain_decodes_a_bare_folder_in_processes(
    folder: Path, tmp_path: Path, decoded: set[str], workers: int
) -> None:
    """The reader is taken from this process and its data workers; decoding processes are new programs."""

    def not_here(*_: Any, **__: Any) -> Any:
        raise AssertionError("an image is decoded in the program")

    settings = {
        "run.workers": workers, "run.batch_size": 4, "run.pca_images": 2, "crops.num_local": 0, "backbone.depth": 1
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dinomed.images.read.read_image_and_header", not_here)
        dinomed.pretrain("vit_tiny_cpu", folder, tmp_path / "run", steps=2, settings=settings, device="cpu")
    assert (tmp_path / "run" / "pca" / "00000002.png").is_file()
    assert decoded == ALL if workers == 0 else len(decoded) >= 2  # with a worker: the held-aside images
