"""Images that were changed after the scan: every command that reads them by a manifest says so."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinomed.adapters.retrieval.index import read_index
from dinomed.adapters.retrieval.pool import Pooling
from dinomed.apps import cli
from dinomed.datasets.manifest import read_manifest
from dinomed.images import unchanged
from dinomed.io.files import sha256_file

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        return int(end.value.code or 0), " ".join(capsys.readouterr().err.split())

    return run


@pytest.fixture
def manifest(lesion_manifest: Path, tmp_path: Path) -> Path:
    shutil.copytree(lesion_manifest.parent, tmp_path / "data", ignore=shutil.ignore_patterns("*.features"))
    return tmp_path / "data" / lesion_manifest.name


def change(manifest: Path, split: str, how: str) -> str:
    """Change the first image of a split; its name."""
    images = read_manifest(manifest).select(split=split)
    path = images.path(0)
    if how == "other size":
        with Image.open(path) as image:
            image.resize((20, 30)).save(path)
    else:  # one pixel is enough; the length of the file may stay
        content = bytearray(path.read_bytes())
        content[-20] ^= 1
        path.write_bytes(content)
    name: str = images.column("image")[0]
    return name


@pytest.mark.parametrize("how", ["other size", "other bytes"])
@pytest.mark.parametrize("task", ["classify", "segment"])
def test_training_and_evaluation_refuse(
    manifest: Path, tiny_backbone: Path, tmp_path: Path, call: Call, task: str, how: str
) -> None:
    adapter = tmp_path / "adapter"
    train = ("train", task, "--backbone", tiny_backbone, "--data", manifest, "-o", adapter)
    few = ("--set", "fit.epochs=1", "--set", "fit.min_steps=1")
    size = ("--set", "image_size=32") if task == "segment" else ()
    code, said = call(*train, *few, *size)
    assert code == 0, said
    name = change(manifest, "test", how)
    code, said = call("evaluate", adapter, "--data", manifest, "--split", "test")
    assert code == 1
    assert said.endswith(f"{name}: changed since the scan; scan again")  # once
    name = change(manifest, "train", how)
    for cached in (True, False):
        if not cached:
            shutil.rmtree(manifest.with_suffix(".features"))
        code, said = call(*train, *few, *size, "--overwrite")
        assert code == 1
        assert said.endswith(f"{name}: changed since the scan; scan again")


def test_an_index_leaves_them_out_with_and_without_the_cache(
    manifest: Path, tiny_backbone: Path, tmp_path: Path, call: Call
) -> None:
    index = ("index", manifest, "--backbone", tiny_backbone, "--where", "split=test")
    assert call(*index, "-o", tmp_path / "a")[0] == 0
    name = change(manifest, "test", "other bytes")
    counts = []
    for out in ("b", "c"):
        code, said = call(*index, "-o", tmp_path / out)
        assert code == 1
        assert f"{name}: changed since the scan; scan again" in said
        counts.append(read_index(tmp_path / out).record.count)
        shutil.rmtree(manifest.with_suffix(".features"), ignore_errors=True)
    assert counts == [read_index(tmp_path / "a").record.count - 1] * 2


def test_pooled_features_of_an_interrupted_index_are_not_used_for_them(
    manifest: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dinomed.adapters.retrieval import build
    from dinomed.backbones.load import load_backbone

    images, gem = read_manifest(manifest).select(split="test"), {"cache": tmp_path, "pooling": Pooling(tokens="gem")}
    backbone, out = load_backbone(tiny_backbone), tmp_path / "index"
    with monkeypatch.context() as patch:
        patch.setattr(build, "write_index", None)
        with pytest.raises(TypeError):
            build.build_index(backbone, images, out, **gem)
    change(manifest, "test", "other bytes")
    assert len(build.build_index(backbone, images, out, **gem).manifest) == len(images) - 1


def test_cached_features_of_files_with_another_date_only_are_used(
    manifest: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dinomed.backbones.load import load_backbone
    from dinomed.features import extract as extracting

    images, backbone = read_manifest(manifest).take(range(4)), load_backbone(tiny_backbone)
    extracting.extract(backbone, images, cache=tmp_path / "cache")
    images.path(0).touch()
    images.path(1).unlink()  # the cache needs no images
    monkeypatch.setattr(extracting, "compute_features", None)
    hashed = []
    monkeypatch.setattr(unchanged, "content_digest", lambda path: hashed.append(path) or sha256_file(path))
    assert len(extracting.extract(backbone, images, cache=tmp_path / "cache")) == 4
    assert hashed == [images.path(0)]  # the others are older than the cache


def test_unchanged_is_what_has_the_same_bytes_whatever_its_date(tmp_path: Path) -> None:
    from dinomed.images.read import UnreadableImage
    from dinomed.images.unchanged import check_unchanged

    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)
    size, digest = path.stat().st_size, sha256_file(path)
    path.touch()
    check_unchanged(path, size, digest)
    for harm in (path.read_bytes() + b"\0", b"\0" * size):
        path.write_bytes(harm)
        with pytest.raises(UnreadableImage, match="changed since the scan"):
            check_unchanged(path, size, digest)
    check_unchanged(tmp_path / "gone.png", 0, "")  # for the reader to tell
