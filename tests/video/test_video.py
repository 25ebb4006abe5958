"""Videos: each frame is the one of its number, also in files whose header or index is wrong."""

import runpy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dinomed.images.decode import UnreadableImage
from dinomed.images.dicom import pixels
from dinomed.images.read import read_image
from dinomed.video import capture_source, decoding
from dinomed.video.capture_source import CaptureSource
from dinomed.video.dicom_source import DicomSource
from dinomed.video.facts import VideoFrame, container_of, is_video
from dinomed.video.packets import read_packets
from dinomed.video.source import DecodingPaused
from dinomed.video.video import Video
from dinomed.video.write import writing_video

tools = runpy.run_path(str(Path(__file__).with_name("numbered.py")))
write_dicom = runpy.run_path(str(Path(__file__).with_name("cine.py")))["write_dicom"]
numbered, number_in, write_numbered, FRAMES, FPS = (
    tools[name] for name in ("numbered", "number_in", "write_numbered", "FRAMES", "FPS")
)
MIXED = [70, 3, 89, 0, 71, 52, 2, 88]  # forwards and backwards, near and far


def written(folder: Path, codec: str, suffix: str) -> Path:
    path = folder / f"video.{suffix}"
    if not write_numbered(path, codec):
        pytest.skip(f"this build of OpenCV does not encode {codec}")
    return path


def check_numbers(path: Path) -> Video:
    """Check that stream and read give the frames by their numbers; return the video, whose frames are counted."""
    video = Video(path)
    assert [(frame.number, number_in(frame.pixels)) for frame in video.stream()] == [(k, k) for k in range(FRAMES)]
    assert video.facts.frames == FRAMES
    assert not video.lost
    for number in MIXED:
        frame = video.read(number)
        assert (frame.number, number_in(frame.pixels)) == (number, number)
    assert [number_in(frame.pixels) for frame in video.stream(18)] == [0, 18, 36, 54, 72]
    return video


@pytest.mark.parametrize(
    ("codec", "suffix", "indexed"),
    [("mp4v", "mp4", True), ("mp4v", "mov", True), ("MJPG", "avi", True), ("XVID", "avi", True), ("VP80", "mkv", True),
     ("mpg2", "mpg", False), ("mpg2", "ts", True)],
)  # fmt: skip
def test_every_container_gives_the_frame_of_a_number(tmp_path: Path, codec: str, suffix: str, indexed: bool) -> None:
    video = check_numbers(written(tmp_path, codec, suffix))
    assert video.facts.indexed == indexed
    assert video.facts.fps == FPS
    assert video.read(50).time_s == pytest.approx(2.0, abs=1e-3)  # time stamps have whole milliseconds or less
    assert video.facts.problem is None


def test_frames_of_a_variable_rate_have_their_numbers_and_times(tmp_path: Path) -> None:
    path = written(tmp_path, "mp4v", "mp4")
    path.write_bytes(tools["set_mp4_durations"](path.read_bytes(), [(30, 256), (10, 2048), (30, 128), (20, 512)]))
    video = check_numbers(path)
    ticks = 12800  # a second, as OpenCV writes
    assert video.read(40).time_s == pytest.approx((30 * 256 + 10 * 2048) / ticks, abs=1e-3)
    assert video.read(41).time_s - video.read(40).time_s == pytest.approx(0.01, abs=1e-3)


def test_a_rate_far_from_the_time_stamps_is_their_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = CaptureSource._read_facts
    stated = lambda source, container: replace(read(source, container), fps=1000.0)
    monkeypatch.setattr(CaptureSource, "_read_facts", stated)
    assert CaptureSource(str(written(tmp_path, "VP80", "mkv"))).facts.fps == pytest.approx(FPS, rel=1e-3)


def test_frames_without_time_stamps_of_their_own_are_counted(tmp_path: Path) -> None:
    path = written(tmp_path, "mp4v", "mp4")
    path.write_bytes(tools["set_mp4_durations"](path.read_bytes(), [(45, 512), (45, 0)]))
    assert not check_numbers(path).facts.indexed


