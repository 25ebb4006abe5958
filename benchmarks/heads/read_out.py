"""What each way to read frozen features is worth: blocks, tokens, sizes of the image, registers and views.

    python benchmarks/heads/read_out.py runs/derm.parquet -b runs/seed_0 -b runs/seed_1 -b runs/seed_2 -o runs/read_out
    python benchmarks/heads/read_out.py runs/derm.parquet -b runs/seed_0 -b runs/seed_1 -b runs/seed_2 --task segment \\
        --size 192 --counts 200 --draws 1 --test-images 100 -o runs/read_out_masks

Every backbone (several seeds of one recipe) and every draw of labelled images fits all candidates of ``--head auto``,
and for masks also `multi_view`, with all its views and with one, on the same images and with the same seed and
features. All are tested on the same images of the test split, never chosen on them. The row "auto" is the candidate
with the best value on val, as the command chooses it; "best on test" chooses on test, and is only the limit of any
choice.

Images are drawn by group from train and val; a draw of 200 images is part of the draw of 1,000, and a fifth of the
images is the val of the fit. Images are not augmented, because `auto` needs features that are computed once.

`OUTPUT/results.jsonl` has a line for each backbone, number and draw; the same command continues after an interruption.
`OUTPUT/TASK.md` has the table: the mean over backbones and draws, and the mean difference to logistic regression on
class tokens or to the linear segmenter, with the lowest and the highest of its values.
"""

import argparse
import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from label_efficiency import CONFIGS, score, some
from scipy.special import softmax

from dinomed.adapters.evaluation.draws import draw_images
from dinomed.adapters.fit import candidate_fits, fit_head, prepare_fit, run_fit
from dinomed.adapters.fitting.build import at_image_size, gather
from dinomed.adapters.fitting.config import TrainConfig
from dinomed.adapters.heads.solved.solve import macro_auroc
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.task import find_task
from dinomed.adapters.tasks.classify.answer import join_sizes
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.config import load_config
from dinomed.datasets.manifest import Manifest, read_manifest
from dinomed.features.extract import extract
from dinomed.io.files import to_json, write_text
from dinomed.log import logger

MULTI_VIEW: Mapping[str, tuple[str, ...]] = {"multi_view": (), "multi_view, one pass": ("scales=[1]", "flips=false")}
METRICS = {"classify": "macro AUROC", "segment": "mean Dice"}
REFERENCES = {"classify": "logistic, cls", "segment": "linear"}
AUTO, LIMIT = "auto", "best on test"
Scores = Mapping[str, Sequence[float]]
"""Value on val and on test of each candidate."""


@dataclass(frozen=True)
class Bench:
    """Everything that the fits share."""

    task: str
    size: int
    test: Manifest
    cache: Path

    def config(self, *settings: str) -> TrainConfig:
        return load_config(CONFIGS[self.task], None, [f"image_size={self.size}", "augment=none", *settings])

    def classifiers(self, backbone: FrozenBackbone, images: Manifest, seed: int) -> Iterator[tuple[str, float, float]]:
        """Fit the candidates of `auto` as it does, and yield title, AUROC on val and on test."""
        prepared, candidates = prepare_fit(self.config("head.name=auto", f"seed={seed}"), backbone)
        prepared.splits = prepared.select_rows(images)
        fits = candidate_fits(prepared, candidates, backbone)
        for title in candidates:
            fit = fits.pop(title)
            with tempfile.TemporaryDirectory(dir=self.cache) as state:
                done = run_fit(fit, self.cache, Path(state))
            names = [*done.outcome.classes, *sorted({*self.test.column("label")} - {*done.outcome.classes})]
            targets = np.array([names.index(label) for label in self.test.column("label")])
            probabilities = np.zeros((len(targets), len(names)))
            probabilities[:, : len(done.outcome.classes)] = softmax(self.logits(backbone, done.fit), axis=1)
            yield title, fit.score(done.outcome)[1], macro_auroc(targets, probabilities)

    @torch.no_grad()
    def logits(self, backbone: FrozenBackbone, fit: Any) -> np.ndarray:
        """Return the logits of a fitted classifier for the test images, float32 (N, classes)."""
        spec, parts = fit.adapter.feature_spec, []
        for scale in fit.config.scales:
            sized = at_image_size(backbone, round(self.size * scale / backbone.patch_size) * backbone.patch_size)
            kept = extract(sized, self.test, cache=self.cache, blocks=spec.blocks, patches=spec.patches)
            parts.append(gather(kept, range(len(self.test)), backbone.device))
        features = parts[0] if len(parts) == 1 else join_sizes(parts, len(spec.blocks))
        logits: np.ndarray = fit.adapter.eval()(features).float().cpu().numpy()
        return logits

    def segmenters(self, backbone: FrozenBackbone, images: Manifest, seed: int) -> Iterator[tuple[str, float, float]]:
        """Fit the candidates of `auto` and `multi_view`, and yield title, Dice on val and on test."""
        choice = self.config("head.name=auto", f"seed={seed}")
        configs = find_task(self.task).candidates(choice, backbone) | {
            title: self.config("head.name=multi_view", f"seed={seed}", *settings)
            for title, settings in MULTI_VIEW.items()
        }
        for title, config in configs.items():
            with tempfile.TemporaryDirectory(dir=self.cache) as folder:
                result = fit_head(backbone, images, Path(folder) / "adapter", config, cache=self.cache)
                predictor = load_adapter(result.folder, backbone=backbone.source)
                values = score(self.task, predictor, self.test, "test")["values"]
            yield title, float(result.validation["dice"]), float(np.mean(values))


