"""Comparison of all heads on one backbone, and of a U-Net that is trained from scratch for the same time.

    python benchmarks/heads/head_table.py runs/derm.parquet -b runs/ssl --untrained runs/ssl/untrained --task classify
    python benchmarks/heads/head_table.py runs/polyps.parquet -b runs/ssl --task segment --test-where centre=C1 --unet

For each head: its parameters, the seconds of its training, and on test the metric with its 95% interval over patients
or lesions, as `dinomed train` and `dinomed evaluate` compute them. Seconds are processor seconds over all threads, so
that other load on the machine matters little. Features are computed before; a line below the table gives their time.
With `--tune-heads` a head is also trained together with the backbone (LoRA, the last block); then the forward pass of
the backbone in every epoch is included. With `--unet` a U-Net is trained from scratch on the same images, for as many
seconds as the slowest head on frozen features took, and as the middle one took; its threshold is chosen on val, as for
a segmenter.

From a large data set a subset is drawn by group, the same for every seed. An interrupted call continues where it
stopped; a row of other settings, images or weights is computed again.
"""

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.adapters.catalogue import BUILT_IN
from dinomed.adapters.evaluated import EvaluatedValues
from dinomed.adapters.evaluation.evaluate import evaluate
from dinomed.adapters.evaluation.report import summarize
from dinomed.adapters.fitting.build import at_image_size, build_adapter, default_image_size, extract_splits
from dinomed.adapters.fitting.config import TrainConfig, adapter_class
from dinomed.adapters.fitting.data import Splits, fit_splits, masked
from dinomed.adapters.heads.auto import AUTO
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.adapters.tasks.segment.fit import prepare_masks
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.config import load_config
from dinomed.datasets.manifest import Manifest, build_manifest, read_manifest
from dinomed.errors import DinomedError, UsageError
from dinomed.features.extract import resolve_blocks
from dinomed.io.files import write_json, write_text
from dinomed.log import logger

METRICS = {"classify": ("auroc", "balanced_accuracy"), "segment": ("dice", "iou")}
CONFIGS: dict[str, type[TrainConfig]] = {"classify": ClassifyConfig, "segment": SegmentConfig}
TUNES = ("lora", "last:1")


