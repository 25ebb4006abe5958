"""A ten-minute video: frames decoded a second, features of one frame a second, and memory over the time.

    python benchmarks/features/long_video.py [--minutes 10] [--height 384] [--width 512] [--drawn 1500]
        [--format mp4] [--backbone vit_tiny_patch16] [--image-size 224] [--seeks 200] [--json]

A synthetic endoscopy video (a moving polyp, 25 frames a second) is written as MP4 (MPEG-4 part 2) or AVI (Motion
JPEG). `--drawn` frames are drawn; a longer video repeats them. Then it is

1. decoded from the first frame to the last;
2. scanned with one frame a second (``dinomed scan --videos --fps 1``, without the search for near-duplicates, since
   the drawn frames repeat);
3. read by the rows of the manifest through the loader of features, in the order of the manifest and at random;
4. the source of features, by a backbone with random weights.

Speeds are the median of ten equal parts of each step, with the smallest and the largest. Memory is the resident memory
of the program and of all its decoding processes together, sampled each half second: the medians of the second tenth,
the middle and the last tenth of the samples of a step, since the first tenth includes the start of processes.
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import dinomed
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.variants import build_vit
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.synthetic.endoscopy import draw_endoscopy
from dinomed.features.compute import compute_features
from dinomed.features.loading import load_batches, load_images, stack_pixels
from dinomed.isolation.pool import shared_pool
from dinomed.log import set_level
from dinomed.video.video import Video

FPS, PARTS, INTERVAL_S = 25, 10, 0.5
CODECS = {"mp4": "mp4v", "avi": "MJPG"}


def write_long_video(path: Path, count: int, size: tuple[int, int], drawn: int) -> None:
    """Write a video of `count` frames, of which the first `drawn` are drawn and then repeated."""
    codec = CODECS[path.suffix[1:]]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), FPS, size[::-1])
    scene = draw_endoscopy(min(drawn, count), size, faults=False)
    frames = [cv2.imencode(".png", frame.pixels[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1] for frame in scene]
    for number in range(count):
        writer.write(cv2.imdecode(frames[number % len(frames)], cv2.IMREAD_COLOR))
    writer.release()


def resident_mb() -> float:
    """Return the resident memory of the program and of its decoding processes, MB."""
    total = 0.0
    for pid in [os.getpid(), *(process.process.pid for process in list(shared_pool()._all))]:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:  # it has ended
            continue
        total += sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))
    return total


@contextmanager
def sampling_memory(report: dict[str, Any]) -> Iterator[None]:
    """Add the memory at the start, in the middle and at the end of the block to a report, MB."""
    samples, done = [resident_mb()], threading.Event()

    def sample() -> None:
        while not done.wait(INTERVAL_S):
            samples.append(resident_mb())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        tenths = np.array_split(np.array(samples), min(PARTS, len(samples)))
        places = {"start": tenths[min(1, len(tenths) - 1)], "middle": tenths[len(tenths) // 2], "end": tenths[-1]}
        report["memory_mb"] = {name: round(float(np.median(values))) for name, values in places.items()}


def time_parts(counts: Iterable[int], total: int) -> dict[str, float]:
    """Consume numbers of frames, `total` in all; return the frames a second of ten parts."""
    speeds, done, before, began = list[float](), 0, 0, time.perf_counter()
    for count in counts:
        done += count
        if done >= round(total * (len(speeds) + 1) / PARTS):
            now = time.perf_counter()
            speeds.append((done - before) / (now - began))
            before, began = done, now
    return {"fps": statistics.median(speeds), "fps_min": min(speeds), "fps_max": max(speeds)}


def feature_batches(backbone: FrozenBackbone, manifest: Manifest) -> Iterator[int]:
    """Compute the features of all rows in batches; yield the size of each batch."""
    for loaded in load_batches(manifest, backbone.preprocessing):
        compute_features(backbone, stack_pixels(loaded), (-1,), patches=False)
        yield len(loaded)


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the video and return the report of all steps."""
    count = round(arguments.minutes * 60 * FPS)
    path = folder / f"long.{arguments.format}"
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # so that the drawn frames are in no measured memory
        pool.submit(write_long_video, path, count, (arguments.height, arguments.width), arguments.drawn).result()
    report: dict[str, Any] = {"frames": count, "bytes": path.stat().st_size, "load": os.getloadavg()[0]}
    report["in_order"] = step = {}
    video = Video(path)
    with sampling_memory(step):
        step |= time_parts((1 for _ in video.stream()), count)
    report["scan"] = step = {}
    began = time.perf_counter()
    with sampling_memory(step):
        manifest = dinomed.scan(folder, out=folder.parent / "frames.parquet", videos=True, fps=1, duplicate_bits=-1)
    step |= {"rows": len(manifest), "seconds": time.perf_counter() - began}
    preprocessing = Preprocessing(image_size=arguments.image_size)
    order = np.random.default_rng(0).permutation(len(manifest))[: arguments.seeks].tolist()
    for name, rows in (("rows_in_order", manifest), ("rows_at_random", manifest.take(order))):
        report[name] = step = {}
        with sampling_memory(step):
            step |= time_parts((1 for _ in load_images(rows, preprocessing)), len(rows))
    backbone = FrozenBackbone(
        build_vit(arguments.backbone, image_size=arguments.image_size), preprocessing, arguments.backbone
    )
    report["features"] = step = {}
    began = time.perf_counter()
    with sampling_memory(step):
        step |= time_parts(feature_batches(backbone, manifest), len(manifest))
    return report | {"features": step | {"seconds": time.perf_counter() - began}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--height", type=int, default=384)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--drawn", type=int, default=1500, help="drawn frames, which a longer video repeats")
    parser.add_argument("--format", choices=sorted(CODECS), default="mp4")
    parser.add_argument("--backbone", default="vit_tiny_patch16")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--seeks", type=int, default=200, help="rows that are read at random")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    arguments = parser.parse_args()
    set_level("warning")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "videos"
        folder.mkdir()
        report = measure(folder, arguments)
    if arguments.json:
        print(json.dumps(report))
        return
    for name, values in report.items():
        if isinstance(values, dict):
            memory = values.pop("memory_mb")
            numbers = ", ".join(f"{key} {value:.1f}" for key, value in values.items())
            print(f"{name:15} {numbers}, memory in MB {memory['start']}, {memory['middle']}, {memory['end']}")
        else:
            print(f"{name:15} {values:.6g}")


if __name__ == "__main__":
    main()
