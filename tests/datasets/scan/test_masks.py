"""Masks in a scan: pairs, sizes, orientation, and masks that cannot be used (reliability row 21)."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinomed.datasets.scan import facts
from dinomed.datasets.scan.facts import Facts, facts_record
from dinomed.datasets.scan.scan import scan
from dinomed.datasets.synthetic.lesions import write_lesions
from dinomed.errors import UsageError
from dinomed.images.read import write_mask
from dinomed.isolation.pool import EndedDecoding


def test_masks_of_another_size_are_refused_in_pairs(folder: Path) -> None:
    for i in (2, 7):
        write_mask(folder / f"masks/{i}.png", np.ones((16, 12), np.uint8))
    with pytest.raises(
        UsageError, match="2 of 10 images have a mask of another size than the image; correct"
    ) as caught:
        scan(folder, "labels.csv")
    assert "masks/2.png: the mask is 12x16, its image 16x12" in str(caught.value)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_a_mask_without_the_exif_rotation_of_its_image_gives_a_warning(folder: Path, format: str) -> None:
    def turn(name: str, orientation: int, size: tuple[int, int] = (16, 12)) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", size).save(folder / name, format, exif=exif)

    turn("images/1.png", 3)
    turn("images/2.png", 3)
    turn("masks/2.png", 3)  # turned alike
    turn("images/4.png", 6, (12, 16))  # its mask fits the upright shape alone
    turn("images/5.png", 1)
    assert [line for line in scan(folder, "labels.csv").warnings if "EXIF" in line] == [
        "1 image with an EXIF rotation and a mask without one; the mask fits the image with and without the rotation. "
        "Check that the mask was drawn on the upright image. The first is images/1.png with masks/1.png"
    ]
    turn("images/7.png", 6, (10, 10))
    write_mask(folder / "masks/7.png", np.ones((10, 10), np.uint8))
    assert any("2 images with an EXIF rotation" in line for line in scan(folder, "labels.csv").warnings)
    turn("images/8.png", 6)
    with pytest.raises(UsageError, match=r"masks/8.png: the mask is 16x12, its image 12x16 .*turn the mask upright"):
        scan(folder, "labels.csv")


def test_one_bad_mask_is_listed_all_bad_masks_are_refused(folder: Path, cells: Callable[..., Any]) -> None:
    def spoil(i: int) -> None:
        Image.fromarray(np.arange(192, dtype=np.uint8).reshape(12, 16)).save(folder / f"masks/{i}.png")

    spoil(3)
    result = scan(folder, "labels.csv")
    assert cells(result, "mask")["images/3.png"] is None
    assert cells(result, "label")["images/3.png"] == "mel"
    assert [path for path, _ in result.unreadable] == ["masks/3.png"]
    assert result.masks["masks"] == 9
    assert "1 mask of 10 cannot be used" in result.warnings[0]
    for i in range(10):
        spoil(i)
    with pytest.raises(UsageError, match=r"none of the 10 masks can be used.*`mask=none`"):
        scan(folder, "labels.csv")
    assert not scan(folder, "labels.csv", mask="none").manifest.has("mask")


def test_without_a_csv_masks_are_found_by_name(folder: Path, cells: Callable[..., Any]) -> None:
    result = scan(folder)
    assert len(result.manifest) == 10
    assert cells(result, "mask")["images/3.png"] == "masks/3.png"
    assert not result.manifest.has("label")
    assert "labels.csv is in the folder and is not used; use it with `labels=labels.csv`" in result.notes


def test_uncertain_masks_are_reported_and_not_used(
    folder: Path, paint: Callable[..., Any], cells: Callable[..., Any]
) -> None:
    paint(folder / "images/3.jpg", 33)
    result = scan(folder)
    assert cells(result, "mask")["images/3.png"] is None
    assert cells(result, "mask")["images/4.png"] == "masks/4.png"
    assert [line for line in result.warnings if "doubt" in line or "not used" in line] == [
        "1 mask not used, because the image with the same name may be another image; the first is masks/3.png: "
        "2 images have its name: images/3.jpg, images/3.png. "
        "Name the mask of each image in a CSV (`labels`, column mask)"
    ]
    assert "masks/3.png" not in result.manifest.column("image")
    assert not any("not used" in line for line in scan(folder, "labels.csv").warnings)  # the CSV says whose it is
    assert not any("not used" in line for line in scan(folder, mask="none").warnings)


def test_files_in_other_columns_are_no_images(tmp_path: Path, paint: Callable[..., Any]) -> None:
    paint(tmp_path / "images/a.png", 0)
    paint(tmp_path / "depth/a_depth.png", 1)
    (tmp_path / "labels.csv").write_text("image,depth\nimages/a.png,depth/a_depth.png\n")
    result = scan(tmp_path, "labels.csv")
    assert result.manifest.column("image") == ["images/a.png"]
    assert result.manifest.column("depth") == ["depth/a_depth.png"]


def test_masks_of_an_earlier_prediction_are_no_images(tmp_path: Path) -> None:
    from dinomed.adapters.inference.plan import PLAN_FILE, PredictionPlan

    write_lesions(tmp_path / "data", count=6, size=(36, 48), broken=0)
    before = scan(tmp_path / "data", labels="labels.csv").manifest
    out = tmp_path / "data" / "out"
    shutil.copytree(tmp_path / "data" / "masks", out / "images")  # under the images' names, as predict writes them
    (out / "empty.png").touch()
    PredictionPlan({}, ("images/a.png",), complete=True).write(out)
    result = scan(tmp_path / "data", labels="labels.csv")
    assert result.manifest.table.equals(before.table)
    assert result.unreadable == []
    assert any(note.startswith("out holds a prediction of `dinomed predict` (7 images)") for note in result.notes)
    assert len(scan(out, allow_unreadable=True).manifest) > 0  # named itself, it is what is wanted
    (out / PLAN_FILE).write_text("{}")  # another tool's: nothing is known of it
    assert len(scan(tmp_path / "data", labels="labels.csv").manifest) > len(before)


@pytest.mark.parametrize("decode", [True, False])
def test_an_image_is_read_without_a_mask_that_ends_the_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch, decode: bool
) -> None:
    class Pool:
        def run(self, target: str, calls: Sequence[Any]) -> list[Any]:
            return [EndedDecoding(call[0], "ended") if call[3] else facts_record(*call) for call in calls]

    monkeypatch.setattr(facts, "shared_pool", Pool)
    (read,) = facts.read_several(folder, ["images/3.png"], {"images/3.png": "masks/3.png"}, decode=decode)
    assert isinstance(read, Facts)
    assert (read.mask, read.mask_problem, read.header.width) == ("masks/3.png", "ended", 16)


def test_a_table_finds_masks_in_a_folder_of_any_name(folder: Path, cells: Callable[..., Any]) -> None:
    (folder / "masks").rename(folder / "outlines")
    (folder / "images/9.png").rename(folder / "images/nine.png")
    rows = [*((f"{i}.png", f"outlines/{i}.png") for i in range(8)), ("nine.png", "9.png"), ("8.png", "8")]
    (folder / "t.csv").write_text("image,mask\n" + "".join(f"images/{image},{mask}\n" for image, mask in rows))
    result = scan(folder, "t.csv")
    masks = cells(result, "mask")
    assert (masks["images/nine.png"], masks["images/8.png"]) == ("outlines/9.png", "outlines/8.png")
    assert "outlines/9.png" not in masks  # it is no image