def choose(scores: Scores) -> Scores:
    """Add the choice of `auto`, among the candidates that are not `multi_view`, and the limit of any choice."""
    offered = {title: pair for title, pair in scores.items() if title not in MULTI_VIEW}
    return {
        **scores,
        AUTO: max(offered.values(), key=lambda pair: pair[0]),  # the first of equal ones, as the command
        LIMIT: max(offered.values(), key=lambda pair: pair[1]),
    }


def build_table(rows: Sequence[Mapping[str, Any]], task: str) -> str:
    """Format a Markdown table: one row a candidate, and for each number of images the mean and the differences."""
    groups: dict[str, list[Scores]] = defaultdict(list)
    for row in rows:
        groups[row["count"]].append(choose(row["scores"]))
    reference, counts = REFERENCES[task], sorted(groups, key=int)
    cells = [f"{count}: {word}" for count in counts for word in (METRICS[task], "difference")]
    lines = ["| read-out | " + " | ".join(cells) + " |", "|---" * (len(cells) + 1) + "|"]
    for title in groups[counts[0]][0]:  # all backbones have the same candidates
        line = [title]
        for count in counts:
            members = groups[count]
            values = np.array([each[title][1] for each in members])
            gains = values - [each[reference][1] for each in members]
            line.append(f"{values.mean():.3f}")
            line.append("" if title == reference else f"{gains.mean():+.3f} ({gains.min():+.3f} to {gains.max():+.3f})")
        lines.append("| " + " | ".join(line) + " |")
    fits = " and ".join(f"{len(groups[count])} of {count} images" for count in counts)
    return (
        "\n".join(lines) + f"\n\nFits: {fits}. In parentheses the lowest and the highest difference to {reference!r}.\n"
    )


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="manifest with labels or masks, and splits")
    parser.add_argument("--backbone", "-b", action="append", required=True, help="a pretraining run; several seeds")
    parser.add_argument("--task", choices=sorted(CONFIGS), default="classify")
    parser.add_argument("--size", type=int, default=96, help="side of the images, px [96]")
    parser.add_argument("--counts", type=int, nargs="+", default=[200, 1000], help="labelled images [200 1000]")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--test-images", type=int, default=600, help="most images of the test split [600]")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/read_out"))
    return parser


def main(words: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(words)
    manifest = read_manifest(options.data)
    targets = manifest.column("mask" if options.task == "segment" else "label")
    usable = manifest.take([row for row, cell in enumerate(targets) if cell is not None])
    pool = usable.take([row for row, split in enumerate(usable.column("split")) if split in ("train", "val")])
    options.output.mkdir(parents=True, exist_ok=True)
    cache, path = options.output / "features", options.output / "results.jsonl"
    cache.mkdir(exist_ok=True)
    bench = Bench(options.task, options.size, some(usable.select(split="test"), options.test_images), cache)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    read: Callable[..., Iterator[tuple[str, float, float]]] = (
        bench.segmenters if options.task == "segment" else bench.classifiers
    )
    for seed in range(options.draws):
        for place in options.backbone:
            backbone = load_backbone(place)
            for count in options.counts:
                key = to_json([pool.fingerprint, bench.test.fingerprint, options.task, options.size,
                               backbone.fingerprint, count, seed])  # fmt: skip
                if any(row["key"] == key for row in rows):
                    continue
                logger.info(f"{place}, {count} images, draw {seed}")
                images = draw_images(pool, count, seed, "label" if options.task == "classify" else None)
                scores = {title: (val, test) for title, val, test in read(backbone, images, seed)}
                rows.append({"key": key, "task": options.task, "count": str(count), "draw": seed, "backbone": place,
                             "scores": scores})  # fmt: skip
                write_text(path, "".join(to_json(row) + "\n" for row in rows))
                text = build_table([row for row in rows if row["task"] == options.task], options.task)
                write_text(options.output / f"{options.task}.md", text)
                logger.info("\n" + text)
    shutil.rmtree(cache)


if __name__ == "__main__":
    main()
