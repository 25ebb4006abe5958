"""Search for the pretraining recipe that learns most in a given processor time, and its scaling curve.

    python benchmarks/pretrain/recipe_search.py --data runs/derm.parquet --variants base muon --minutes 12 --seeds 0 1 2
    python benchmarks/pretrain/recipe_search.py --data runs/derm.parquet --variants base --scaling 3,12,45,150
    python benchmarks/pretrain/recipe_search.py --data runs/derm.parquet --test

A variant is `base` (`configs/pretrain/vit_tiny_cpu.yaml`) or a config of `configs/ablations/`. Those whose names begin
with `distill` learn from the run `--teacher`, whose own training does not count. A few steps of each variant are timed
first, in turn with `base`; then every run has as many steps as fit into the minutes of processor time (all threads
together), and its schedules have this length. Images are read and cropped in the same process, so their time counts.

Every backbone, also the untrained one, is judged on val at the same image size (`--size`): macro AUROC of k-NN (k = 20)
and of logistic regression on frozen class tokens, and Dice of one fixed dense probe, a linear head on frozen patch
tokens (192 px, 500 steps), trained on 25 and on 200 masks. `--test` judges, on test and once, the untrained backbone,
`base`, and the variant with the highest sum of mean logistic AUROC and mean Dice at the largest number of masks.

`OUTPUT/results.jsonl` has a line for every timing, sitting and judgement; a finished one is never repeated.
`OUTPUT/val.md` has the table, and after runs of several lengths `val_auroc.svg` and `val_dice.svg` have the curves. An
interrupted run continues from its last checkpoint (one a minute), so a curve can be measured in several sittings.

Time on one core, estimated and not measured: a run its `--minutes`; the timing of a variant 1 to 3 minutes, once; a
judgement 3 to 6 minutes (features of 3,000 + 943 images at 96 px, and two dense probes). One variant of 12 minutes with
three seeds takes about 55 minutes, `--scaling 3,12,45,150` with one seed about 4 hours, `--test` about 50 minutes for
three seeds. The wall-clock time is longer on a machine with other load.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinomed.adapters.evaluation.evaluate import evaluate
from dinomed.adapters.evaluation.probe import probe
from dinomed.adapters.fit import fit_head
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.apps.pages.plots import Band, draw_bands
from dinomed.backbones.load import load_backbone
from dinomed.config import load_config
from dinomed.configs import find_config
from dinomed.datasets.manifest import Manifest, read_manifest
from dinomed.html.drawing import Drawing, write_drawing
from dinomed.log import logger
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.run_folder import CHECKPOINTS, UNTRAINED
from dinomed.pretrain.trainer import pretrain

BASE, DISTILLED = "base", "distill"
CONFIGS = "configs/ablations"
RECIPE = "configs/pretrain/vit_tiny_cpu.yaml"
K = 20
NUM_LABELLED, NUM_VAL_MASKS, NUM_TEST_MASKS = 3000, 60, 300
DENSE_PROBE = ("fit.epochs=15", "fit.min_steps=500", "fit.patience=3", "fit.batch_size=32", "fit.learning_rate=1e-3")
QUANTITIES = {"auroc": "macro AUROC", "dice": "mean Dice"}
CLASSIFIERS = {"knn": f"k-NN, k = {K}", "auroc": "logistic regression"}
NOTHING = (float("nan"),) * 3  # a length that was not run
TIMED_STEPS, TIMED_ROUNDS = (4, 16), 3
Row = dict[str, Any]


class Results:
    """The lines of results.jsonl; a line that an interruption cut off is ignored."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, list[Row]()
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                self.rows.append(json.loads(line))
            except json.JSONDecodeError:
                logger.warning(f"{path}: a damaged line is ignored")

    def select(self, **values: Any) -> list[Row]:
        """Return the rows with these values."""
        return [row for row in self.rows if all(row.get(key) == value for key, value in values.items())]

    def add(self, **row: Any) -> Row:
        """Append a row to the file."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        return row


class Search:
    """The runs of a search in one folder, with their judgements."""

    def __init__(
        self, data: Path, pool: Path, out: Path, size: int, masks: Sequence[int], teacher: Path | None = None
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.pool, self.out, self.size, self.masks, self.teacher = pool, out, size, masks, teacher
        self.labelled = read_manifest(data)
        self.results = Results(out / "results.jsonl")

    def config(self, variant: str, steps: int, seed: int, minutes: float) -> PretrainConfig:
        """Return the config of a run: without workers, whose processor time would not be measured."""
        path = find_config(RECIPE if variant == BASE else f"{CONFIGS}/{variant}.yaml")
        every = max(round(steps / max(minutes, 1)), 1)
        settings = {
            "run.steps": steps, "run.seed": seed, "run.workers": 0, "run.knn_images": 0, "run.pca_images": 0,
            "run.checkpoint_every": every, "frozen_size": self.size,
        }  # fmt: skip
        return load_config(PretrainConfig, path, [f"{key}={value}" for key, value in settings.items()])

    def teacher_of(self, variant: str) -> Path | None:
        """Return the run from which a variant is distilled, None for a variant that learns from the images alone."""
        if not variant.startswith(DISTILLED):
            return None
        if self.teacher is None:
            raise SystemExit(f"{variant} is distilled from a run; name it with --teacher")
        return self.teacher

    def time_steps(self, variants: Sequence[str]) -> None:
        """Time the variants that are not timed yet: `base` and each of them in turn, so that all have the same load.

        A variant gets the seconds of `base`, as first timed in this folder, times the ratio of the two. So variants
        that are added later, on a busier machine, have the same budget.
        """
        variants = [variant for variant in variants if not self.results.select(kind="timing", variant=variant)]
        if not variants:
            return
        together = [BASE, *(variant for variant in variants if variant != BASE)]
        for variant in together:
            self.time_run(variant, 2)  # not counted: it also loads libraries and files
        rounds = [{variant: self.time_step(variant) for variant in together} for _ in range(TIMED_ROUNDS)]
        known = self.results.select(kind="timing", variant=BASE)
        base = known[0]["seconds"] if known else float(np.median([seconds[BASE] for seconds in rounds]))
        for variant in variants:
            ratio = float(np.median([seconds[variant] / seconds[BASE] for seconds in rounds]))
            self.results.add(
                kind="timing", variant=variant, seconds=base * ratio, ratio=ratio, threads=torch.get_num_threads()
            )

    def time_step(self, variant: str) -> float:
        """Return the processor seconds of a step, from the difference of a longer and a shorter run."""
        few, many = TIMED_STEPS
        return (self.time_run(variant, many) - self.time_run(variant, few)) / (many - few)

    def time_run(self, variant: str, steps: int) -> float:
        """Return the processor seconds of a run of `steps` steps."""
        with tempfile.TemporaryDirectory(dir=self.out) as folder:
            began = time.process_time()
            pretrain(
                self.config(variant, steps, 0, 1), self.pool, Path(folder) / "run", device="cpu",
                teacher=self.teacher_of(variant),
            )  # fmt: skip
            return time.process_time() - began

    def seconds_per_step(self, variant: str) -> float:
        """Return the processor seconds of a step of a variant, which is timed once."""
        self.time_steps([variant])
        return float(self.results.select(kind="timing", variant=variant)[-1]["seconds"])

    def train(self, variant: str, minutes: float, seed: int) -> Path:
        """Train one run, or continue it; return its folder."""
        out = self.out / f"{variant}_{minutes:g}_{seed}"
        key = {"variant": variant, "minutes": minutes, "seed": seed}
        if not self.results.select(kind="run", **key):
            steps = max(round(60 * minutes / self.seconds_per_step(variant)), 1)
            logger.info(f"{variant}, {minutes:g} minutes, seed {seed}: {steps} steps")
            began = time.process_time()
            try:
                pretrain(
                    self.config(variant, steps, seed, minutes), self.pool, out, device="cpu",
                    resume=(out / CHECKPOINTS).exists(), overwrite=not (out / CHECKPOINTS).exists(),
                    teacher=self.teacher_of(variant),
                )  # fmt: skip
            finally:
                self.results.add(kind="sitting", **key, seconds=time.process_time() - began)
            seconds = sum(row["seconds"] for row in self.results.select(kind="sitting", **key))
            self.results.add(kind="run", **key, steps=steps, seconds=seconds)
        return out

    def judge(self, variant: str, minutes: float, seed: int, split: str = "val") -> Row:
        """Return the metrics of a backbone on `split`; a judged backbone is not judged again."""
        key = {"kind": "judgement", "variant": variant, "minutes": minutes, "seed": seed, "split": split}
        rows = self.results.select(**key)
        if rows:
            return rows[-1]
        is_untrained = variant == UNTRAINED
        run = self.train(BASE if is_untrained else variant, minutes, seed)
        return self.results.add(**key, **self.measure(run / UNTRAINED if is_untrained else run, split))

    def measure(self, folder: Path, split: str) -> Row:
        """Return AUROC of k-NN and logistic regression, and Dice of the dense probe for each number of masks."""
        backbone = load_backbone(folder, image_size=self.size)
        with tempfile.TemporaryDirectory(dir=self.out) as scratch:
            report = probe(backbone, draw(self.labelled, train=NUM_LABELLED), cache=Path(scratch), split=split)
            row = {
                "knn": next(tried["auroc"] for tried in report["knn"]["tried"] if tried["k"] == K),
                "auroc": report["logistic"]["auroc"],
            }
            for count in self.masks:
                images = draw(self.labelled, train=count, val=NUM_VAL_MASKS, test=NUM_TEST_MASKS)
                adapter = Path(scratch) / f"linear_{count}"
                settings = ["head.name=linear", "augment=none", "image_size=192", "seed=0", *DENSE_PROBE]
                config = load_config(SegmentConfig, None, settings)
                fit_head(backbone, images, adapter, config, cache=Path(scratch))
                scores = evaluate(adapter, images, split, backbone=str(folder))["metrics"]
                row[f"dice_{count}"] = scores["dice"]
        return row


def draw(manifest: Manifest, **counts: int) -> Manifest:
    """Draw images of each split, the same ones in every call; a split without a number is kept whole."""
    rows: list[int] = []
    splits = manifest.column("split")
    for split in ("train", "val", "test"):
        indices = [index for index, name in enumerate(splits) if name == split]
        indices.sort(key=manifest.column("sha256").__getitem__)  # checksums: a fixed random order
        rows += indices[: counts.get(split, len(indices))]
    return manifest.take(sorted(rows))


def table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Format a Markdown table of judgements: mean over seeds, and the range if there are several."""
    lines = ["| variant | minutes | seeds | " + " | ".join(columns) + " |", "|---" * (3 + len(columns)) + "|"]
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["variant"], row["minutes"]), []).append(row)
    for (variant, minutes), members in sorted(groups.items(), key=lambda item: (item[0][1], item[0][0])):
        cells = []
        for column in columns:
            values = [row[column] for row in members if row.get(column) is not None]
            spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}" if values else "")
        lines.append(f"| {variant} | {minutes:g} | {len(members)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_curves(rows: Sequence[Row], columns: Sequence[str], split: str) -> dict[str, Drawing]:
    """Draw each quantity (``auroc``, ``dice``) against the minutes of each variant that was run at two lengths or more.

    A line begins with the untrained backbone, if it was judged; its band goes from the lowest to the highest seed.
    """
    lengths: dict[str, set[float]] = {}
    for row in rows:
        lengths.setdefault(row["variant"], set()).add(row["minutes"])
    untrained = [row for row in rows if row["variant"] == UNTRAINED]
    variants = [name for name, minutes in lengths.items() if len(minutes) > 1 and name != UNTRAINED]
    minutes = sorted(set().union(*(lengths[name] for name in variants)))
    drawings = {}
    for quantity, title in QUANTITIES.items():
        lines: dict[str, list[Band]] = {}
        for variant in variants:
            groups = [untrained] if untrained else []
            groups += [[row for row in rows if (row["variant"], row["minutes"]) == (variant, m)] for m in minutes]
            for column in columns:
                word, _, count = column.partition("_")
                if word == "dice" if quantity == "dice" else word in CLASSIFIERS:
                    name = f"{count} masks" if count else CLASSIFIERS[word]
                    values = [[row[column] for row in group if row.get(column) is not None] for group in groups]
                    lines[name if len(variants) == 1 else f"{variant}: {name}"] = [
                        (float(np.mean(cell)), min(cell), max(cell)) if cell else NOTHING for cell in values
                    ]
        ticks = [*(["0"] if untrained else []), *(f"{m:g}" for m in minutes)]
        axes = ("processor minutes of pretraining", title)
        drawing = draw_bands(lines, ticks, f"split {split}", axes, legend=True)
        if drawing is not None:
            drawings[quantity] = drawing
    return drawings


def choose_best(rows: Sequence[Row], dice: str) -> tuple[str, float]:
    """Return variant and minutes with the highest sum of mean AUROC and mean Dice; the untrained one is left out."""
    scores: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        if row["variant"] != UNTRAINED:
            scores.setdefault((row["variant"], row["minutes"]), []).append(row["auroc"] + row[dice])
    return max(scores, key=lambda key: float(np.mean(scores[key])))


def parse_numbers(text: str) -> list[float]:
    """Return the numbers of ``3,12,45``."""
    return [float(word) for word in text.split(",")]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="manifest with labels, masks and splits")
    parser.add_argument("--pool", type=Path, help="manifest or folder of the training images; default: train of --data")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/recipe_search"))
    parser.add_argument("--variants", nargs="*", default=[BASE], help="base, or names of configs in configs/ablations")
    parser.add_argument("--teacher", type=Path, help="run folder that the variants distill_... learn from")
    parser.add_argument("--minutes", type=float, default=12.0, help="processor minutes of each run")
    parser.add_argument("--scaling", type=parse_numbers, help="minutes of a curve, such as 3,12,45,150; for --minutes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--size", type=int, default=96, help="side of the images for k-NN and logistic regression, px")
    parser.add_argument("--masks", type=int, nargs="+", default=[25, 200], help="training masks of the dense probe")
    parser.add_argument("--threads", type=int, default=1, help="threads of a run")
    parser.add_argument("--test", action="store_true", help="judge the best finished variant on test, and stop")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    arguments = build_parser().parse_args(words)
    torch.set_num_threads(arguments.threads)
    search = Search(
        arguments.data, arguments.pool or arguments.data, arguments.output, arguments.size, sorted(arguments.masks),
        arguments.teacher,
    )  # fmt: skip
    columns = ["knn", "auroc", *(f"dice_{count}" for count in search.masks)]
    split = "test" if arguments.test else "val"
    if arguments.test:
        judged = search.results.select(kind="judgement", split="val")
        if not judged:
            raise SystemExit(f"{search.results.path} has no judgement on val; run the variants first")
        choices = search.results.select(kind="choice")
        if not choices:  # kept, so that later runs do not lead to a second look at test
            best, minutes = choose_best(judged, columns[-1])
            choices = [search.results.add(kind="choice", variant=best, minutes=minutes)]
        best, minutes = choices[0]["variant"], choices[0]["minutes"]
        seeds = {row["seed"] for row in judged if (row["variant"], row["minutes"]) == (best, minutes)}
        plan = [(variant, minutes, seed) for variant in (UNTRAINED, BASE, best) for seed in sorted(seeds)]
    else:
        lengths = arguments.scaling or [arguments.minutes]
        plan = [
            (variant, minutes, seed)
            for minutes in sorted(lengths)
            for seed in arguments.seeds
            for variant in arguments.variants
        ]
    search.time_steps(sorted({BASE if variant == UNTRAINED else variant for variant, _, _ in plan}))
    for variant, minutes, seed in dict.fromkeys(plan):
        search.judge(variant, minutes, seed, split)
        logger.info("\n" + table(search.results.select(kind="judgement", split=split), columns))
    rows = search.results.select(kind="judgement", split=split)
    text = table(rows, columns)
    (arguments.output / f"{split}.md").write_text(text + "\n", encoding="utf-8")
    for name, drawing in draw_curves(rows, columns, split).items():
        write_drawing(drawing, arguments.output / f"{split}_{name}.svg", name)
    print(text)


if __name__ == "__main__":
    main()
