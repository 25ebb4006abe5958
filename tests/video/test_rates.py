"""Videos whose header states no rate, as browsers record WebM, and those without a decoder."""

import random
import runpy
from pathlib import Path

import pytest

from dinomed.images.decode import UnreadableImage
from dinomed.video.video import Video

tools = runpy.run_path(str(Path(__file__).with_name("numbered.py")))
number_in, FRAMES, FPS = (tools[name] for name in ("number_in", "FRAMES", "FPS"))


def without_rate(path: Path, shifts_ms: list[int]) -> Path:
    if not tools["write_numbered"](path, "VP80"):
        pytest.skip("this build of OpenCV does not encode VP8")
    path.write_bytes(tools["drop_matroska_rate"](path.read_bytes(), shifts_ms))
    return path


def shifts() -> list[int]:
    """Shifts of the times of the frames by less than a quarter of a step, ms; first and last are in their places."""
    numbers = random.Random(0)
    return [0, *(numbers.randint(-9, 9) for _ in range(FRAMES - 2)), 0]


def test_the_rate_of_a_recorded_webm_is_that_of_its_frames(tmp_path: Path) -> None:
    video = Video(without_rate(tmp_path / "a.webm", shifts()))
    facts = video.facts
    assert (facts.frames, facts.announced, facts.indexed, facts.note) == (FRAMES, None, True, None)
    assert facts.fps == pytest.approx(FPS)  # FFmpeg states 1,000
    assert facts.constant_rate
    for number in (70, 3, 89, 60):
        assert number_in(video.read(number).pixels) == number


def test_a_variable_rate_of_a_recorded_webm_is_the_mean(tmp_path: Path) -> None:
    facts = Video(without_rate(tmp_path / "a.webm", [0] * 60 + [1000] * 30)).facts
    assert facts.fps == pytest.approx((FRAMES - 1) / ((FRAMES - 1) / FPS + 1))
    assert not facts.constant_rate


def test_without_an_index_the_rate_is_assumed_until_all_frames_are_decoded(tmp_path: Path) -> None:
    moved = [10 * number + shift for number, shift in enumerate(shifts())]  # 20 frames a second
    moved[50], moved[51] = 520, 480  # the same time
    video = Video(without_rate(tmp_path / "a.webm", moved))
    assert (video.facts.indexed, video.facts.fps) == (False, 25)
    assert video.facts.note == "states no frame rate; 25 frames a second are assumed"
    assert video.count_frames() == FRAMES
    assert (video.facts.fps, video.facts.note) == (pytest.approx(20), None)


def test_a_codec_without_a_decoder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    if not tools["write_numbered"](path, "mp4v"):
        pytest.skip("this build of OpenCV does not encode MPEG-4")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"mp4v", b"av01").replace(b"esds", b"free"))
    with pytest.raises(UnreadableImage, match="no frame can be decoded: its codec is AV1, for which OpenCV has no"):
        Video(path)