@pytest.mark.parametrize("announced", [1, 10, 100_000])
def test_a_header_with_a_wrong_number_of_frames_changes_no_frame(tmp_path: Path, announced: int) -> None:
    path = written(tmp_path, "XVID", "avi")
    path.write_bytes(tools["set_avi_count"](path.read_bytes(), announced))
    problem = check_numbers(path).facts.problem
    assert problem is not None
    assert f"announces {announced:,} frame" in problem


def test_an_index_that_names_wrong_places_changes_no_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "MJPG", "avi")
    path.write_bytes(tools["shift_avi_index"](path.read_bytes(), 10))
    check_numbers(path)
    assert shown_at_random(path) == MIXED
    monkeypatch.setattr(capture_source, "seeks_truly", lambda *_: True)
    assert shown_at_random(path) != MIXED  # without the check the index is believed


def shown_at_random(path: Path) -> list[int]:
    """The numbers that the frames `MIXED` show."""
    source = CaptureSource(str(path))
    frames = [source.advance(number) for number in MIXED]
    source.close()
    return [number_in(frame.pixels) for frame in frames if frame is not None]


@pytest.mark.parametrize(("codec", "suffix"), [("MJPG", "avi"), ("VP80", "mkv")])
def test_of_a_truncated_video_the_frames_before_the_cut_are_kept(tmp_path: Path, codec: str, suffix: str) -> None:
    path = written(tmp_path, codec, suffix)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    video = Video(path)
    numbers = [number_in(frame.pixels) for frame in video.stream()]
    assert numbers == list(range(len(numbers)))
    assert FRAMES / 3 < len(numbers) < FRAMES
    assert video.facts.problem is not None
    assert "cut off or damaged" in video.facts.problem
    assert f"{FRAMES} frames" in video.facts.problem


def test_damage_in_the_middle_loses_frames_up_to_the_next_key_frame_only(tmp_path: Path) -> None:
    path = written(tmp_path, "mp4v", "mp4")
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    place = (start + content.index(b"moov")) // 2
    content[place : place + 600] = bytes(600)
    path.write_bytes(content)
    video = Video(path)
    numbers = [frame.number for frame in video.stream()]
    assert numbers[-1] == FRAMES - 1
    assert sorted(numbers + [number for number, _ in video.lost]) == list(range(FRAMES))
    assert 0 < len(video.lost) < FRAMES / 2
    with pytest.raises(UnreadableImage, match="cannot be decoded"):
        video.read(video.lost[0][0])


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "no video can be read in it"), (b"", "not a video"), (b"some text", "not a video"),
     (b"#EXTM3U\n#EXTINF:1,\nother.mp4\n", "not a video")],
    ids=["cut before its index", "empty", "text", "playlist"],
)  # fmt: skip
def test_what_is_no_video_is_refused_in_one_line(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "a.mp4"
    if content is None:
        path = written(tmp_path, "mp4v", "mp4")
        content = path.read_bytes()[:1500]
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=reason) as refused:
        Video(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("codec", "suffix"), [("MJPG", "avi"), ("mpg2", "mpg")])  # with and without an index
def test_a_frame_beyond_the_end_is_refused_with_the_number_of_frames(tmp_path: Path, codec: str, suffix: str) -> None:
    video = Video(written(tmp_path, codec, suffix))
    with pytest.raises(UnreadableImage, match="has no frame -1"):
        video.read(-1)
    with pytest.raises(UnreadableImage, match=f"has no frame {FRAMES}: it has {FRAMES} frames"):
        video.read(FRAMES)


def test_frames_before_an_error_are_kept_and_the_reason_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "MJPG", "avi")
    source = CaptureSource(str(path))
    advance = source.advance

    def advance_to_20(target: int, pause: Callable[[], bool]) -> VideoFrame | None:
        if target >= 20:
            raise UnreadableImage(path, "too large")
        return advance(target, pause)

    monkeypatch.setattr(source, "advance", advance_to_20)
    monkeypatch.setattr(decoding, "_source", lambda _: source)
    video = Video(path)
    monkeypatch.setattr(video, "_run", lambda name, *arguments: getattr(decoding, name)(str(path), *arguments))
    frames = video.stream()
    assert [next(frames).number for _ in range(20)] == list(range(20))
    with pytest.raises(UnreadableImage, match="too large; its frames from 20 on are missing"):
        next(frames)
    assert video.lost == [(20, "too large")]


