"""Scans of folders: files, names, links, formats, and files that cannot be read (reliability rows 9, 10, 20)."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dinomed.datasets.manifest import read_manifest, write_manifest
from dinomed.datasets.open import open_dataset
from dinomed.datasets.scan.scan import scan
from dinomed.datasets.splits import check_splits
from dinomed.errors import DinomedError, UsageError
from dinomed.images.read import read_image


def test_everything_of_the_csv_arrives(folder: Path) -> None:
    result = scan(folder, "labels.csv", group="lesion_id", keep=["age"])
    manifest = result.manifest
    assert manifest.columns == [
        "image", "sha256", "width", "height", "mode", "format", "bytes", "channels", "bits", "group", "split", "label",
        "mask", "age",
    ]  # fmt: skip
    assert len(manifest) == 10
    tag = manifest.column("group")[0][:4]
    assert manifest.column("group") == [f"{tag}-{i // 2 + 1}" for i in range(10)]
    assert manifest.column("age")[3] == "03"
    assert manifest.column("bytes")[0] == (folder / "images/0.png").stat().st_size
    assert (manifest.column("width")[0], manifest.column("height")[0]) == (16, 12)
    assert result.masks == {"masks": 10, "empty": 1, "full": 0}
    check_splits(manifest.column("group"), manifest.column("split"), manifest.column("image"))
    assert set(manifest.column("split")) == {"train", "val", "test"}
    assert result.unreadable == []
    again = scan(folder, folder / "labels.csv", group="lesion_id", keep=["age"], workers=3)
    assert again.manifest.table.equals(manifest.table)
    assert scan(folder, "labels.csv", group="lesion_id", seed=5).manifest.fingerprint == manifest.fingerprint


def test_bad_files_are_listed_and_the_scan_goes_on(folder: Path) -> None:
    whole = (folder / "images/0.png").read_bytes()
    (folder / "images/cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "images/empty.jpg").write_bytes(b"")
    (folder / "images/page.jpg").write_text("<html></html>")
    result = scan(folder, "labels.csv")
    assert len(result.manifest) == 10
    assert dict(result.unreadable) == {
        "images/cut.png": "truncated",
        "images/empty.jpg": "empty file",
        "images/page.jpg": "an HTML page, not an image",
    }
    assert not any("HALF" in line for line in result.warnings)


def test_more_than_half_unreadable_ends_the_scan_unless_allowed(tmp_path: Path, paint: Callable[..., Any]) -> None:
    paint(tmp_path / "a.png")
    (tmp_path / "0.jpg").write_bytes(b"")
    assert len(scan(tmp_path).unreadable) == 1  # just half
    (tmp_path / "1.jpg").symlink_to("gone")
    with pytest.raises(DinomedError, match=r"2 of 3 files of .* cannot be read, the first is 1.jpg: broken link;"):
        scan(tmp_path)
    allowed = scan(tmp_path, allow_unreadable=True)
    assert "MORE THAN HALF of the files cannot be read (2 of 3)" in allowed.warnings[0]
    assert len(allowed.manifest) == 1
    assert len(open_dataset(tmp_path, allow_unreadable=True).unreadable) == 2


def test_nothing_to_read_names_the_folder(tmp_path: Path) -> None:
    for folder, expected in [(tmp_path / "none", "does not exist"), (tmp_path, "holds no image")]:
        with pytest.raises(UsageError, match=expected) as caught:
            scan(folder)
        assert str(folder) in str(caught.value)
    (tmp_path / "a.jpg").write_text("text")
    with pytest.raises(UsageError, match=r"no readable image \(1 file refused, the first a.jpg: text"):
        scan(tmp_path)
    with pytest.raises(UsageError, match="is not a folder"):
        scan(tmp_path / "a.jpg")


def test_files_with_several_frames_are_reported(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), value) for value in (0, 200)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert (
        "1 file with several frames or pages; the first is used (of DICOM, `dinomed frames` writes all)"
        in scan(tmp_path).notes
    )


def test_odd_names_through_scan_and_manifest(tmp_path: Path, paint: Callable[..., Any]) -> None:
    names = ["with space.png", "ünï/猫.png", "new\nline.png", "x" * 246 + ".png"]
    for i, name in enumerate(names):
        paint(tmp_path / "data" / name, i)
    write_manifest(scan(tmp_path / "data").manifest, tmp_path / "m.csv")
    manifest = read_manifest(tmp_path / "m.csv")
    assert sorted(manifest.column("image")) == sorted(names)
    assert all(read_image(manifest.path(i)).shape == (12, 16, 3) for i in range(4))


def test_links_out_are_listed(folder: Path, paint: Callable[..., Any]) -> None:
    outside = paint(folder.parent / "outside.png", 50)
    (folder / "images/link.png").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    assert [path for path, _ in scan(folder).unreadable] == ["images/link.png"]
    assert "images/link.png" in scan(folder, follow_links=True).manifest.column("image")


def test_exif_of_the_camera_stays_in_the_file(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = "Jane Planted-Marker", "Doctor Planted-Marker"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    write_manifest(scan(tmp_path).manifest, tmp_path / "m.csv")
    assert "Planted" not in (tmp_path / "m.csv").read_text()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_files_without_permission_are_listed(folder: Path) -> None:
    (folder / "images/0.png").chmod(0)
    assert dict(scan(folder).unreadable) == {"images/0.png": "permission denied"}


@pytest.mark.long
@pytest.mark.data
def test_dermoscopy(real_data: Path) -> None:
    result = scan(real_data / "dermoscopy", "labels.csv", group="lesion_id", keep=["age"])
    manifest = result.manifest
    assert len(manifest) == len((real_data / "dermoscopy/labels.csv").read_text().splitlines()) - 1
    assert result.unreadable == []
    images = set(manifest.column("image"))
    known = [
        [f"images/ISIC_{a}.jpg", f"images/ISIC_{b}.jpg"] for a, b in [("0024366", "0029861"), ("0024777", "0029938")]
    ]  # as the data's README says; of the first pair one image may have been kept back
    assert result.duplicates == [pair for pair in known if images >= set(pair)]
    full = {f"images/ISIC_{name}.jpg" for name in ("0026042", "0029819")} & images
    assert result.masks == {"masks": len(manifest), "empty": 0, "full": len(full)}
    check_splits(manifest.column("group"), manifest.column("split"), manifest.column("image"))
    assert len(manifest.classes()) == 7
    assert manifest.column("age").count(None) <= 57


@pytest.mark.long
@pytest.mark.data
def test_polyps_depth_and_dicom(real_data: Path) -> None:
    polyps = scan(real_data / "polyps", "labels.csv")
    assert polyps.masks["masks"] == 160  # JPEG masks
    assert polyps.masks["empty"] > 5  # frames without a polyp
    depth = scan(real_data / "depth", "labels.csv")
    assert len(depth.manifest) == 10
    assert depth.manifest.has("depth")
    pictures = scan(real_data / "dicom")
    assert len(pictures.manifest) >= 39  # of 67: others are segmentations, or need a codec
    assert set(pictures.manifest.column("format")) == {"DICOM"}
    assert {1, 3} == set(pictures.manifest.column("channels"))
