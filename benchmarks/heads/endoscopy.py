"""From synthetic endoscopy videos to a mask video: scan, train, predict, and Dice against the exact masks.

    python benchmarks/heads/endoscopy.py [-o FOLDER] [--videos 3] [--frames 50] [--height 72] [--width 96] [--fps 12.5]
        [--backbone PATH] [--image-size 96] [--head linear] [--set fit.epochs=30] [--seed 0] [--json]

The defaults take a minute or two on a CPU. `--set` replaces the default settings of the training, `FIT`.

Videos of a moving polyp are drawn with exact masks: they begin outside of the body and in the dark, and have a blurred
part. Then the commands of a user run one after another, and are printed:

1. ``dinomed scan VIDEOS --videos`` selects frames, which are annotated: their exact masks go into a table;
2. ``dinomed scan VIDEOS --videos --labels``: the frames with their masks are rows, split by video;
3. ``dinomed train segment``: a segmenter on a frozen backbone, by default a ViT-Ti/8 with random weights;
4. ``dinomed predict ADAPTER NEW_VIDEO``: the mask video of a new video, of another seed.

Each frame of the mask video is compared with the exact mask. Dice of a frame without a polyp is 1 if nothing is
predicted, else 0.
"""

import argparse
import csv
import json
import shlex
import shutil
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dinomed
from dinomed.backbones.load import save_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.variants import build_vit
from dinomed.datasets.synthetic.endoscopy import draw_endoscopy, write_endoscopy
from dinomed.log import set_level
from dinomed.video.video import Video

FIT = ("augment=none", "fit.epochs=30", "fit.min_steps=300", "head.blocks=[0,3,7,11]")


def annotate(videos: Path, masks: Path, frames: list[str]) -> Path:
    """Copy the exact masks of selected frames below `videos`, and write the table that names them.

    The last video is val, the others are train.

    Args:
        videos: folder of the videos.
        masks: folder of the masks of all frames.
        frames: cells `image` of the selected frames, such as ``SYN_0.avi/frame_000012``.
    """
    last = max(frame.split("/")[0] for frame in frames)
    with open(videos / "labels.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "mask", "split"])
        for frame in frames:
            video, name = frame.split("/")
            mask = f"masks/{Path(video).stem}/{name.removeprefix('frame_')}.png"
            (videos / mask).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(masks / mask.removeprefix("masks/"), videos / mask)
            table.writerow([frame, mask, "val" if video == last else "train"])
    return videos / "labels.csv"


def compare(mask_video: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare each frame of a mask video with the exact mask of the new video."""
    exact = draw_endoscopy(arguments.frames, (arguments.height, arguments.width), new_seed(arguments))
    dice: dict[str, list[float]] = defaultdict(list)
    shared = total = 0
    frames = list(Video(mask_video).stream())
    for written, drawn in zip(frames, exact, strict=True):
        predicted, mask = written.pixels[: arguments.height, : arguments.width, 0] > 127, drawn.mask > 0
        both, area = int((predicted & mask).sum()), int(predicted.sum() + mask.sum())
        shared, total = shared + both, total + area
        kind = drawn.kind if mask.any() else f"{drawn.kind}, no polyp"
        dice[kind].append(2 * both / area if area else 1.0)
    kinds = {kind: {"frames": len(values), "dice": float(np.mean(values))} for kind, values in sorted(dice.items())}
    return {"frames": len(frames), "dice_of_all_pixels": 2 * shared / total if total else 1.0, "by_kind": kinds}


def new_seed(arguments: argparse.Namespace) -> int:
    """Return the seed of the new video, which none of the others has."""
    return int(arguments.seed) + 1000


def run(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all commands in a folder; return the report."""
    size, videos, seconds = (arguments.height, arguments.width), folder / "videos", {}
    write_endoscopy(videos, arguments.videos, arguments.frames, size, arguments.seed)
    (videos / "masks").rename(folder / "exact")
    write_endoscopy(folder / "new", 1, arguments.frames, size, new_seed(arguments))
    backbone = arguments.backbone
    if backbone is None:
        torch.manual_seed(arguments.seed)
        backbone = folder / "backbone"
        preprocessing = Preprocessing(image_size=arguments.image_size)
        save_backbone(backbone, build_vit("vit_tiny_patch8", image_size=arguments.image_size), preprocessing)

    def timed(name: str, words: list[Any], function: Any, *values: Any, **options: Any) -> Any:
        print(f"$ dinomed {shlex.join(map(str, words))}", flush=True)
        began = time.perf_counter()
        result = function(*values, **options)
        seconds[name] = time.perf_counter() - began
        return result

    fps, frames = arguments.fps, folder / "frames.parquet"
    words, selected = ["scan", videos, "--videos", "--fps", fps], folder / "selected.parquet"
    chosen = timed("select", [*words, "-o", selected], dinomed.scan, videos, videos=True, fps=fps, out=selected)
    table = annotate(videos, folder / "exact", chosen.column("image"))
    words += ["--labels", table, "-o", frames]
    manifest = timed("scan", words, dinomed.scan, videos, table, videos=True, fps=fps, out=frames)
    assert len(manifest) == len(chosen), (len(manifest), len(chosen))
    settings = [f"image_size={arguments.image_size}", *(arguments.set or FIT)]
    words = ["train", "segment", "--backbone", backbone, "--data", frames, "-o", folder / "seg", "--head",
             arguments.head, *(word for setting in settings for word in ("--set", setting)),
             "--seed", arguments.seed]  # fmt: skip
    options = {"head": arguments.head, "settings": settings, "seed": arguments.seed}
    timed("train", words, dinomed.train, "segment", backbone, frames, folder / "seg", **options)
    words = ["predict", folder / "seg", folder / "new" / "SYN_0.avi", "-o", folder / "out"]
    done = timed("predict", words, dinomed.predict, folder / "seg", folder / "new" / "SYN_0.avi", folder / "out")
    (answer,) = done.answers
    comparison = compare(folder / "out" / answer["video"] / "mask.avi", arguments)
    return {"training_frames": len(manifest), "seconds": seconds, **comparison}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, help="new folder that is kept; by default a temporary one")
    parser.add_argument("--videos", type=int, default=3)
    parser.add_argument("--frames", type=int, default=50, help="frames of each video, 25 a second")
    parser.add_argument("--height", type=int, default=72)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--fps", type=float, default=12.5, help="frames a second that are annotated")
    parser.add_argument("--backbone", type=Path, help="run or weights; by default random weights")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--head", default="linear")
    parser.add_argument("--set", action="append", help="setting of the training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    arguments = parser.parse_args()
    set_level("warning")
    if arguments.out is not None:
        arguments.out.mkdir(parents=True)
        report = run(arguments.out, arguments)
    else:
        with tempfile.TemporaryDirectory() as place:
            report = run(Path(place), arguments)
    if arguments.json:
        print(json.dumps(report))
        return
    print(f"annotated frames: {report['training_frames']}; seconds: {report['seconds']}")
    print(f"Dice over all pixels of {report['frames']} frames: {report['dice_of_all_pixels']:.3f}")
    for kind, row in report["by_kind"].items():
        print(f"{kind}: {row['frames']} frames, mean Dice {row['dice']:.3f}")


if __name__ == "__main__":
    main()
