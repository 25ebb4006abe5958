"""Time saved by the feature cache: fitting a segmenter on cached features, compared with features computed in each
epoch.

    python benchmarks/heads/heads.py [--head linear --head dpt] [--channels 32] [--epochs 10] [--images 48] [--rounds 3]
        [--json]

Synthetic lesions, a ViT with random weights, float32, the same batches in the same order. "kept" includes computing,
writing and reading the features, and all epochs; "recomputed" includes reading the images and the forward pass of the
backbone in every epoch. Neither includes the features of val, or masks. Each round runs both, and ratios are of the
same round. On a CPU, seconds are processor seconds over all threads, so that other load on the machine affects both
equally. DPT has 32 channels by default: with the 256 of the paper a CPU spends nearly all the time in the head.
"""

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import interpolate

from dinomed.adapters.fitting.build import build_adapter, gather
from dinomed.adapters.fitting.data import Splits
from dinomed.adapters.fitting.feature_sources.cached import CachedFeatureSource
from dinomed.adapters.fitting.feature_sources.live import LiveFeatureSource
from dinomed.adapters.fitting.feature_sources.source import FeatureSource, TrainingBatch
from dinomed.adapters.fitting.loop import run_epochs
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.adapters.tasks.segment.fit import prepare_masks
from dinomed.adapters.tasks.segment.losses import build_loss
from dinomed.adapters.tasks.segment.masks import Masks, dice_of_logits
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.variants import build_vit
from dinomed.config import build_config
from dinomed.datasets.scan.scan import scan
from dinomed.datasets.synthetic.lesions import write_lesions
from dinomed.features.extract import extract
from dinomed.log import set_level


class Fit:
    """A fit with or without the cache; everything that both share is computed before."""

    def __init__(self, head: str, backbone: FrozenBackbone, folder: Path, epochs: int, channels: int) -> None:
        fit = {"epochs": epochs, "patience": epochs, "min_steps": 0, "batch_size": 16}
        settings = {"name": head} | ({"channels": channels} if head == "dpt" else {})
        self.config = build_config(SegmentConfig, {"head": settings, "fit": fit}, "benchmark")
        self.backbone, self.folder = backbone, folder
        manifest = scan(folder / "lesions", labels="labels.csv", group="lesion_id").manifest
        self.schema, splits = prepare_masks(manifest, self.config)
        self.splits: Splits = splits
        self.size = backbone.preprocessing.image_size
        self.masks, self.val_masks = (
            Masks(part, backbone.preprocessing, name, self.schema)
            for part, name in ((splits.train, "train"), (splits.val, "val"))
        )
        adapter = build_adapter(self.config, backbone, 1)
        needs = adapter.feature_spec
        self.val = extract(backbone, splits.val, cache=folder / "val", blocks=needs.blocks, patches=True)
        extract(backbone, splits.train, cache=folder / "val", blocks=needs.blocks)  # pooled, for `LiveFeatureSource`

    def run(self, way: str) -> tuple[float, float]:
        """Return the seconds and the best Dice on val."""
        clock = time.process_time if self.backbone.device.type == "cpu" else time.perf_counter
        adapter = build_adapter(self.config, self.backbone, 1).to(self.backbone.device)
        loss = build_loss(self.config.loss, self.schema.exclusive, self.config.tversky_alpha)
        stretch = partial(interpolate, size=(self.size, self.size), mode="bilinear")
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            began = clock()
            features = self._feed(way, adapter, Path(scratch))

            def batch_loss(batch: TrainingBatch) -> torch.Tensor:
                return loss(stretch(adapter(batch.features)), batch.targets)

            def validate() -> tuple[float, dict[str, float]]:
                rows = list(range(len(self.splits.val)))
                targets = self.val_masks.take(rows).to(self.backbone.device)
                mean = dice_of_logits(stretch(adapter(features.val(rows))), targets, self.schema).mean().item()
                return mean, {"val_dice": mean}

            best = run_epochs(
                adapter, self.config.fit, count=len(self.splits.train), batches=features.train, batch_loss=batch_loss,
                validate=validate, seed=0, folder=Path(scratch), key="", description=way,
            )  # fmt: skip
            return clock() - began, best.score

    def _feed(self, way: str, adapter: Any, scratch: Path) -> FeatureSource:
        if way == "recomputed":
            cache = self.folder / "val"
            return LiveFeatureSource(self.backbone, self.splits, adapter, self.config, cache, self.masks.take)
        blocks, device = adapter.feature_spec.blocks, self.backbone.device
        train = extract(self.backbone, self.splits.train, cache=scratch, blocks=blocks, patches=True)
        gathers = (partial(gather, train, device=device), partial(gather, self.val, device=device))
        return CachedFeatureSource(gathers, (train.cls, train.mean), self.masks.take)


def measure(fit: Fit, rounds: int) -> dict[str, Any]:
    ways = ("kept", "recomputed")
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    scores: dict[str, float] = {}
    for turn in range(rounds):
        for way in ways if turn % 2 else ways[::-1]:
            spent, scores[way] = fit.run(way)
            seconds[way].append(spent)
    ratios = [slow / fast for slow, fast in zip(seconds["recomputed"], seconds["kept"], strict=True)]
    return {
        "seconds": {way: statistics.median(values) for way, values in seconds.items()},
        "times_faster": statistics.median(ratios),
        "min": min(ratios),
        "max": max(ratios),
        "val_dice": scores,
        "train_images": len(fit.splits.train),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", action="append", help="[linear, dpt]")
    parser.add_argument("--backbone", default="vit_tiny_patch8")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--images", type=int, default=48, help="lesions; about 70%% of them are train")
    parser.add_argument("--channels", type=int, default=32, help="channels of DPT")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    set_level("warning")
    torch.manual_seed(0)
    reading = Preprocessing(image_size=arguments.image_size)
    backbone = FrozenBackbone(
        build_vit(arguments.backbone, image_size=arguments.image_size), reading, arguments.backbone
    )
    backbone.to(torch.device(arguments.device))
    with tempfile.TemporaryDirectory() as place:
        write_lesions(Path(place) / "lesions", count=arguments.images, broken=0)
        results = {
            head: measure(Fit(head, backbone, Path(place), arguments.epochs, arguments.channels), arguments.rounds)
            for head in arguments.head or ("linear", "dpt")
        }
    if arguments.json:
        print(json.dumps({"threads": torch.get_num_threads(), "device": arguments.device, "results": results}))
        return
    for head, row in results.items():
        print(head, row)


if __name__ == "__main__":
    main()
