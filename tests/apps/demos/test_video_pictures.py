"""Frames of videos as pictures of the demo."""

import asyncio
import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from pydicom.dataset import Dataset

from dinomed.adapters.tasks.areas import pixel_mm2
from dinomed.apps.demos.page import BAD_REQUEST, App
from dinomed.apps.demos.parts import measured_mask, read_picture
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.images import frames
from dinomed.images.dicom.spacing import read_frame_spacings
from dinomed.video.facts import VideoFrame
from dinomed.video.packets import MAX_FRAMES
from dinomed.video.video import LostFrame, Video

tools = runpy.run_path(str(Path(__file__).parents[2] / "video" / "numbered.py"))
write_numbered, number_in, FRAMES, FPS = (tools[name] for name in ("write_numbered", "number_in", "FRAMES", "FPS"))

write_dicom = runpy.run_path(str(Path(__file__).parents[2] / "video" / "cine.py"))["write_dicom"]


def written(path: Path, codec: str) -> Path:
    if not write_numbered(path, codec):
        pytest.skip(f"this build of OpenCV does not encode {codec}")
    return path


@pytest.mark.parametrize(("codec", "suffix"), [("mp4v", "mp4"), ("MJPG", "avi"), ("mpg2", "mpg")])  # the last: no index
def test_a_frame_is_the_one_of_its_number_and_the_frames_are_counted(tmp_path: Path, codec: str, suffix: str) -> None:
    path = str(written(tmp_path / f"video.{suffix}", codec).rename(tmp_path / "image"))
    for number in (0, 70, 3):
        picture, reason = read_picture(path, None, number)
        assert picture is not None, reason
        assert (picture.frames, picture.frame, number_in(picture.shown)) == (FRAMES, number, number)
        assert picture.seconds == pytest.approx(number / FPS)
        assert (picture.problem, picture.spacing_mm, picture.has_values) == (None, None, False)


def test_each_frame_of_a_dicom_file_has_its_own_spacing(tmp_path: Path) -> None:
    groups = []
    for spacing in ([0.5, 0.25], [2, 1], None):
        measures, group = Dataset(), Dataset()
        if spacing is not None:
            measures.PixelSpacing = spacing
        group.PixelMeasuresSequence = [measures]
        groups.append(group)
    frames = [np.zeros((32, 48), np.uint8)] * 3
    path = str(write_dicom(tmp_path / "image", frames, PerFrameFunctionalGroupsSequence=groups))
    shown = [read_picture(path, None, number)[0] for number in range(3)]
    assert [None if picture is None else picture.spacing_mm for picture in shown] == [(0.5, 0.25), (2, 1), None]


def region(left: int, right: int, mm: float) -> Dataset:
    """An ultrasound region of some columns of a picture of 32 rows."""
    item = Dataset()
    item.RegionSpatialFormat, item.PhysicalUnitsXDirection, item.PhysicalUnitsYDirection = 1, 3, 3
    item.RegionLocationMinX0, item.RegionLocationMaxX1 = left, right
    item.RegionLocationMinY0, item.RegionLocationMaxY1 = 0, 31
    item.PhysicalDeltaX, item.PhysicalDeltaY = mm / 10, mm / 20  # cm
    return item


def test_the_spacing_of_a_mask_in_an_ultrasound_is_that_of_predict(tmp_path: Path) -> None:
    frames = [np.zeros((32, 48), np.uint8)] * 2
    several, plain = [region(0, 15, 1.0), region(16, 31, 2.0)], [region(0, 15, 1.0)]
    masks = np.zeros((4, 32, 48), bool)
    for mask, columns in zip(masks, (slice(2, 8), slice(18, 30), slice(10, 20), slice(40, 44)), strict=True):
        mask[3:9, columns] = True
    for regions, expected in ((several, [(0.5, 1), (1, 2), None, None]), (plain, [(0.5, 1), None, None, None])):
        path = str(write_dicom(tmp_path / "image", frames, SequenceOfUltrasoundRegions=regions))
        picture, reason = read_picture(path, None, 1)
        assert picture is not None, reason
        assert picture.by_region
        assert picture.spacing_mm == (None if regions is several else (0.5, 1))  # of the scale bar
        spacings = [measured_mask(mask, [int(mask.sum())], picture.spacings)["spacing"] for mask in masks]
        assert spacings == expected
        areas = [pixel_mm2(read_frame_spacings(path), 1, mask) for mask in masks]
        assert areas == [None if spacing is None else spacing[0] * spacing[1] for spacing in spacings]
    write_dicom(tmp_path / "image", frames, SequenceOfUltrasoundRegions=[plain[0]] * 65)
    picture, reason = read_picture(path, None, 1)
    assert picture is not None, reason
    assert (picture.spacings, picture.spacing_mm) == (None, None)  # more regions than are compared


def test_a_backbone_reads_a_frame_with_its_number_of_channels(tmp_path: Path) -> None:
    path = str(written(tmp_path / "video.mp4", "mp4v"))
    picture, reason = read_picture(path, Preprocessing(image_size=32, channels=1, mean=(0.5,), std=(0.5,)), 5)
    assert picture is not None, reason
    assert picture.pixels.shape == (*picture.shown.shape[:2], 1)
    assert number_in(np.repeat(picture.pixels, 3, axis=2)) == number_in(picture.shown) == 5
    assert not vars(frames._newest)  # nothing of a visitor is kept


def test_what_cannot_be_read_of_a_video_is_said_in_one_line(tmp_path: Path) -> None:
    path = written(tmp_path / "video.mp4", "mp4v")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])  # the index is at the end
    picture, reason = read_picture(str(path), None)
    assert picture is None
    assert (
        "This file cannot be read as a video: no video can be read in it: damaged, cut off before its index" in reason
    )
    assert "\n" not in reason

    path = written(tmp_path / "video.avi", "MJPG")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    picture, reason = read_picture(str(path), None)
    assert picture is not None, reason
    assert 1 < picture.frames < FRAMES
    assert picture.problem is not None
    assert picture.problem.startswith(f"cut off or damaged: its header announces {FRAMES} frames")


def test_a_damaged_frame_has_a_message_and_the_others_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(written(tmp_path / "video.avi", "MJPG"))
    read = Video.read

    def read_all_but_one(video: Video, number: int) -> VideoFrame:
        if number == 4:
            raise LostFrame(video.path, "frame 4 cannot be decoded")
        return read(video, number)

    monkeypatch.setattr(Video, "read", read_all_but_one)
    picture, reason = read_picture(path, None, 4)
    assert picture is None
    assert "Frame 5 of this video is damaged; choose another one." in reason
    assert read_picture(path, None, 5)[0] is not None


@pytest.mark.parametrize("name", ["look", "values"])
@pytest.mark.parametrize("number", [10**9, MAX_FRAMES + 1])
def test_a_request_for_a_frame_that_no_video_has_is_refused_without_the_path_of_the_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: Any
) -> None:
    class Client:
        async def is_disconnected(self) -> bool:
            return False

    class NoPanel:
        name, answers, preprocessing = "none", True, None

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    path = written(tmp_path / "video.avi", "MJPG")
    app, client = App([cast("Any", NoPanel())]), cast("Any", Client())
    request = {"id": "a", "path": str(path), "frame": number}
    with ThreadPoolExecutor(1) as thread:  # a browser test in the same process leaves a loop of events in this one
        answer = thread.submit(asyncio.run, getattr(app, name)(request, client)).result()
    assert answer == {"id": "a", "error": BAD_REQUEST}