def test_a_written_video_is_complete_or_absent_and_its_masks_are_exact(tmp_path: Path) -> None:
    masks = [np.random.default_rng(k).random((4, 5)).repeat(12, 0).repeat(13, 1) > 0.5 for k in range(8)]
    with writing_video(tmp_path / "mask.avi", (48, 65), 12.5) as append:
        for mask in masks:
            append(mask.astype(np.uint8) * 255)
    video = Video(tmp_path / "mask.avi")
    assert video.facts.fps == 12.5
    for frame, mask in zip(video.stream(), masks, strict=True):
        assert np.array_equal(frame.pixels[:, :65, 0] > 127, mask)  # one column is added to an odd width

    def fail() -> None:
        with writing_video(tmp_path / "other.avi", (48, 64), 25) as append:
            append(np.zeros((48, 64), np.uint8))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["mask.avi"]


def test_a_dicom_file_of_several_frames_is_a_video_with_exact_pixels(tmp_path: Path) -> None:
    frames = np.stack([numbered(k) for k in range(6)])
    path = write_dicom(tmp_path / "cine", frames, FrameTime=50)
    video = Video(path)
    assert is_video(path)
    assert (video.facts.container, video.facts.frames, video.facts.fps) == ("DICOM", 6, 20)
    assert all(np.array_equal(frame.pixels, frames[frame.number]) for frame in video.stream())
    assert np.array_equal(video.read(4).pixels, frames[4])
    assert video.read(4).time_s == pytest.approx(0.2)
    steps = [0, 10, 20, 30, 40, 50]
    assert Video(write_dicom(tmp_path / "steps", frames, FrameTimeVector=steps)).read(3).time_s == pytest.approx(0.06)
    assert "no frame rate" in (Video(write_dicom(tmp_path / "none", frames)).facts.note or "")


def gray_dicom(path: Path, frames: np.ndarray) -> Path:
    gray = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 16}
    return write_dicom(path, frames, **gray, HighBit=15, PixelData=frames.astype("<u2").tobytes(), FrameTime=50)


