"""Video streams in DICOM files: the frames of the plain file, and one line for what does not fit."""

import runpy
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import MPEG2MPHL, MPEG2MPML, MPEG4HP41, MPEG4HP41F

import dinomed
from dinomed.apps.api.data.datasets import scan_with_report
from dinomed.apps.demos.parts import read_picture
from dinomed.datasets.open import open_dataset
from dinomed.images.decode import UnreadableImage
from dinomed.images.dicom.codecs import holds_video_stream
from dinomed.images.read import read_header, read_image
from dinomed.isolation.images import read_image_isolated
from dinomed.isolation.pool import DecodingPool
from dinomed.video.facts import is_video
from dinomed.video.video import Video

HERE = Path(__file__).parent
write_dicom_video = runpy.run_path(str(HERE / "cine.py"))["write_dicom_video"]
tools = runpy.run_path(str(HERE / "numbered.py"))
write_numbered, number_in, FRAMES = (tools[name] for name in ("write_numbered", "number_in", "FRAMES"))
SIZE = (tools["HEIGHT"], tools["WIDTH"])
SYNTAXES = {"mpg": MPEG2MPML, "ts": MPEG2MPHL, "m2v": MPEG2MPML, "mp4": MPEG4HP41}


def plain(folder: Path, suffix: str) -> Path:
    path = folder / f"plain.{suffix}"
    codec = "mp4v" if suffix == "mp4" else "mpg2"
    if not write_numbered(path, codec):
        pytest.skip(f"this build of OpenCV does not encode {codec}")
    return path


def wrapped(path: Path, stream: Path, **elements: Any) -> Path:
    syntax = SYNTAXES[stream.suffix[1:]]
    return write_dicom_video(path, [stream.read_bytes()], syntax, SIZE, **{"frames": FRAMES} | elements)


@pytest.mark.parametrize("suffix", SYNTAXES)
def test_frames_are_those_of_the_plain_file(tmp_path: Path, suffix: str) -> None:
    stream = plain(tmp_path, suffix)
    path = wrapped(tmp_path / "a, b: é.dcm", stream)
    video = Video(path)
    pixels = [frame.pixels for frame in video.stream()]
    assert [number_in(frame) for frame in pixels] == list(range(FRAMES))
    assert (video.facts.frames, video.facts.problem, video.facts.note, video.facts.fps) == (FRAMES, None, None, 25)
    if suffix != "m2v":
        expected = Video(stream)
        frames = list(expected.stream())
        assert all(np.array_equal(a, b.pixels) for a, b in zip(pixels, frames, strict=True))
        assert video.read(50).time_s == frames[50].time_s
    for number in (70, 3, 89, 0):
        assert np.array_equal(video.read(number).pixels, pixels[number])
    assert read_header(path).frames == FRAMES
    assert np.array_equal(read_image(path), pixels[0])
    assert np.array_equal(read_image(path / "frame_000052"), pixels[52])
    assert np.array_equal(read_image_isolated(path, frame=7), pixels[7])


@pytest.mark.parametrize("here", ["", "1"])
def test_threads_read_streams_in_decoding_processes_or_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: str
) -> None:
    monkeypatch.setenv("DINOMED_DECODE_HERE", here)
    pool, sources = DecodingPool(), OrderedDict[Any, Any]()
    monkeypatch.setattr("dinomed.video.video.shared_pool", lambda: pool)
    monkeypatch.setattr("dinomed.video.decoding._sources", sources)
    stream = plain(tmp_path, "mp4")
    paths = [wrapped(tmp_path / f"{name}.dcm", stream) for name in "abcd"]
    asked = [(path, frame) for frame in (3, 60, 10, 85) for path in paths]
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(lambda each: number_in(read_image(each[0], frame=each[1])), asked))
    pool.close()
    assert read == [frame for _, frame in asked]
    assert len(sources) == (4 if here else 0)


