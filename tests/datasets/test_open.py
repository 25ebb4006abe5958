"""Opening a manifest, a folder or one image; of a folder only headers are read."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile

from dinomed.adapters.fit import fit_head
from dinomed.adapters.fitting.config import FitConfig
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.apps import cli
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import read_manifest, write_manifest
from dinomed.datasets.open import open_dataset
from dinomed.datasets.scan.scan import scan
from dinomed.errors import DinomedError, UsageError
from dinomed.features.extract import extract, extract_usable
from dinomed.images.read import UnreadableImage, read_header, read_whole
from dinomed.isolation.pool import shared_pool


def test_a_manifest_a_folder_and_an_image_are_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (8, 6)).save(data / "a.png")
    (data / "b.jpg").write_text("no image")
    single = open_dataset(data / "a.png")
    assert (single.column("image"), single.root) == (["a.png"], data)
    assert single.column("width") == [8]
    assert single.path(0).is_file()
    folder = open_dataset(data)
    assert folder.column("image") == ["a.png"]
    assert not folder.has("split")
    assert "b.jpg: text, not an image; ignored" in capsys.readouterr().err
    write_manifest(folder, tmp_path / "m.parquet")
    assert open_dataset(tmp_path / "m.parquet").fingerprint == folder.fingerprint
    with pytest.raises(UnreadableImage, match="text, not an image"):
        open_dataset(data / "b.jpg")
    with pytest.raises(UsageError, match="does not exist"):
        open_dataset(tmp_path / "nowhere")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A JPEG, a PNG, a TIFF, and a PNG that is cut off in its pixels."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "b.png", "c.tif", "cut.png"):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / name)
    data = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    return folder


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often Pillow decodes each file, by its name."""
    counts: Counter[str] = Counter()
    prepare = ImageFile.ImageFile.load_prepare

    def count(image: ImageFile.ImageFile) -> None:
        counts[Path(image.fp.name).name] += 1  # type: ignore[union-attr]
        prepare(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", count)
    monkeypatch.setattr(shared_pool(), "isolated", False)  # other processes would count for themselves
    return counts


def test_a_folder_is_opened_by_headers(pictures: Path, decodes: Counter[str]) -> None:
    manifest = open_dataset(pictures)
    assert manifest.column("image") == ["a.jpg", "b.png", "c.tif", "cut.png"]
    assert manifest.unreadable == ()
    assert not decodes
    whole = scan(pictures, make_split=False).manifest
    assert decodes == Counter(["a.jpg", "b.png", "c.tif", "cut.png"])
    assert manifest.table.take([0, 1, 2]).equals(whole.table)


def test_a_folder_is_decoded_when_it_is_opened_on_request(pictures: Path) -> None:
    manifest = open_dataset(pictures, allow_unreadable=True, decode=True)
    assert manifest.column("image") == ["a.jpg", "b.png", "c.tif"]
    assert manifest.unreadable == (("cut.png", "truncated"),)


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file is hashed, by its name."""
    counts: Counter[str] = Counter()
    digest = hashlib.file_digest

    def count(file: BinaryIO, name: str) -> Any:
        counts[Path(file.name).name] += 1
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", count)
    return counts


@pytest.mark.parametrize("command", ["features", "index", "index --pool gem"])
def test_features_of_a_folder_decode_and_hash_each_image_once(
    pictures: Path, decodes: Counter[str], hashes: Counter[str], tiny_backbone: Path, tmp_path: Path, command: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The damaged image is left out and named, without a second pass over the others."""
    out = tmp_path / ("f.parquet" if command == "features" else "idx")
    name, *options = command.split()
    with pytest.raises(SystemExit) as end:
        cli.main([name, str(pictures), *options, "-b", str(tiny_backbone), "-o", str(out), "--json", "--quiet"])
    names = ["a.jpg", "b.png", "c.tif", "cut.png"]
    assert end.value.code == 1
    assert decodes == Counter(names)
    assert {name: hashes[name] for name in names} == dict.fromkeys(names, 1)
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert (report["images"], report["unreadable"]) == (3, 1)
    listed = tmp_path / "f.unreadable.csv"
    assert (
        listed.read_text() == "path,reason\ncut.png,truncated\n"
        if listed.exists()
        else "cut.png: truncated" in printed.err
    )


@pytest.mark.parametrize("command", ["features", "index", "index --pool gem"])
def test_a_folder_whose_images_are_all_damaged_is_refused_with_the_first_reason(
    pictures: Path, tiny_backbone: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.jpg", "b.png", "c.tif"):
        (pictures / name).unlink()
    out = tmp_path / ("f.parquet" if command == "features" else "idx")
    name, *options = command.split()
    with pytest.raises(SystemExit) as end:
        cli.main([name, str(pictures), *options, "-b", str(tiny_backbone), "-o", str(out), "--quiet"])
    assert end.value.code == 2
    assert "holds no readable image (1 file refused, the first cut.png: truncated)" in capsys.readouterr().err
    assert not out.exists()


def test_a_second_call_tries_a_damaged_image_again_and_keeps_the_other_features(
    pictures: Path, decodes: Counter[str], tiny_backbone: Path, tmp_path: Path
) -> None:
    backbone, manifest = load_backbone(tiny_backbone), open_dataset(pictures)
    options = {"cache": tmp_path / "cache", "shard_size": 2}
    first, usable = extract_usable(backbone, manifest, **options)
    decodes.clear()
    second, _ = extract_usable(backbone, manifest, **options)
    assert usable.column("image") == ["a.jpg", "b.png", "c.tif"]
    assert usable.unreadable == (("cut.png", "truncated"),)
    assert decodes == Counter(["c.tif", "cut.png"])  # the shard of the damaged image
    assert np.array_equal(first.cls, second.cls)
    whole = extract(backbone, manifest.take([0, 1, 2]), **options)
    assert np.array_equal(first.cls, whole.cls)


def test_a_file_that_changes_after_the_scan_is_named_as_changed(
    pictures: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    manifest = open_dataset(pictures)
    content = bytearray((pictures / "b.png").read_bytes())
    content[-20] ^= 1
    (pictures / "b.png").write_bytes(content)
    _, usable = extract_usable(load_backbone(tiny_backbone), manifest, cache=tmp_path / "cache")
    assert usable.unreadable == (("b.png", "changed since the scan; scan again"), ("cut.png", "truncated"))


def test_a_prediction_decodes_each_image_once_and_reports_the_damaged_one(
    pictures: Path, decodes: Counter[str], lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    config = ClassifyConfig(fit=FitConfig(epochs=1, batch_size=16, min_steps=0))
    fit_head(
        load_backbone(tiny_backbone), read_manifest(lesion_manifest), tmp_path / "cls", config, cache=tmp_path / "cache"
    )
    decodes.clear()
    out = ["-o", str(tmp_path / "out"), "--no-sheet"]  # the sheet reads its pictures again, at most 400
    with pytest.raises(SystemExit) as end:
        cli.main(["predict", str(tmp_path / "cls"), str(pictures), *out, "--quiet"])
    assert end.value.code == 1
    assert decodes == Counter(["a.jpg", "b.png", "c.tif", "cut.png"])
    assert (tmp_path / "out" / "unreadable.csv").read_text() == "image,reason\ncut.png,truncated\n"
    assert len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) == 4


def test_more_than_half_unreadable_is_refused_unless_allowed(pictures: Path) -> None:
    for index in range(5):
        (pictures / f"{index}.jpg").write_text("no image")
    with pytest.raises(DinomedError, match=r"5 of 9 files of .* cannot be read"):
        open_dataset(pictures)
    assert len(open_dataset(pictures, allow_unreadable=True).unreadable) == 5


def test_masks_are_paired_and_not_read(pictures: Path, decodes: Counter[str]) -> None:
    (pictures / "masks").mkdir()
    (pictures / "masks" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n no mask")
    manifest = open_dataset(pictures)
    assert manifest.column("mask") == ["masks/a.png", None, None, None]
    assert not decodes


def test_headers_of_arrays_and_bands_are_read_without_samples(tmp_path: Path) -> None:
    values = np.arange(5 * 4 * 6, dtype=np.uint16).reshape(5, 4, 6)
    np.save(tmp_path / "a.npy", values)
    tifffile.imwrite(tmp_path / "b.tif", values, planarconfig="contig", photometric="minisblack")
    for name in ("a.npy", "b.tif"):
        assert read_header(tmp_path / name) == read_whole(tmp_path / name)
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-10])
    assert read_header(tmp_path / "a.npy").channels == 6
    with pytest.raises(UnreadableImage, match="truncated"):
        read_whole(tmp_path / "a.npy")


@pytest.mark.parametrize("behind", [False, True])
def test_the_exif_of_a_png_is_found_before_and_behind_its_pixels(
    tmp_path: Path, behind: bool, decodes: Counter[str]
) -> None:
    exif = Image.Exif()
    exif[274] = 6
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 6)).save(path, exif=exif)
    if behind:
        data = path.read_bytes()
        start = data.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        last = data.index(b"IEND") - 4
        path.write_bytes(data[:start] + data[end:last] + data[start:end] + data[last:])
    header = read_header(path)
    assert (header.width, header.height, header.orientation) == (6, 8, 6)
    assert decodes == Counter(["a.png"] if behind else [])
