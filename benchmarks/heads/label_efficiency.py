"""Label efficiency: every head on a frozen backbone beside a network from scratch, by the number of labelled images.

    python benchmarks/heads/label_efficiency.py runs/derm.parquet -b runs/ssl --other dx_type=follow_up \\
        --set augment=dermoscopy -o runs/label_efficiency
    python benchmarks/heads/label_efficiency.py runs/polyps.parquet -b runs/ssl --other centre=C1 \\
        --set augment=endoscopy -o runs/label_efficiency
    python benchmarks/heads/label_efficiency.py runs/derm.parquet -b runs/ssl --other dx_type=follow_up \\
        --task classify -o runs/label_efficiency

Each run fits one head on n labelled images and tests it on images of the same source and of another one: the rows of
``--other COLUMN=VALUE``, which are never used for training, or the test split of ``--other-data MANIFEST``. The images
are drawn by group; a draw of 10 images is part of the draw of 25. A fifth of the n images are the validation split of a
head; where these are few, a segmenter is then trained again on all n (``fit.refit``). The network from scratch (masks:
U-Net of SMP with a resnet18; classes: resnet18) is trained on all n, with its last weights and the threshold 0.5.
Everyone gets the same images and

- ``--seconds``: the same processor seconds, with the features and their augmented copies included; or
- ``--free``: as long as it wants: a head its default length, the U-Net ``--steps`` steps of 8.

A backbone may have been pretrained on the train split of the manifest, so without labels on some images of the other
source. Those of val and test are reported a second time by themselves.

HAM10000 holds images of one device that only took follow-up pictures in Vienna (``dx_type=follow_up``); they stand for
another source where no other masks are at hand. ``dinomed scan --keep dx_type`` keeps the column.

One JSON line is written for each finished run, to ``results.jsonl`` in the output folder, and ``results.md``,
``index.html`` and the curves (``DATA_TASK_LENGTH_SOURCE.svg``) are written again from it. The same command continues
after an interruption. The order is: number of images (as in ``--counts``), length, draw, head. Each run ends by itself,
so ``--minutes`` only stops before the next.

Time: a run costs its ``--seconds``, 10 to 20 s of reading, choosing and starting, and 5 to 20 s for 100 + 100 test
images. On one core that others also used, with a ViT of 128 x 6 and patches of 8, an image took 0.12 s through the
backbone at 192 px and a step of DeepLabV3+ 1 to 2 s; at 128 px (``--set image_size=128``) both take less than half. In
30 s a linear head is trained, a decoder is not: give 120 s. Five heads, three draws and one number of images are then
about 35 minutes. Classes take a few seconds a head.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from label_efficiency_report import write_report

from dinomed.adapters.catalogue import BUILT_IN
from dinomed.adapters.evaluation.draws import draw_images
from dinomed.adapters.fit import fit_head
from dinomed.adapters.fitting.build import at_image_size, build_adapter, default_image_size
from dinomed.adapters.fitting.config import TrainConfig, adapter_class
from dinomed.adapters.fitting.data import Splits
from dinomed.adapters.fitting.feature_sources.choose import MAX_CHEAP_COPIES, MIN_COPIES, open_feature_source
from dinomed.adapters.heads.auto import AUTO
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.task import find_task
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.config import load_config
from dinomed.datasets.manifest import Manifest, read_manifest
from dinomed.errors import DinomedError, UsageError
from dinomed.features.compute import compute_features
from dinomed.io.files import to_json, write_text
from dinomed.log import logger

SCRATCH = {"segment": "U-Net from scratch", "classify": "ResNet-18 from scratch"}
CONFIGS: dict[str, type[TrainConfig]] = {"segment": SegmentConfig, "classify": ClassifyConfig}
COUNTS, COPIES_SHARE = ("25", "200", "10", "50", "100", "all"), 0.4
Row = dict[str, Any]
Planned = tuple[str, str, int, float | None]
"""A run: head, number of images, draw, and seconds (None: as long as it wants)."""


@dataclass(frozen=True)
class Sources:
    """Images to draw from, and the test images of the same source and of another one."""

    pool: Manifest
    same: Manifest
    other: Manifest

    def test(self, score: Callable[[Manifest, str], Row]) -> dict[str, Row]:
        """Return the scores of the images of each source; "unseen": those of the other one in val or test, if the
        others may have been in pretraining."""
        tests = {"same": score(self.same, "same"), "other": score(self.other, "other")}
        unseen = [split in ("val", "test") for split in self.other.column("split")]  # pretraining takes the others
        if any(unseen) and not all(unseen):
            tests["unseen"] = {name: list(compress(cells, unseen)) for name, cells in tests["other"].items()}
        return tests


def split_sources(manifest: Manifest, other: str | None, other_data: Manifest | None, most: int) -> Sources:
    """Return the sources of a manifest; `other` is ``COLUMN=VALUE``. Groups of a test split are not in the pool."""
    here = list(range(len(manifest)))
    if other_data is not None:
        elsewhere = other_data.select(split="test")
    elif other is not None:
        column, _, value = other.partition("=")
        matches = [str(cell) == value for cell in manifest.column(column)]
        if not any(matches) or all(matches):
            raise UsageError(f"--other {other}: {sum(matches)} of {len(matches)} images; give a value that splits them")
        elsewhere = manifest.take([i for i in here if matches[i]])
        here = [i for i in here if not matches[i]]
    else:
        raise UsageError("give --other COLUMN=VALUE or --other-data MANIFEST: images of another source to test on")
    near, groups, splits = manifest.take(here), set(elsewhere.units()), manifest.column("split")
    test = [place for place, i in enumerate(here) if splits[i] == "test" and near.units()[place] not in groups]
    groups |= {near.units()[place] for place in test}
    pool = [place for place, unit in enumerate(near.units()) if unit not in groups]
    return Sources(near.take(pool), some(near.take(test), most), some(elsewhere, most))


def some(manifest: Manifest, most: int) -> Manifest:
    """Return at most `most` images, one of each group first."""
    order = np.random.default_rng(0).permutation(len(manifest)).tolist()
    units = manifest.units()
    first = dict.fromkeys({units[row]: row for row in order}.values())
    return manifest.take(sorted([*first, *(row for row in order if row not in first)][:most]))


@dataclass(frozen=True)
class Bench:
    """Everything that the runs share."""

    task: str
    sources: Sources
    backbone: FrozenBackbone
    place: str
    settings: Sequence[str]
    steps: int
    unet_size: int
    encoder: Path | None
    out: Path

    def fit(self, head: str, images: Manifest, seconds: float | None, draw_seed: int) -> Row:
        """Fit a head or the network from scratch, and test it on both sources."""
        if head == SCRATCH[self.task]:
            return self._fit_scratch(images, seconds, draw_seed)
        return self._fit_head(head, images, seconds, draw_seed)

    def _fit_head(self, head: str, images: Manifest, seconds: float | None, seed: int) -> Row:
        name, _, detail = head.partition("+")
        config = load_config(CONFIGS[self.task], None, [*self.settings, f"head.name={name}", f"seed={seed}"]
                             + (["head.detail=true"] if detail == "detail" else []))  # fmt: skip
        splits = Splits(images.select(split="train"), images.select(split="val"), made=False)
        with tempfile.TemporaryDirectory(dir=self.out) as folder:
            cache, spent = Path(folder) / "cache", 0.0
            if seconds is not None and self.task == "segment":
                config, spent = self._within(config, splits, seconds, cache)
            began = time.process_time()
            result = fit_head(self.backbone, images, Path(folder) / "adapter", config, cache=cache)
            trained = time.process_time() - began
            predictor = load_adapter(result.folder, backbone=self.place)
            tests = self.sources.test(lambda rows, source: score(self.task, predictor, rows, source))
            learned = sum(parameter.numel() for parameter in predictor.adapter.parameters())
        return {"spent": {"features": spent, "fit": trained}, "parameters": learned, "copies": config.augment_copies,
                "epoch": result.epoch} | tests  # fmt: skip

    def _within(self, config: TrainConfig, splits: Splits, seconds: float, cache: Path) -> tuple[TrainConfig, float]:
        """Compute the features of a head whose fit may take `seconds` in all; return its config and the seconds spent.

        The number of copies is what `COPIES_SHARE` of the time allows.
        """
        began = time.process_time()
        size = config.image_size or default_image_size(self.backbone, adapter_class("segment", config.head.name).grid)
        backbone = at_image_size(self.backbone, size, config.aspect)
        adapter = build_adapter(config, backbone, 1)
        compute_features(backbone, torch.zeros(8, backbone.preprocessing.channels, size, size), (-1,), True)
        each = (time.process_time() - began) / 8
        copies = int(COPIES_SHARE * seconds / (each * len(splits.train)))
        copies = min(max(copies, MIN_COPIES), MAX_CHEAP_COPIES) if config.augment.active else None
        config = config.model_copy(update={"augment_copies": copies})
        open_feature_source(backbone, splits, adapter, config, cache, lambda rows: torch.zeros(len(rows)))
        spent = time.process_time() - began
        fit = config.fit.model_copy(update={"seconds": max(seconds - spent, 2.0), "epochs": 20, "patience": 20})
        return config.model_copy(update={"fit": fit}), spent

    def _fit_scratch(self, images: Manifest, seconds: float | None, seed: int) -> Row:
        import label_efficiency_scratch as scratch

        began = time.process_time()
        fit = scratch.fit_unet_peer if self.task == "segment" else scratch.fit_resnet
        network, steps = fit(images, self.unet_size, seed, seconds=seconds, steps=self.steps, encoder=self.encoder)
        trained = time.process_time() - began
        measure = scratch.score_unet if self.task == "segment" else scratch.score_resnet
        tests = self.sources.test(lambda rows, _: measure(network, rows, self.unet_size))
        learned = sum(parameter.numel() for parameter in network.parameters())
        return {
            "spent": {"features": 0.0, "fit": trained},
            "parameters": learned,
            "copies": None,
            "steps": steps,
        } | tests


def score(task: str, predictor: Any, manifest: Manifest, split: str) -> Row:
    """Return the metric of each test image (masks: Dice), or the probabilities and targets (classes), with groups."""
    from label_efficiency_scratch import dice_of, scores_of_classes

    if task == "classify":
        evaluated = find_task(task).evaluate(predictor, manifest, split)
        return scores_of_classes(evaluated.targets, evaluated.probabilities, evaluated.names, manifest.units())

    maps = predictor.manifest_maps(manifest)
    values = [dice_of(manifest, row, predictor.decide(probabilities)[0]) for row, probabilities in enumerate(maps)]
    return {"values": values, "groups": manifest.units()}


def run_all(bench: Bench, plan: Sequence[Planned], data: str, minutes: float | None) -> None:
    """Do the planned runs that are missing in ``results.jsonl``."""
    path = bench.out / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    done = {json.loads(line)["key"] for line in lines}
    began = time.monotonic()
    label = "label" if bench.task == "classify" else None
    for head, count, seed, seconds in plan:
        made_of = [data, bench.sources.pool.fingerprint, bench.task, head, count, seed, seconds, list(bench.settings),
                   bench.backbone.fingerprint, bench.steps, bench.unet_size]  # fmt: skip
        key = to_json(made_of)
        if key in done:
            continue
        if minutes is not None and time.monotonic() - began > 60 * minutes:
            logger.info(f"{minutes:g} minutes are over; the same command continues")
            break
        number = None if count == "all" else int(count)
        if number is not None and number > len(bench.sources.pool):
            continue
        images = draw_images(bench.sources.pool, number, seed, label)
        logger.info(f"{data}: {head}, {len(images)} images, draw {seed}, {seconds or 'any number of'} seconds")
        row: Row = {"key": key, "data": data, "task": bench.task, "head": head, "count": count, "draw": seed,
                    "seconds": seconds, "images": len(images)}  # fmt: skip
        try:
            row |= bench.fit(head, images, seconds, seed)
        except (DinomedError, UsageError) as error:
            logger.warning(f"{head} with {len(images)} images failed: {error}")
            row |= {"failed": str(error)}
        lines.append(to_json(row))
        write_text(path, "\n".join(lines) + "\n")
        write_report([json.loads(line) for line in lines], bench.out)


def build_plan(options: argparse.Namespace, heads: Sequence[str]) -> list[Planned]:
    """Return the runs in their order."""
    lengths: list[float | None] = [] if options.seconds is None else [options.seconds]
    lengths += [None] if options.free or not lengths else []
    return [
        (head, count, seed, seconds)
        for count in options.counts
        for seconds in lengths
        for seed in range(options.draws if count != "all" else 1)
        for head in heads
    ]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="manifest with masks or labels, and splits")
    parser.add_argument("--backbone", "-b", required=True)
    parser.add_argument("--task", choices=sorted(CONFIGS), default="segment")
    parser.add_argument("--other", metavar="COLUMN=VALUE", help="images of another source: only for testing")
    parser.add_argument("--other-data", type=Path, help="manifest of another source, whose test split is used")
    parser.add_argument("--heads", nargs="*", help="names, or NAME+detail; none: only the network from scratch")
    parser.add_argument("--no-scratch", action="store_true", help="leave the network from scratch out")
    parser.add_argument("--counts", nargs="+", default=list(COUNTS), help=f"numbers of images [{' '.join(COUNTS)}]")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--seconds", type=float, help="processor seconds of each run, features included")
    parser.add_argument(
        "--free", action="store_true", help="also as long as each wants (the default without --seconds)"
    )
    parser.add_argument("--steps", type=int, default=400, help="steps of 8 images of the network from scratch [400]")
    parser.add_argument("--unet-size", type=int, default=128, help="input size of the network from scratch, px [128]")
    parser.add_argument(
        "--encoder", type=Path, help="ImageNet weights of a resnet18 (.pth of torchvision, safetensors)"
    )
    parser.add_argument("--test-images", type=int, default=100, help="most images of each test source [100]")
    parser.add_argument("--minutes", type=float, help="start no run after this time")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="setting of every head: a.b=c")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/label_efficiency"))
    return parser


def main(words: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(words)
    manifest = read_manifest(options.data)
    targets = manifest.column("mask" if options.task == "segment" else "label")
    usable = manifest.take([i for i, cell in enumerate(targets) if cell is not None])
    other_data = None if options.other_data is None else read_manifest(options.other_data)
    heads = options.heads or [entry.name for entry in BUILT_IN if entry.task == options.task and entry.name != AUTO]
    heads = [] if heads == ["none"] else heads
    heads = [*heads, *([] if options.no_scratch else [SCRATCH[options.task]])]
    options.output.mkdir(parents=True, exist_ok=True)
    bench = Bench(
        options.task, split_sources(usable, options.other, other_data, options.test_images),
        load_backbone(options.backbone), options.backbone, options.settings, options.steps, options.unet_size,
        options.encoder, options.output,
    )  # fmt: skip
    run_all(bench, build_plan(options, heads), f"{options.data.stem} {options.task}", options.minutes)
    table = options.output / "results.md"
    print(table.read_text() if table.exists() else "no run is finished")


if __name__ == "__main__":
    main()