@dataclass(frozen=True)
class Bench:
    """Context of all rows; `options` are settings of every training, or of one head as ``HEAD:a.b=c``."""

    task: str
    manifest: Manifest
    out: Path
    options: Sequence[str]

    def config(self, head: str, seed: int, tune: str = "none") -> TrainConfig:
        """Return the options of a head. The last one for a key counts; one for this head overrides one for all
        heads."""
        head_settings = [text.removeprefix(f"{head}:") for text in self.options if text.startswith(f"{head}:")]
        common = [text for text in self.options if ":" not in text.partition("=")[0]]
        return load_config(
            CONFIGS[self.task], None, [*common, *head_settings, f"head.name={head}", f"seed={seed}", f"tune={tune}"]
        )

    def row(
        self, name: str, seed: int, made_of: dict[str, Any], measure: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return the result of `measure`, or the stored one if its inputs are the same."""
        made_of = {**made_of, "images": self.manifest.fingerprint}
        path = self.out / (re.sub(r"\W+", "-", f"{self.task} {name} {seed}") + ".json")
        result = json.loads(path.read_text()) if path.exists() else {}
        if result.get("made_of") != json.loads(json.dumps(made_of)):
            logger.info(f"{self.task}: {name}, seed {seed}")
            result = measure() | {"made_of": made_of}
            write_json(path, result)
        return result


def hold_out(manifest: Manifest, column: str, value: str) -> Manifest:
    """Return a manifest with the rows of this value as test, and a sixth of the other groups as val."""
    groups = manifest.units()
    other_groups = sorted(
        {group for group, there in zip(groups, manifest.column(column), strict=True) if there != value}
    )
    val = set(other_groups[::6])
    split = ["test" if there == value else "val" if group in val else "train"
             for group, there in zip(groups, manifest.column(column), strict=True)]  # fmt: skip
    columns = {name: manifest.column(name) for name in manifest.columns} | {"split": split}
    return build_manifest(columns, manifest.root)


def draw(manifest: Manifest, images: Sequence[int]) -> Manifest:
    """Draw whole groups with about these numbers of images of train, val and test (one number: of each; none: all)."""
    if not images:
        return manifest
    groups = manifest.units()
    rows: list[int] = []
    for split, wanted in zip(("train", "val", "test"), [*images] * (3 // len(images)), strict=True):
        members: dict[str, list[int]] = {}
        for row, (group, where) in enumerate(zip(groups, manifest.column("split"), strict=True)):
            if where == split:
                members.setdefault(group, []).append(row)
        names = sorted(members)
        taken = 0
        for index in np.random.default_rng(0).permutation(len(names)):
            if taken >= wanted:
                break
            rows += members[names[index]]
            taken += len(members[names[index]])
    return manifest.take(sorted(rows))


def prepare_features(config: TrainConfig, backbone: FrozenBackbone, manifest: Manifest, cache: Path) -> dict[str, Any]:
    """Compute the features for a head; return the processor seconds (nearly 0 if they are cached)."""
    size, splits, classes = _setting(config, backbone, manifest)
    backbone = at_image_size(backbone, size, config.aspect)
    adapter = build_adapter(config, backbone, classes)
    if config.live:
        return {"seconds": 0.0, "of": "nothing kept"}
    began = time.process_time()
    extract_splits(backbone, splits, adapter, cache)
    blocks = ", ".join(str(block + 1) for block in resolve_blocks(adapter.feature_spec.blocks, backbone.depth))
    kind = "patch and class tokens" if adapter.feature_spec.patches else "pooled tokens"
    return {"seconds": time.process_time() - began, "of": f"{kind} of blocks {blocks} at {size} px"}


def _setting(config: TrainConfig, backbone: FrozenBackbone, manifest: Manifest) -> tuple[int, Splits, int]:
    """Return image size, splits and classes as the fit uses them."""
    if isinstance(config, SegmentConfig):
        schema, splits = prepare_masks(manifest, config)
        grid = adapter_class("segment", config.head.name).grid
        return config.image_size or default_image_size(backbone, grid), splits, len(schema.names)
    assert isinstance(config, ClassifyConfig)
    splits = fit_splits(config.label_columns.usable(manifest), config.label_columns.columns[0], config.seed)
    return config.image_size or backbone.preprocessing.image_size, splits, len(config.label_columns.names(splits.train))


def measure_head(bench: Bench, config: TrainConfig, backbone: FrozenBackbone, where: str) -> dict[str, Any]:
    """Train one head on cached features and evaluate it on test."""
    from dinomed.adapters.fit import fit_head

    cache = bench.out / "features"
    features = prepare_features(config, backbone, bench.manifest, cache)
    with tempfile.TemporaryDirectory(
        dir=bench.out
    ) as folder:  # a new folder: an interrupted fit would continue and be measured in part
        adapter = Path(folder) / "adapter"
        began = time.process_time()
        fit_head(backbone, bench.manifest, adapter, config, cache=cache)
        seconds = time.process_time() - began
        report = evaluate(adapter, bench.manifest, "test", backbone=where)
        learned = sum(parameter.numel() for parameter in load_adapter(adapter, backbone=where).adapter.parameters())
    row = {"parameters": learned, "tuned": count_tuned(config, backbone), "seconds": round(seconds, 1)}
    return row | {"features": features, "metrics": report["metrics"], "intervals": report["intervals"]}


def count_tuned(config: TrainConfig, backbone: FrozenBackbone) -> int:
    """Count the weights of the backbone that are trained with the head."""
    from dinomed.adapters.fitting.tune import LearningBackbone

    if not config.tune.active:
        return 0
    groups = LearningBackbone(backbone, config.tune, [backbone.depth - 1], config.seed).groups()
    return sum(parameter.numel() for group in groups for parameter in group.parameters)


def measure_unet(bench: Bench, size: int, seed: int, seconds: float) -> dict[str, Any]:
    """Train a U-Net from scratch and evaluate it like a segmenter."""
    from alternatives import compare_unet, fit_unet, unet_probability

    from dinomed.adapters.tasks.segment.mask_schema import BINARY
    from dinomed.adapters.tasks.segment.masks import choose_thresholds
    from dinomed.images.read import read_image
    from dinomed.metrics.segmentation import segmentation_metrics

    rows = masked(bench.manifest)
    splits, test = fit_splits(rows, None, seed), rows.select(split="test")
    model, steps = fit_unet(splits.train, size, np.random.default_rng(seed), seed, seconds=seconds)

    def probabilities(row: int, shape: tuple[int, int]) -> np.ndarray:
        return unet_probability(model, read_image(splits.val.path(row)), size, shape)[None]

    (threshold,), _ = choose_thresholds(splits.val, probabilities, BINARY)
    overlaps = compare_unet(model, test, size, threshold)
    columns = {
        name: np.array([getattr(image_overlap, name) for image_overlap in overlaps]) for name in METRICS["segment"]
    }
    judged = EvaluatedValues(
        test, test.units(), columns, lambda chosen: segmentation_metrics([overlaps[i] for i in chosen])
    )
    row = {"parameters": sum(p.numel() for p in model.parameters()), "tuned": 0, "seconds": round(seconds, 1)}
    return row | {"steps": steps, "threshold": threshold} | summarize(judged)


def table(task: str, rows: dict[str, list[dict[str, Any]]]) -> str:
    """Format a Markdown table, a row for each head; with several seeds the interval is that of the first."""
    names = METRICS[task]
    lines = ["| head | parameters | seconds | " + " | ".join(names) + " |", "|---" * (3 + len(names)) + "|"]
    for head, seeds in rows.items():
        cells = []
        for name in names:
            first, *other_intervals = (row["intervals"][name] for row in seeds)
            ends = f"{first['value']:.3f} ({first['low']:.3f} to {first['high']:.3f})"
            cells.append(", ".join([ends, *(f"{interval['value']:.3f}" for interval in other_intervals)]))
        first = seeds[0]
        learned = f"{first['parameters']:,}" + (f" + {first['tuned']:,}" if first["tuned"] else "")
        took = ", ".join(f"{row['seconds']:.0f}" for row in seeds)
        lines.append(f"| {head} | {learned} | {took} | " + " | ".join(cells) + " |")
    costs: dict[str, float] = {}
    for row in (row for seeds in rows.values() for row in seeds if row.get("features")):
        costs[row["features"]["of"]] = max(costs.get(row["features"]["of"], 0.0), row["features"]["seconds"])
    shown = "; ".join(f"{of}: {seconds:.0f} s" for of, seconds in costs.items() if of != "nothing kept")
    tested = next(iter(rows.values()))[0]["metrics"]["n"]
    return "\n".join([*lines, "", f"Features of train and val, once: {shown}. Judged on {tested} images."])


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="manifest with labels or masks, and splits")
    parser.add_argument("--backbone", "-b", required=True)
    parser.add_argument("--task", choices=sorted(METRICS), default="segment")
    parser.add_argument("--heads", nargs="*", help="default: all heads")
    parser.add_argument("--untrained", metavar="BACKBONE", help="add rows for this backbone")
    parser.add_argument("--untrained-heads", nargs="*", help="default: --heads")
    parser.add_argument(
        "--tune-heads", nargs="*", default=[], help="heads that are also trained together with the backbone"
    )
    parser.add_argument("--unet", action="store_true", help="also train a U-Net from scratch (segment)")
    parser.add_argument("--unet-size", type=int, default=160, help="side of the input of the U-Net, px")
    parser.add_argument(
        "--images", type=int, nargs="+", default=[], help="approximate number of images of train, val and test"
    )
    parser.add_argument(
        "--test-where", metavar="COLUMN=VALUE", help="these rows are the test split, the others train and val"
    )
    parser.add_argument("--set", dest="options", action="append", default=[], help="a.b=c, or HEAD:a.b=c for one head")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/heads"))
    return parser


def main(words: Sequence[str] | None = None) -> None:
    parser = build_parser()
    arguments = parser.parse_args(words)
    if len(arguments.images) not in (0, 1, 3):
        parser.error("--images: one number, or three: of train, val and test")
    if arguments.unet and arguments.task != "segment":
        parser.error("--unet draws masks: it is for --task segment")
    manifest = read_manifest(arguments.data)
    if arguments.test_where:
        manifest = hold_out(manifest, *arguments.test_where.split("=", 1))
    arguments.output.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.task, draw(manifest, arguments.images), arguments.output, arguments.options)
    every = [entry.name for entry in BUILT_IN if entry.task == arguments.task and entry.name != AUTO]
    heads = every if arguments.heads is None else arguments.heads
    plan = [(head, head, arguments.backbone, "none") for head in heads]
    if arguments.untrained:
        untrained_heads = heads if arguments.untrained_heads is None else arguments.untrained_heads
        plan += [(f"{head}, untrained backbone", head, arguments.untrained, "none") for head in untrained_heads]
    plan += [(f"{head}, tune {how}", head, arguments.backbone, how) for head in arguments.tune_heads for how in TUNES]
    rows: dict[str, list[dict[str, Any]]] = {}

    def add(name: str, seed: int, made_of: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        try:
            result = bench.row(name, seed, made_of, measure)
        except (DinomedError, UsageError) as error:
            logger.warning(f"{name}, seed {seed}, failed and has no row: {error}")
            return
        rows.setdefault(name, []).append(result)
        write_text(arguments.output / f"{arguments.task}.md", table(arguments.task, rows) + "\n")

    for seed in arguments.seeds:
        for name, head, where, tune in plan:
            config, backbone = bench.config(head, seed, tune), load_backbone(where)
            made_of = {"config": config.model_dump(mode="json"), "backbone": backbone.fingerprint}
            add(name, seed, made_of, partial(measure_head, bench, config, backbone, where))
        frozen = sorted((rows[head][-1]["seconds"], head) for head in heads if head in rows)
        for word, index in (("slowest", -1), ("middle", len(frozen) // 2)) if arguments.unet and frozen else ():
            seconds, head = frozen[index]
            made_of = {"unet": arguments.unet_size, "seconds": seconds, "seed": seed}
            name = f"U-Net from scratch, as long as the {word} head"
            logger.info(f"{name}: {head}, {seconds:.0f} s")
            add(name, seed, made_of, partial(measure_unet, bench, arguments.unet_size, seed, seconds))
    print(table(arguments.task, rows))


if __name__ == "__main__":
    main()
