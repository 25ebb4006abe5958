"""Videos: which containers and codecs are read exactly, frames a second, and memory.

    python benchmarks/features/video.py [--minutes 10] [--height 480] [--width 640] [--json]

First table: a video of 120 frames that show their number is written in each container and codec that this build of
OpenCV can encode, and some of these streams in DICOM files; all frames are read in order, and 24 in random order.
Second table: a synthetic endoscopy video of `--minutes` at 25 frames a second is decoded in order, and 100 of its
frames in random order. Memory is the highest of the decoding process and of the program after a quarter and at the end
of the stream.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG2MPML, MPEG4HP41, UID, VideoEndoscopicImageStorage, generate_uid

from dinomed.datasets.synthetic.endoscopy import draw_endoscopy
from dinomed.images.decode import UnreadableImage
from dinomed.isolation.pool import shared_pool
from dinomed.video.video import Video

DICOM_STREAMS = [
    ("mpg", "mpg2", MPEG2MPML), ("ts", "mpg2", MPEG2MPML), ("m2v", "mpg2", MPEG2MPML), ("mp4", "mp4v", MPEG4HP41),
]  # fmt: skip
CODECS = [
    ("mp4", "mp4v"), ("mov", "mp4v"), ("mov", "MJPG"), ("avi", "MJPG"), ("avi", "XVID"), ("avi", "FFV1"),
    ("mkv", "MJPG"), ("mkv", "VP80"), ("mkv", "FFV1"), ("webm", "VP90"), ("mp4", "vp09"), ("mpg", "PIM1"),
    ("mpg", "mpg2"), ("ts", "mpg2"), ("mp4", "avc1"), ("mp4", "hev1"), ("mp4", "av01"),
]  # fmt: skip
FRAMES, HEIGHT, WIDTH, CELL = 120, 96, 160, 20
LONG_CODECS = [("mp4", "mp4v"), ("avi", "MJPG")]
LOOP = 250  # drawn frames, which the long video repeats


def draw_number(number: int) -> np.ndarray:
    frame = np.full((HEIGHT, WIDTH, 3), 70, np.uint8)
    for bit in range(WIDTH // CELL):
        frame[:CELL, bit * CELL : (bit + 1) * CELL] = 255 if number >> bit & 1 else 0
    return frame


def read_number(pixels: np.ndarray) -> int:
    cells = pixels[4 : CELL - 4].mean((0, 2)).reshape(-1, CELL)[:, 4:-4].mean(1)
    return sum(1 << bit for bit, value in enumerate(cells) if value > 127)


def open_writer(path: Path, codec: str, size: tuple[int, int]) -> Any:
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), 25, size[::-1])
    return writer if writer.isOpened() else None


def wrap_in_dicom(stream: Path, syntax: UID) -> Path:
    """Write a video as the pixels of a DICOM file of an endoscope."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = VideoEndoscopicImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.Rows, data.Columns, data.NumberOfFrames, data.FrameTime = HEIGHT, WIDTH, FRAMES, 40
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "YBR_PARTIAL_420", 0
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    content = stream.read_bytes()
    data.PixelData = encapsulate([content + bytes(len(content) % 2)])
    data["PixelData"].VR = "OB"
    path = stream.with_suffix(".dcm")
    data.save_as(path, enforce_file_format=True)
    return path


def try_codec(folder: Path, suffix: str, codec: str, syntax: UID | None = None) -> str:
    """Return what happened to the numbered frames of a container and codec, in a DICOM file if it has a `syntax`."""
    path = folder / f"{codec}.{suffix}"
    writer = open_writer(path, codec, (HEIGHT, WIDTH))
    if writer is None:
        return "not tried (OpenCV cannot encode it)"
    for number in range(FRAMES):
        writer.write(draw_number(number))
    writer.release()
    try:
        video = Video(path if syntax is None else wrap_in_dicom(path, syntax))
        in_order = [read_number(frame.pixels) for frame in video.stream()] == list(range(FRAMES))
        numbers = np.random.default_rng(0).permutation(FRAMES)[:24].tolist()
        at_random = [read_number(video.read(number).pixels) for number in numbers] == numbers
    except UnreadableImage as error:
        return f"refused: {error.reason}"
    way = "by index" if video.facts.indexed else "by counting"
    return f"exact, {way}" if in_order and at_random else "WRONG FRAMES"


def highest_memory() -> tuple[float, float]:
    """Return the highest memory of the program and of its decoding processes, MB."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    others = [0.0]
    for process in shared_pool()._all:
        lines = Path(f"/proc/{process.process.pid}/status").read_text().splitlines()
        others += [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")]
    return own, max(others)


def measure(path: Path, frames: int) -> dict[str, float]:
    """Decode a long video in order and at random places."""
    start = time.perf_counter()
    video = Video(path)
    opened = time.perf_counter() - start
    quarter = (0.0, 0.0)
    start = time.perf_counter()
    for frame in video.stream():
        if frame.number == frames // 4:
            quarter = highest_memory()
    in_order = frames / (time.perf_counter() - start)
    end = highest_memory()
    numbers = np.random.default_rng(0).integers(0, frames, 100).tolist()
    start = time.perf_counter()
    for number in numbers:
        video.read(number)
    at_random = len(numbers) / (time.perf_counter() - start)
    return {
        "frames": video.facts.frames or 0, "open_s": opened, "in_order_fps": in_order, "at_random_fps": at_random,
        "decoder_mb_quarter": quarter[1], "decoder_mb_end": end[1], "program_mb_quarter": quarter[0],
        "program_mb_end": end[0],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"codecs": {}, "speed": {}}
    size, count = (arguments.height, arguments.width), round(arguments.minutes * 60 * 25)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for suffix, codec in CODECS:
            report["codecs"][f"{suffix} {codec}"] = try_codec(folder, suffix, codec)
        for suffix, codec, syntax in DICOM_STREAMS:
            report["codecs"][f"DICOM {suffix} {codec}"] = try_codec(folder, suffix, codec, syntax)
        drawn = [frame.pixels[..., ::-1].copy() for frame in draw_endoscopy(min(LOOP, count), size, faults=False)]
        for suffix, codec in LONG_CODECS:
            path = folder / f"long.{suffix}"
            writer = open_writer(path, codec, size)
            for number in range(count):
                writer.write(drawn[number % len(drawn)])
            writer.release()
            report["speed"][f"{suffix} {codec}"] = measure(path, count)
    if arguments.json:
        print(json.dumps(report))
        return
    for name, text in report["codecs"].items():
        print(f"{name:18} {text}")
    for name, values in report["speed"].items():
        print(f"{name:12} " + ", ".join(f"{key} {value:.1f}" for key, value in values.items()))


if __name__ == "__main__":
    main()
