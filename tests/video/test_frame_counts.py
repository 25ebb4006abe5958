"""DICOM files whose header states more frames than the file holds: the frames that are there, and one line."""

import io
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit

from dinomed.images.decode import MAX_PIXELS
from dinomed.images.dicom.elements import count_held_frames, read_elements
from dinomed.images.dicom.frame_times import locate_frame
from dinomed.video.video import Video

cine, numbered = (runpy.run_path(str(Path(__file__).parent / name)) for name in ("cine.py", "numbered.py"))
write_dicom, write_dicom_video = cine["write_dicom"], cine["write_dicom_video"]
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 24, 32), np.uint8)


def jpeg(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def saved(path: Path, syntax: str, **elements: Any) -> Path:
    """Write three frames in a transfer syntax."""
    data = dcmread(write_dicom(path, FRAMES))
    if syntax == JPEGBaseline8Bit:
        data.PixelData = encapsulate([jpeg(frame) for frame in FRAMES])
        data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = syntax
    for name, value in elements.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("stated", [4, 1_000, 2_000_000_000])
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", JPEGBaseline8Bit])
def test_a_file_has_the_frames_that_it_holds(tmp_path: Path, syntax: str, stated: int) -> None:
    path = saved(tmp_path / "a.dcm", syntax, NumberOfFrames=stated, FrameTime=40)
    video = Video(path)
    assert [frame.number for frame in video.stream()] == [0, 1, 2]
    assert (video.facts.frames, video.facts.announced, video.lost) == (3, stated, [])
    assert video.facts.problem == f"its DICOM header states {stated:,} frames, and the file holds at most 3"
    assert Video(saved(path, syntax, NumberOfFrames=3)).facts.problem is None


def test_one_bit_and_deflated_frames_are_counted_by_their_bits(tmp_path: Path) -> None:
    bits = np.packbits(np.ones(5 * 7 * 9, np.uint8), bitorder="little").tobytes()
    path = write_dicom(
        tmp_path / "a.dcm", FRAMES, Rows=7, Columns=5, NumberOfFrames=9, BitsAllocated=1, BitsStored=1, HighBit=0,
        PixelData=bits,
    )  # fmt: skip
    assert count_held_frames(path, read_elements(path, MAX_PIXELS)) >= 9
    path = saved(tmp_path / "b.dcm", DeflatedExplicitVRLittleEndian)
    assert Video(path).facts.problem is None
    colours = FRAMES.tobytes()[: 24 * 32 * 2]  # 4:2:2: two bytes a pixel
    path = write_dicom(
        tmp_path / "c.dcm", [np.stack([FRAMES[0]] * 3, -1)], PhotometricInterpretation="YBR_FULL_422", PixelData=colours
    )
    assert count_held_frames(path, read_elements(path, MAX_PIXELS)) == 1


def test_a_cut_file_keeps_the_times_of_its_frames(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.dcm", "1.2.840.10008.1.2.1", FrameTimeVector=[0, 10, 30])
    path.write_bytes(path.read_bytes()[:-100])
    video = Video(path)
    assert [frame.time_s for frame in video.stream()] == [0, 0.01]
    assert video.facts.problem == "its DICOM header states 3 frames, and the file holds at most 2"


def test_a_stream_is_read_whatever_number_its_header_states(tmp_path: Path) -> None:
    plain = tmp_path / "plain.mp4"
    if not numbered["write_numbered"](plain, "mp4v"):
        pytest.skip("this build of OpenCV does not encode mp4v")
    size, frames = (numbered["HEIGHT"], numbered["WIDTH"]), 2_000_000_000
    path = write_dicom_video(tmp_path / "a.dcm", [plain.read_bytes()], "1.2.840.10008.1.2.4.102", size, frames)
    assert Video(path).facts.frames == numbered["FRAMES"]
    assert locate_frame(path, 50) == (frames, pytest.approx(2))