def test_the_frames_of_a_dicom_file_have_one_range(tmp_path: Path) -> None:
    ramp = np.linspace(1000, 2000, 48, dtype=np.uint16).reshape(6, 8)
    frames = np.stack([ramp, ramp // 2, ramp, ramp * 2])
    path = gray_dicom(tmp_path / "cine", frames)
    shown = [frame.pixels for frame in Video(path).stream()]
    assert np.array_equal(shown[0], read_image(path))
    assert np.array_equal(shown[2], shown[0])
    assert (shown[1].max(), shown[3].min()) == (0, 255)
    for number in (3, 1):
        assert np.array_equal(Video(path).read(number).pixels, shown[number])
        assert np.array_equal(DicomSource(str(path)).advance(number).pixels, shown[number])


def test_a_black_first_frame_of_a_dicom_file_is_not_the_range_of_the_others(tmp_path: Path) -> None:
    ramp = np.linspace(1000, 2000, 48 * 64, dtype=np.uint16).reshape(48, 64)
    black = ramp * 0
    black[0, :8] = 4000  # text, on less than the part above the percentile
    expected = Video(gray_dicom(tmp_path / "good", np.stack([ramp, ramp]))).read(1)
    frames = list(Video(gray_dicom(tmp_path / "black", np.stack([black, ramp]))).stream())
    assert np.array_equal(frames[1].pixels, expected.pixels)


def test_with_a_black_first_frame_each_frame_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.linspace(1000, 2000, 48 * 64, dtype=np.uint16).reshape(48, 64)
    source = DicomSource(str(gray_dicom(tmp_path / "black", np.stack([ramp * 0, ramp, ramp]))))
    read: list[int] = []
    decode = pixels.DicomFrames._decode
    monkeypatch.setattr(
        pixels.DicomFrames, "_decode", lambda frames, number: read.append(number) or decode(frames, number)
    )
    for number in (1, 2, 1):
        assert source.advance(number) is not None
    assert read == [1, 0, 2, 1]


def test_a_paused_search_for_a_frame_that_is_not_damaged_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = DicomSource(str(write_dicom(tmp_path / "cine", np.stack([numbered(k) for k in range(6)]), FrameTime=50)))
    decode = pixels.DicomFrames.read

    def damaged_from_2_to_4(frames: pixels.DicomFrames, number: int) -> np.ndarray:
        if 2 <= number <= 4:
            raise UnreadableImage("cine", "damaged")
        return decode(frames, number)

    monkeypatch.setattr(pixels.DicomFrames, "read", damaged_from_2_to_4)
    for _ in range(2):  # one damaged frame a call
        with pytest.raises(DecodingPaused):
            source.advance(2, lambda: True)
    with pytest.raises(DecodingPaused):
        source.advance(2, lambda: True)
    assert source.advance(2, lambda: True).number == 5
    assert source.advance(1, lambda: True).number == 1


def test_a_dicom_file_is_parsed_once_and_its_rate_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Path] = []
    read = pixels.read_elements
    monkeypatch.setattr(pixels, "read_elements", lambda path, *rest: parsed.append(path) or read(path, *rest))
    frames = np.stack([numbered(k) for k in range(3)])
    source = DicomSource(str(write_dicom(tmp_path / "cine", frames, FrameTime=50)))
    assert [number_in(source.advance(number).pixels) for number in range(3)] == [0, 1, 2]
    assert len(parsed) == 1
    assert source.facts.constant_rate
    uneven = write_dicom(tmp_path / "steps", frames, FrameTimeVector=[0, 10, 20])
    assert not DicomSource(str(uneven)).facts.constant_rate


def test_a_call_ends_after_its_time_also_if_each_frame_is_found_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_dicom(tmp_path / "cine", np.stack([numbered(k) for k in range(6)]))
    monkeypatch.setattr(decoding, "decoding_limits", lambda: SimpleNamespace(cpu_s=-4))
    content, _ = decoding.read_frames(str(path), 0, 6, 1)
    assert ([number for number, _ in content["frames"]], content["next"]) == ([0], 1)


def test_images_are_no_videos(tmp_path: Path) -> None:
    for name, content in {"a.jpg": b"\xff\xd8\xff\xe0", "b.mp4": b"", "c.heic": b"\0\0\0\x18ftypheic"}.items():
        (tmp_path / name).write_bytes(content)
        assert container_of(tmp_path / name) is None
    assert not is_video(write_dicom(tmp_path / "still", numbered(0)[None]))


def test_a_video_is_read_as_a_whole_once_while_frames_of_several_are_read_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(tmp_path / f"{name}.avi") for name in "abc"]
    for path in paths:
        assert write_numbered(Path(path), "MJPG")
    indexed: list[str] = []
    monkeypatch.setattr(decoding, "_sources", OrderedDict())
    monkeypatch.setattr(capture_source, "read_packets", lambda path: indexed.append(path) or read_packets(path))
    for number in (80, 3, 60):
        for path in paths:
            content, pixels = decoding.read_frames(path, number, number + 1, 1)
            assert pixels is not None
            assert [number_in(pixels[0]), content["frames"][0][0]] == [number, number]
    assert indexed == paths
    assert [source._closed for source in decoding._sources.values()] == [True, False, False]


def test_a_removed_video_is_closed_when_another_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_sources", OrderedDict())
    first, second = tmp_path / "a.avi", tmp_path / "b.avi"
    for path in (first, second):
        assert write_numbered(path, "MJPG")
    decoding.read_facts(str(first))
    (source,) = decoding._sources.values()
    first.unlink()
    decoding.read_facts(str(second))
    assert source._closed
    assert [path for path, *_ in decoding._sources] == [str(second)]
