"""Time of a scan with decoding processes, compared with threads of the program itself.

    python benchmarks/reliability/scan_speed.py [--images 3000] [--rounds 5] [--workers 2] [--json]

The images are JPEG files of 200x150 px and of 1024x768 px (a twentieth as many). Both ways read the same facts: pixels,
header, size and SHA-256 of each file. They alternate in each round. The times with processes include their start.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = {"200x150": (150, 200, 1), "1024x768": (768, 1024, 20)}
CODE = """
import sys, time
from pathlib import Path
from dinomed.datasets.scan.facts import read_all
folder, workers = Path(sys.argv[1]), int(sys.argv[2])
images = sorted(path.name for path in folder.iterdir())
start = time.perf_counter()
facts, unreadable = read_all(folder, images, {}, workers)
assert len(facts) == len(images) and not unreadable
print(time.perf_counter() - start)
"""


def write_images(folder: Path, height: int, width: int, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{index:05d}.jpg")


def seconds(folder: Path, workers: int, here: bool) -> float:
    """Read the folder in a new program, with threads (`here`) or with processes."""
    environment = os.environ | {"DINOMED_DECODE_HERE": "1" if here else "0"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(folder), str(workers)], env=environment, check=True, capture_output=True,
        text=True,
    )  # fmt: skip
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print the times as JSON")
    arguments = parser.parse_args()
    report: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as place:
        for name, (height, width, fewer) in SIZES.items():
            folder = Path(place) / name
            write_images(folder, height, width, max(arguments.images // fewer, 1))
            report[name] = {"threads": [], "processes": []}
            for _ in range(arguments.rounds):
                report[name]["threads"].append(seconds(folder, arguments.workers, here=True))
                report[name]["processes"].append(seconds(folder, arguments.workers, here=False))
    if arguments.json:
        print(json.dumps(report))
        return
    for name, times in report.items():
        ratios = [slow / fast for slow, fast in zip(times["processes"], times["threads"], strict=True)]
        print(
            f"{name}: threads {statistics.median(times['threads']):.2f} s, processes "
            f"{statistics.median(times['processes']):.2f} s, ratio {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
