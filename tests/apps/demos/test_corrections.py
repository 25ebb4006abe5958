"""Saved decisions of a reviewer: pixels, masks and the manifest, without a browser."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dinomed.apps.demos.corrections import MANIFEST_FILE, Corrections, apply_edits, check_savable
from dinomed.apps.demos.parts import Picture, read_picture
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.datasets.manifest import Manifest, read_manifest, write_manifest
from dinomed.errors import UsageError
from dinomed.images.intensity import SEPARATE_CHANNELS, IntensityConfig
from dinomed.images.read import read_image, read_mask


def picture(seed: int, channels: int = 3) -> Picture:
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 30, channels), np.uint8)
    return Picture(np.repeat(pixels[..., :1], 3, -1), pixels, f"{seed:x}" * 64)


def test_a_decision_is_an_image_a_mask_and_a_row_and_the_next_one_replaces_it(tmp_path: Path) -> None:
    corrections = Corrections(tmp_path, "weights")
    mask = np.zeros((20, 30), bool)
    mask[3:9, 4:20] = True
    corrections.save(picture(1), ~mask, "accepted", 0.5, "")
    corrections.save(picture(2, channels=1), mask, "corrected", 0.25, "  R. Viewer ")
    Corrections(tmp_path, "later weights").save(picture(1), mask, "corrected", 0.4, "x" * 500)
    Corrections(tmp_path, "later weights").save(picture(3), None, "rejected", 0.5, "")
    manifest = read_manifest(tmp_path / MANIFEST_FILE)
    rows = {row["source_sha256"]: row for row in manifest.table.to_pylist()}
    assert [rows[f"{seed:x}" * 64]["decision"] for seed in (1, 2, 3)] == ["corrected", "corrected", "rejected"]
    assert [rows[f"{seed:x}" * 64]["adapter"] for seed in (1, 2)] == ["later weights", "weights"]
    assert [rows[f"{seed:x}" * 64]["threshold"] for seed in (1, 2)] == ["0.4", "0.25"]
    assert rows["2" * 64]["reviewer"] == "R. Viewer"
    assert len(rows["1" * 64]["reviewer"]) == 80
    assert rows["3" * 64]["mask"] is None
    for row, name in enumerate(manifest.column("image")):
        seed = int(manifest.column("source_sha256")[row][0])
        expected = picture(seed, channels=1 if seed == 2 else 3).pixels
        assert (read_image(tmp_path / name, channels=expected.shape[-1]) == expected).all()
        if seed != 3:
            assert (read_mask(tmp_path / manifest.column("mask")[row]) == mask).all()


def test_windows_as_channels_stay_marked_so_that_they_are_not_mixed(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text(SEPARATE_CHANNELS, "1")
    Image.fromarray(picture(1).pixels).save(tmp_path / "slice.png", pnginfo=info)
    Image.fromarray(picture(2).pixels).save(tmp_path / "photo.png")
    corrections = Corrections(tmp_path / "saved", "weights")
    for name, marked in (("slice.png", True), ("photo.png", False)):
        opened, _ = read_picture(str(tmp_path / name), Preprocessing(image_size=16))
        assert opened is not None
        row = corrections.save(opened, np.ones((20, 30), bool), "accepted", 0.5, "")
        saved = tmp_path / "saved" / row["image"]
        assert (read_image(saved) == opened.pixels).all()
        assert (SEPARATE_CHANNELS in Image.open(saved).info) == marked


def test_frames_of_a_file_are_rows_of_one_group(tmp_path: Path) -> None:
    mask = np.ones((20, 30), bool)
    for frame in (7, 0, 7):
        decided = replace(picture(1 + frame), sha256="f" * 64, frame=frame, frames=9)
        Corrections(tmp_path, "weights").save(decided, mask, "accepted", 0.5, "")
    Corrections(tmp_path, "weights").save(picture(3), mask, "accepted", 0.5, "")
    manifest = read_manifest(tmp_path / MANIFEST_FILE)
    assert manifest.column("frame") == ["7", "0", None]
    assert manifest.column("group") == ["f" * 64, "f" * 64, None]
    for row, seed in enumerate((8, 1, 3)):
        assert (read_image(manifest.path(row)) == picture(seed).pixels).all()


def test_a_manifest_that_the_demo_did_not_write_is_refused(tmp_path: Path) -> None:
    Corrections(tmp_path, "weights").save(picture(1), None, "rejected", 0.5, "")
    table = read_manifest(tmp_path / MANIFEST_FILE).table.drop_columns("source_sha256")
    write_manifest(Manifest(table, tmp_path), tmp_path / MANIFEST_FILE)
    with pytest.raises(UsageError, match="was not written by the demo"):
        Corrections(tmp_path, "weights")


def test_a_rejected_image_loses_its_earlier_mask(tmp_path: Path) -> None:
    corrections = Corrections(tmp_path, "weights")
    corrections.save(picture(1), np.ones((20, 30), bool), "accepted", 0.5, "")
    corrections.save(picture(1), None, "rejected", 0.5, "")
    assert list((tmp_path / "masks").iterdir()) == []
    for decision, mask in (("rejected", np.ones((20, 30), bool)), ("accepted", None), ("maybe", None)):
        with pytest.raises(ValueError, match="no such decision"):
            corrections.save(picture(1), mask, decision, 0.5, "")


def test_nothing_of_the_file_but_its_pixels_is_saved(tmp_path: Path) -> None:
    image, exif = Image.new("RGB", (30, 20), (200, 10, 90)), Image.Exif()
    exif[0x010E] = "DOE^JANE"
    image.save(tmp_path / "jane.jpg", exif=exif, comment=b"DOE^JANE")
    pixels = read_image(tmp_path / "jane.jpg")
    Corrections(tmp_path / "out", "weights").save(
        Picture(pixels, pixels, "a" * 64), np.zeros((20, 30), bool), "accepted", 0.5, ""
    )
    for path in (tmp_path / "out").rglob("*"):
        assert "jane" not in path.name.lower()
        if path.is_file():
            assert b"DOE" not in path.read_bytes()


def test_edits_change_exactly_the_pixels_of_their_runs() -> None:
    mask = np.zeros((4, 6), bool)
    mask[1, 1:4] = True
    edited = apply_edits(mask, [0, 3, 1, 7, 8, 2, 22, 24, 1], (4, 6))
    expected = mask.copy()
    expected[0, :3], expected[1, 1], expected[3, 4:] = True, False, True
    assert (edited == expected).all()
    large = apply_edits(np.zeros((8, 12), bool), [7, 8, 1], (4, 6))  # a pixel of the map is four of the image
    assert [tuple(place) for place in np.argwhere(large)] == [(2, 2), (2, 3), (3, 2), (3, 3)]
    assert (apply_edits(mask, [], (4, 6)) == mask).all()


@pytest.mark.parametrize("runs", [[-1, 2, 1], [0, 25, 1], [5, 5, 1], [0, 2, 3], [0, 2], [3, 1, 2], [0, 9, 1, 8, 12, 1]])
def test_edits_that_are_not_of_the_map_are_refused(runs: list[int]) -> None:
    with pytest.raises(ValueError, match=r"out of range|reshape|one after the other"):
        apply_edits(np.zeros((4, 6), bool), runs, (4, 6))


def test_what_cannot_be_saved_is_refused_at_the_start() -> None:
    check_savable(None, ["lesion"])
    check_savable(Preprocessing(mean=(0.5,), std=(0.5,), channels=1), ["lesion"])
    with pytest.raises(UsageError, match="segmenters of one class, and this one has 2"):
        check_savable(None, ["a", "b"])
    deep = Preprocessing(mean=(0.5,), std=(0.5,), channels=1, intensity=IntensityConfig(bits=16))
    with pytest.raises(UsageError, match="1 channels of 16 bits"):
        check_savable(deep, ["lesion"])
