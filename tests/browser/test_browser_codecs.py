"""Videos that a browser records: codecs which OpenCV cannot encode."""

import base64
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import MPEG4HP41

from dinomed.images.decode import UnreadableImage
from dinomed.video.video import Video

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.long]
VIDEO_TESTS = Path(__file__).parents[1] / "video"
write_dicom_video = runpy.run_path(str(VIDEO_TESTS / "cine.py"))["write_dicom_video"]
number_in = runpy.run_path(str(VIDEO_TESTS / "numbered.py"))["number_in"]
FRAMES, SIZE = 40, (96, 160)
_DRAW = """
const canvas = new OffscreenCanvas(160, 96), pen = canvas.getContext('2d');
const draw = (pen, number) => {
    pen.fillStyle = '#464646'; pen.fillRect(0, 0, 160, 96);
    for (let bit = 0; bit < 8; bit++) {
        pen.fillStyle = number >> bit & 1 ? '#fff' : '#000'; pen.fillRect(bit * 20, 0, 20, 20);
    }
};
const text = bytes => { let all = ''; for (const byte of bytes) all += String.fromCharCode(byte); return btoa(all); };
"""
_RECORD = """async ([type, frames]) => {
    if (!MediaRecorder.isTypeSupported(type)) return '';
    DRAW
    const shown = document.createElement('canvas'); shown.width = 160; shown.height = 96;
    const stream = shown.captureStream(0), track = stream.getVideoTracks()[0], parts = [];
    const recorder = new MediaRecorder(stream, {mimeType: type, videoBitsPerSecond: 2e6});
    recorder.ondataavailable = event => parts.push(event.data);
    const done = new Promise(resolve => recorder.onstop = resolve);
    recorder.start();
    for (let number = 0; number < frames; number++) {
        draw(shown.getContext('2d'), number); track.requestFrame();
        await new Promise(resolve => setTimeout(resolve, 40));
    }
    recorder.stop(); await done;
    return text(new Uint8Array(await new Blob(parts).arrayBuffer()));
}""".replace("DRAW", _DRAW)
_ENCODE = """async frames => {
    DRAW
    const chunks = [], options = {codec: 'avc1.42E01E', width: 160, height: 96, bitrate: 2e6, avc: {format: 'annexb'}};
    if (!(await VideoEncoder.isConfigSupported(options)).supported) return '';
    const output = chunk => {
        const part = new Uint8Array(chunk.byteLength); chunk.copyTo(part); chunks.push(...part);
    };
    const encoder = new VideoEncoder({output, error: console.error});
    encoder.configure(options);
    for (let number = 0; number < frames; number++) {
        draw(pen, number);
        const frame = new VideoFrame(canvas, {timestamp: number * 40000});
        encoder.encode(frame, {keyFrame: number % 10 == 0}); frame.close();
    }
    await encoder.flush();
    return text(chunks);
}""".replace("DRAW", _DRAW)


@pytest.fixture(scope="module")
def page(browser: Any) -> Any:
    """An empty page of a secure origin, as video encoders need it."""
    page = browser.new_page()
    page.route("http://localhost/**", lambda route: route.fulfill(content_type="text/html", body="<p>"))
    page.goto("http://localhost/")
    yield page
    page.close()


def saved(path: Path, content: str) -> Path:
    if not content:
        pytest.skip("this Chromium does not encode it")
    path.write_bytes(base64.b64decode(content))
    return path


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        ("mp4", "video/mp4;codecs=avc1.42E01E"), ("mkv", "video/x-matroska;codecs=avc1"),
        ("mp4", "video/mp4;codecs=vp9"), ("webm", "video/webm;codecs=vp9"),
    ],
)  # fmt: skip
def test_recorded_frames_are_those_of_their_numbers(page: Any, tmp_path: Path, suffix: str, kind: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", page.evaluate(_RECORD, [kind, FRAMES]))
    video = Video(path)
    frames = list(video.stream())
    numbers = [number_in(frame.pixels) for frame in frames]
    assert numbers == sorted(numbers)  # a recorder may leave frames out
    assert len(set(numbers)) > FRAMES / 2
    assert video.facts.problem is None
    assert all(np.array_equal(video.read(k).pixels, frames[k].pixels) for k in (len(frames) - 1, 3, len(frames) // 2))
    assert video.facts.fps == pytest.approx((len(frames) - 1) / frames[-1].time_s, rel=0.1)
    if "avc1" in kind:
        inside = Video(write_dicom_video(tmp_path / "a.dcm", [path.read_bytes()], MPEG4HP41, SIZE, len(frames)))
        assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(inside.stream(), frames, strict=True))
        assert (inside.facts.codec, inside.facts.problem) == ("h264", None)


@pytest.mark.parametrize(
    ("suffix", "kind"), [("mp4", "video/mp4;codecs=av01.0.04M.08"), ("webm", "video/webm;codecs=av1")]
)
def test_av1_is_refused_with_its_name(page: Any, tmp_path: Path, suffix: str, kind: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", page.evaluate(_RECORD, [kind, FRAMES]))
    with pytest.raises(UnreadableImage, match="its codec is AV1, for which OpenCV has no decoder on this machine"):
        Video(path)


def test_an_elementary_stream_of_h264_in_a_dicom_file_has_the_times_of_the_header(page: Any, tmp_path: Path) -> None:
    stream = saved(tmp_path / "a.h264", page.evaluate(_ENCODE, FRAMES)).read_bytes()
    video = Video(write_dicom_video(tmp_path / "a.dcm", [stream], MPEG4HP41, SIZE, FRAMES, FrameTime=50))
    assert [(frame.number, number_in(frame.pixels)) for frame in video.stream()] == [(k, k) for k in range(FRAMES)]
    assert (video.facts.container, video.facts.fps, video.facts.problem) == ("H.264", 20, None)
    assert (number_in(video.read(31).pixels), video.read(31).time_s) == (31, pytest.approx(1.55))