def test_fragments_are_one_stream(tmp_path: Path) -> None:
    stream = plain(tmp_path, "mp4")
    content = stream.read_bytes()
    cuts = [0, len(content) // 3 // 2 * 2, len(content) // 3 * 2 // 2 * 2, len(content)]  # fragments are of even length
    fragments = [content[a:b] for a, b in pairwise(cuts)]
    path = write_dicom_video(tmp_path / "a.dcm", fragments, MPEG4HP41F, SIZE, FRAMES)
    frames = zip(Video(path).stream(), Video(stream).stream(), strict=True)
    assert all(np.array_equal(a.pixels, b.pixels) and a.time_s == b.time_s for a, b in frames)
    renamed = path.rename(tmp_path / "a|b.dcm")
    with pytest.raises(UnreadableImage, match=r"path holds the sign \|; rename it"):
        Video(renamed)
    path = write_dicom_video(tmp_path / "many.dcm", [content], MPEG4HP41F, SIZE, FRAMES)
    whole, item, end = path.read_bytes(), b"\xfe\xff\x00\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0"
    assert whole.endswith(end)
    path.write_bytes(whole.removesuffix(end) + item * 63 + end)
    assert Video(path).facts.frames == FRAMES
    path.write_bytes(whole.removesuffix(end) + item * 64 + end)
    with pytest.raises(UnreadableImage, match="more than 64 fragments"):
        Video(path)


def test_a_stream_without_times_has_those_of_the_header(tmp_path: Path) -> None:
    stream = plain(tmp_path, "m2v")
    video = Video(wrapped(tmp_path / "a.dcm", stream, FrameTime=100))
    assert (video.facts.fps, video.facts.note) == (10, None)
    assert [frame.time_s for frame in video.stream(30)] == pytest.approx([0, 3, 6])
    assert video.read(40).time_s == pytest.approx(4)
    steps = [0, *range(10, 10 * FRAMES, 10)]
    uneven = Video(wrapped(tmp_path / "b.dcm", stream, FrameTime=None, FrameTimeVector=steps))
    assert uneven.read(3).time_s == pytest.approx(0.06)
    assert not uneven.facts.constant_rate
    assert uneven.facts.fps == pytest.approx((FRAMES - 1) * 1000 / sum(steps))
    unknown = Video(wrapped(tmp_path / "e.dcm", stream, NumberOfFrames=None, FrameTime=100))
    assert (unknown.facts.fps, unknown.read(40).time_s) == (10, pytest.approx(4))
    few = Video(wrapped(tmp_path / "c.dcm", stream, frames=40, FrameTime=100))
    assert few.read(80).time_s == pytest.approx(8)
    contained = Video(wrapped(tmp_path / "d.dcm", plain(tmp_path, "mp4"), FrameTime=100))
    assert contained.read(25).time_s == pytest.approx(1)  # the times of the stream


@pytest.mark.parametrize("frames", [1, 60, 200])
def test_a_wrong_number_of_frames_is_told_and_changes_no_frame(tmp_path: Path, frames: int) -> None:
    path = wrapped(tmp_path / "a.dcm", plain(tmp_path, "mp4"), frames=frames)
    video = Video(path)
    assert is_video(path)
    assert [number_in(frame.pixels) for frame in video.stream()] == list(range(FRAMES))
    unit = "frame" if frames == 1 else "frames"
    assert video.facts.problem == f"its DICOM header states {frames} {unit}, and its video has {FRAMES}"


def test_a_header_without_a_number_of_frames_is_no_problem(tmp_path: Path) -> None:
    facts = Video(wrapped(tmp_path / "a.dcm", plain(tmp_path, "mp4"), NumberOfFrames=None)).facts
    assert (facts.frames, facts.announced, facts.problem) == (FRAMES, None, None)


def test_an_mpeg_2_stream_after_a_zero_is_no_h264(tmp_path: Path) -> None:
    stream = b"\0" + plain(tmp_path, "m2v").read_bytes()
    path = write_dicom_video(tmp_path / "a.dcm", [stream], MPEG2MPML, SIZE, FRAMES)
    video = Video(path)
    assert (video.facts.container, number_in(video.read(7).pixels)) == ("MPEG", 7)


def test_of_a_truncated_stream_the_frames_before_the_cut_are_kept(tmp_path: Path) -> None:
    path = wrapped(tmp_path / "a.dcm", plain(tmp_path, "ts"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    video = Video(path)
    numbers = [number_in(frame.pixels) for frame in video.stream()]
    assert FRAMES / 3 < len(numbers) < FRAMES
    assert numbers == list(range(len(numbers)))
    assert video.facts.problem is not None
    assert video.facts.problem.startswith("the DICOM file is cut off in its video")
    path = wrapped(tmp_path / "b.dcm", plain(tmp_path, "mp4"))  # its index is at the end
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    with pytest.raises(UnreadableImage, match="no video can be read in it: damaged, cut off before its index"):
        Video(path)


@pytest.mark.parametrize(
    ("fragments", "elements", "reason"),
    [
        ([b"some text, which is no video"], {}, "its video stream is not one that is read"),
        ([b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n"], {}, "its video stream is not one that is read"),
        ([], {}, "video stream is empty"),
        (None, {"Rows": 480}, "declares 160x480 px, its video has 160x96"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, fragments: list[bytes] | None, elements: dict[str, Any], reason: str
) -> None:
    if fragments is None:
        fragments = [plain(tmp_path, "mp4").read_bytes()]
    path = write_dicom_video(tmp_path / "a.dcm", fragments, MPEG4HP41, SIZE, FRAMES, **elements)
    for read in (Video, read_image, read_image_isolated):
        with pytest.raises(UnreadableImage, match=reason) as refused:
            read(path)
        assert "\n" not in str(refused.value)
        assert "Planted" not in str(refused.value)


def test_pixels_that_are_not_encapsulated_are_refused(tmp_path: Path) -> None:
    path = wrapped(tmp_path / "a.dcm", plain(tmp_path, "mpg"))
    start = path.read_bytes()[:-1]
    place = start.rindex(b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff") + 8
    path.write_bytes(start[:place] + (1000).to_bytes(4, "little") + start[place + 4 :])
    with pytest.raises(UnreadableImage, match="pixels are not encapsulated"):
        Video(path)
    assert holds_video_stream(path)


def test_a_folder_of_images_has_the_first_frame_and_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wrapped(tmp_path / "a.dcm", plain(tmp_path, "mp4"), frames=1)
    (tmp_path / "plain.mp4").unlink()
    (note,) = (line for line in scan_with_report(tmp_path, out=tmp_path / "m.csv").notes if "several frames" in line)
    assert note.startswith("1 file with several frames or pages; the first is used")
    open_dataset(tmp_path)
    assert any("with several frames: 1; the first frame of each is used" in line for line in caplog.messages)


def test_the_demo_counts_the_frames_of_the_stream(tmp_path: Path) -> None:
    path = str(wrapped(tmp_path / "image", plain(tmp_path, "mp4"), frames=60))
    for number in (0, 70):
        picture, reason = read_picture(path, None, number)
        assert picture is not None, reason
        assert (picture.frames, number_in(picture.shown), picture.has_values) == (FRAMES, number, False)
        assert picture.seconds == pytest.approx(number / 25)
        assert picture.problem == f"its DICOM header states 60 frames, and its video has {FRAMES}"


def test_frames_of_a_scan_have_their_patient_as_group(tmp_path: Path) -> None:
    folder, stream = tmp_path / "in", plain(tmp_path, "mp4")
    folder.mkdir()
    wrapped(folder / "a.dcm", stream)
    wrapped(folder / "b.dcm", stream, frames=FRAMES - 1)
    rule = {"fps": 1, "duplicate_bits": -1, "min_sharpness": 0, "min_tissue": 0, "min_luminance": 0}
    result = scan_with_report(folder, out=tmp_path / "m.csv", videos=True, **rule)
    manifest = result.manifest
    assert result.multi_frame == 0
    assert not any("several frames" in line for line in result.notes)
    assert result.warnings == ["b.dcm: its DICOM header states 89 frames, and its video has 90"]
    assert manifest.column("video") == ["a.dcm"] * 4 + ["b.dcm"] * 4
    assert manifest.column("frame") == ["0", "25", "50", "75"] * 2
    assert len(set(manifest.column("group"))) == 1
    assert "P1" not in (tmp_path / "m.csv").read_text()
    assert np.array_equal(read_image(manifest.path(2)), Video(stream).read(50).pixels)
    written = dinomed.frames(folder / "a.dcm", tmp_path / "frames", **rule)
    assert len(written.manifest) == 4
