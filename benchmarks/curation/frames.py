"""Near-duplicate frames of videos by the hash alone and with the descriptor: frames kept, errors, and frames a second.

    python benchmarks/curation/frames.py [--images FOLDER] [--frames 375] [--height 240] [--width 320] [--seeds 0 1]
        [--minutes 0] [--json]

1. Scenes: a camera turns by up to 4 degrees, moves by up to 5% of the short side, zooms by 3% and changes its
   brightness by 6% before each of 20 still images, 15 views of each. Without `--images` the stills are synthetic
   endoscopy. `wrong` counts frames that were dropped as near-duplicates of another still.
2. Endoscopy: a synthetic video of a moving polyp, one for each seed. `polyps` counts frames with a polyp (at least
   0.25% of the frame) that were dropped as near-duplicates of a frame without one.
3. With `--minutes`: frames a second of a long video, every frame and one frame a second, decoded only, with all rules
   and the hash, and with all rules, the hash and the descriptor. 250 drawn frames are repeated.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dinomed.datasets.open import open_dataset
from dinomed.datasets.synthetic.endoscopy import draw_endoscopy
from dinomed.images.read import read_image
from dinomed.pretrain.curation.frames.config import FrameConfig
from dinomed.pretrain.curation.frames.selection import judge_frames
from dinomed.video.video import Video
from dinomed.video.write import writing_video

RULES = {"hash": 1.0, "hash and descriptor": FrameConfig().duplicate_cosine}
STILLS, VIEWS, LOOP = 20, 15, 250
PREFIX = "near-duplicate of frame "


def read_stills(folder: Path | None, size: tuple[int, int]) -> list[np.ndarray]:
    """Return still images of `size` (H, W), evenly spaced in a folder, or synthetic ones."""
    if folder is None:
        return [next(draw_endoscopy(1, size, seed, faults=False)).pixels for seed in range(STILLS)]
    manifest = open_dataset(folder, allow_unreadable=True)
    rows = np.linspace(0, len(manifest) - 1, STILLS).astype(int)
    return [np.asarray(cv2.resize(read_image(manifest.path(row)), size[::-1], interpolation=cv2.INTER_AREA))
            for row in rows.tolist()]  # fmt: skip


def draw_views(still: np.ndarray, rng: np.random.Generator) -> Iterable[np.ndarray]:
    """Draw what a camera sees that moves before a still image at random."""
    height, width = still.shape[:2]
    pose = np.zeros(5)
    for _ in range(VIEWS):
        pose = np.clip(pose + rng.normal(0, 0.3, 5), -1, 1)
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), 4 * pose[0], 1.15 + 0.03 * pose[1])
        matrix[:, 2] += 0.05 * pose[2:4] * min(height, width)
        view = cv2.warpAffine(still, matrix, (width, height), flags=cv2.INTER_AREA)
        noisy = view * (1 + 0.06 * pose[4]) + rng.normal(0, 3, view.shape)
        yield np.clip(noisy, 0, 255).astype(np.uint8)


def write_video(path: Path, frames: Iterable[np.ndarray], size: tuple[int, int]) -> Path:
    with writing_video(path, size, 25) as append:
        for frame in frames:
            append(frame)
    return path


def select(path: Path, cosine: float, fps: float = 0) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the numbers of the kept frames, and pairs of a near-duplicate and its kept frame."""
    config = FrameConfig(fps=fps, duplicate_cosine=cosine, min_tissue=0, min_sharpness=0, min_luminance=0)
    kept, pairs = list[int](), list[tuple[int, int]]()
    for judged in judge_frames(Video(path), config):
        number = judged.frame.number
        if judged.reason is None:
            kept.append(number)
        elif judged.reason.startswith(PREFIX):
            pairs.append((number, int(judged.reason.removeprefix(PREFIX))))
    return kept, pairs


def compare_scenes(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    size, rng = (arguments.height, arguments.width), np.random.default_rng(0)
    stills = read_stills(arguments.images, size)
    path = write_video(folder / "scenes.avi", (view for still in stills for view in draw_views(still, rng)), size)
    rows = {}
    for name, cosine in RULES.items():
        kept, pairs = select(path, cosine)
        wrong = sum(number // VIEWS != same // VIEWS for number, same in pairs)
        shown = len({number // VIEWS for number in kept})
        rows[name] = {"frames": STILLS * VIEWS, "kept": len(kept), "stills_kept": shown, "wrong": wrong}
    return rows


def compare_endoscopy(folder: Path, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    size = (arguments.height, arguments.width)
    drawn = list(draw_endoscopy(arguments.frames, size, seed, faults=False))
    path = write_video(folder / f"{seed}.avi", (frame.pixels for frame in drawn), size)
    areas = [frame.mask.mean() for frame in drawn]
    rows = {}
    for name, cosine in RULES.items():
        kept, pairs = select(path, cosine)
        lost = sum(areas[number] >= 0.0025 and areas[same] == 0 for number, same in pairs)
        rows[name] = {"frames": len(drawn), "kept": len(kept), "polyps": lost}
    return rows


def measure_speed(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the frames of the video a second, by the rate of the selection and by what is done with the frames."""
    size, count = (arguments.height, arguments.width), round(arguments.minutes * 60 * 25)
    drawn = [frame.pixels for frame in draw_endoscopy(LOOP, size, faults=False)]
    path = write_video(folder / "long.avi", (drawn[number % LOOP] for number in range(count)), size)

    def timed(work: Any) -> float:
        began = time.perf_counter()
        work()
        return count / (time.perf_counter() - began)

    rows = {}
    for name, fps in (("every frame", 0), ("one a second", 1)):
        step = 1 if fps == 0 else 25
        rows[name] = {"decoded only": timed(lambda step=step: sum(1 for _ in Video(path).stream(step)))}
        for rule, cosine in RULES.items():
            rows[name][rule] = timed(lambda cosine=cosine, fps=fps: select(path, cosine, fps))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder or manifest of still images")
    parser.add_argument("--frames", type=int, default=375)
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--minutes", type=float, default=0, help="length of the video whose speed is measured")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        report = {"scenes": compare_scenes(Path(place), arguments)}
        for seed in arguments.seeds:
            report[f"endoscopy, seed {seed}"] = compare_endoscopy(Path(place), seed, arguments)
        if arguments.minutes:
            report["frames a second"] = measure_speed(Path(place), arguments)
    if arguments.json:
        print(json.dumps(report))
        return
    for name, rows in report.items():
        for rule, values in rows.items():
            print(f"{name}, {rule}: " + ", ".join(f"{key} {value:.5g}" for key, value in values.items()))


if __name__ == "__main__":
    main()
