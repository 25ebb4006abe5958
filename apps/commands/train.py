"""`dinomed train`: training of heads on the features of a backbone, which stays frozen or is trained too."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from dinomed.apps.expand import expand
from dinomed.apps.options import Backbone, Cache, Data, Device, Json, Mean, Output, Overwrite, Quiet, Std, Weights
from dinomed.errors import UsageError

if TYPE_CHECKING:
    from dinomed.adapters.fitting.head_fit import FitResult
    from dinomed.adapters.folds.train import FoldsResult
    from dinomed.apps.api.training_plan import PlannedFeatures, TrainingPlan


@dataclass(frozen=True)
class Training:
    """The options of all tasks."""

    backbone: Backbone
    data: Data
    out: Output
    head: Annotated[
        str | None,
        Option("--head", help="Name of the head, see `dinomed models` (short for --set head.name=NAME)."),
    ] = None
    tune: Annotated[
        str | None,
        Option(
            "--tune", help="Part of the backbone that is trained too: none, last:N (blocks), lora or lora:RANK [none]."
        ),
    ] = None
    config: Annotated[
        Path | None, Option("--config", "-c", help="YAML file, such as configs/adapters/segment.yaml.")
    ] = None
    settings: Annotated[list[str] | None, Option("--set", help="Override one setting: a.b=value.")] = None
    folds: Annotated[
        int | None,
        Option(
            "--folds",
            help="Cross-validation with this number of folds of train and val, by group. The adapter averages those of "
            "all folds.",
        ),
    ] = None
    weights: Weights = None
    mean: Mean = None
    std: Std = None
    cache: Cache = None
    dry_run: Annotated[
        bool,
        Option("--dry-run", help="Print the settings, the head, the rows and the size of the features, and stop."),
    ] = False
    seed: Annotated[int | None, Option("--seed", help="Replaces the seed of the config.", min=0)] = None
    overwrite: Overwrite = False
    device: Device = "auto"
    as_json: Json = False
    quiet: Quiet = False

    def fit(self, task: str, **targets: Any) -> None:
        """Train a head for a task, or plan it, and print the result; `targets` are options of the task alone."""
        from dinomed.apps.api.heads import train
        from dinomed.apps.api.training_plan import plan_training
        from dinomed.apps.ending import after_dry_run, after_training, print_end
        from dinomed.apps.output import api_arguments

        options = api_arguments(vars(self) | targets, without=["dry_run"])
        if self.dry_run:
            _print_plan(plan_training(task, **options), self.as_json)
            label = targets.get("label")
            task_options = targets | ({"label": ",".join(label)} if isinstance(label, list) else {})
            planned = after_dry_run(["train", task], vars(self) | task_options)
            print_end([], planned, as_json=self.as_json, mark="# ")
        else:
            result = train(task, **options)
            _report(result, self.as_json)
            step = partial(after_training, task, result.folder, self.data)
            print_end([result.folder], step, as_json=self.as_json)


@expand
def classify(
    training: Training,
    label: Annotated[
        str | None,
        Option("--label", help="Column of the classes [label], or several columns of 0 and 1: oedema,effusion."),
    ] = None,
    separator: Annotated[
        str | None, Option("--separator", help="Text between several labels in one cell, such as '|'.")
    ] = None,
    unit: Annotated[
        str | None,
        Option("--unit", help="image, or group: one prediction for the images of a group (at most 8 of them)."),
    ] = None,
) -> None:
    """Train a classifier on the labels of a manifest.

    The head is fitted on the split train. The epoch (or k, C or the learning rate of the head), the temperature of the
    probabilities and the thresholds are chosen on val. For research use only.
    """
    training.fit("classify", label=_columns(label), separator=separator, unit=unit)


@expand
def segment(training: Training) -> None:
    """Train a lesion segmenter on the masks of a manifest.

    The head is fitted on the split train. The epoch and the threshold are chosen on val. If val has fewer than 20
    groups, the last epoch is kept, the threshold is 0.5, and the head is trained again on train and val. For research
    use only.
    """
    training.fit("segment")


@expand
def depth(training: Training) -> None:
    """Train a depth estimator on the depth maps of a manifest (a column `depth`).

    The head is fitted on the split train, and the epoch is chosen on val. Predicted depths lie between the smallest and
    the largest depth of train, or between --set head.low and head.high. For research use only.
    """
    training.fit("depth")


def train_task(name: str) -> Callable[..., None]:
    """Return the command of a task that has none in this file, such as the task of a plug-in."""
    from dinomed.adapters.task import find_task

    def train(training: Training) -> None:
        training.fit(name)

    train.__doc__ = find_task(name).help
    return expand(train)


def _columns(label: str | None) -> str | list[str] | None:
    """Return the column or the columns that ``--label`` names."""
    columns = [name.strip() for name in (label or "").split(",") if name.strip()]
    if label is not None and not columns:
        raise UsageError(f"--label {label!r} names no column; give one, or several with commas between them")
    return columns[0] if len(columns) == 1 else columns or None


def _print_plan(plan: "TrainingPlan", as_json: bool) -> None:
    """Print the settings as YAML that --config reads, and the plan in its comments."""
    from dataclasses import asdict

    from dinomed.apps.output import emit
    from dinomed.config import dump_yaml
    from dinomed.errors import printable

    if as_json:
        emit(asdict(plan), True)
        return
    lines = [f"backbone: {plan.backbone}"]
    for head in plan.heads:
        weights = f"{head.parameters:,} trained parameters" if head.parameters else "solved without epochs"
        lines.append(f"head {head.name}: {weights}, images of {head.image_size} px")
    folds = {f"val of fold {number}": rows for number, rows in enumerate(plan.folds, start=1)}
    for name, rows in (plan.splits | folds).items():
        classes = "".join(f", {label} {count}" for label, count in rows.classes.items())
        made = " (taken from train)" if name == "val" and plan.val_made else ""
        lines.append(f"{name}{made}: {rows.images} images of {rows.groups} groups{classes}")
    lines += _describe_passes(plan.features, len(plan.folds))
    lines += _describe_second(plan)
    lines += [f"feature cache: {plan.features.cache}", plan.note]
    print(dump_yaml(plan.config), end="")
    print("\n".join(f"# {printable(line)}" for line in lines))


def _describe_second(plan: "TrainingPlan") -> list[str]:
    """Return a line about the second training and its passes through the backbone; none if there is none."""
    if not plan.refitted_on:
        return []
    line = f"second training, as long as the first: on all {plan.refitted_on:,} images of train and val"
    second = plan.features.second
    if second is not None and second.images:
        size = f"{second.bytes / 1e6:,.1f} MB more"
        line += f"; before it, {second.images:,} more images pass through the backbone once ({size})"
    if second is not None and second.images_per_epoch is None:
        line += "; images pass through the backbone until the processor seconds of fit.seconds are spent"
    elif second is not None and second.images_per_epoch:
        line += f"; in every epoch, {second.images_per_epoch:,} images pass through the backbone"
    return [line]


def _describe_passes(features: "PlannedFeatures", folds: int) -> list[str]:
    """Return lines that say which images pass through the backbone, when and how often; `folds` is 0 without folds."""
    size = f"{features.bytes / 1e6:,.1f} MB of features on disk"
    together = f" of the {folds} folds together" if folds else ""
    if features.images_per_epoch == 0:
        copies = f" ({features.copies} augmented copies of each one of train among them)" if features.copies else ""
        return [
            f"frozen backbone: {features.images:,} images{together}{copies} pass through it once, before the training; "
            f"{size}",
            "the training of the head reads these features; no image passes through the backbone in an epoch",
        ]
    if features.images_per_epoch is None:
        each = " in each fold" if folds else ""
        every = f"images pass through it until the processor seconds of fit.seconds are spent{each}"
    else:
        every = f"{features.images_per_epoch:,} images{together} pass through it in every epoch"
    if features.tune != "none":
        lines = [f"backbone trained too ({features.tune}): {every}, those of train and of val"]
        once = "unchanged images of train, to initialise the head"
    elif features.images:
        lines = [f"frozen backbone: {every}, those of train, augmented anew each time"]
        once = "unchanged images of train, to initialise the head, and val"
    else:
        lines = [f"frozen backbone: {every}, new windows of train, and val"]
    if features.images:
        images = f"{features.images:,} images{together}"
        lines.append(f"before the first epoch, {images} pass through it once ({once}); {size}")
    return lines


def _report_folds(result: "FoldsResult", as_json: bool) -> None:
    """Print the table of a cross-validation: metrics out of fold with intervals, and the values of the folds."""
    from dinomed.apps.output import build_table, emit
    from dinomed.notice import RESEARCH_USE

    table = result.table
    folds = [row["fold"] for row in table["by_fold"]]
    lines = [
        (
            name,
            row["value"],
            row["low"],
            row["high"],
            *(each["values"][name] for each in table["by_fold"]),
        )
        for name, row in table["intervals"].items()
    ]
    title = f"Out of fold, {table['bootstrap']['groups']} {table['bootstrap']['over']}"
    columns = ("metric", "all folds", "95% from", "to", *(f"fold {fold}" for fold in folds))
    threshold = [] if result.threshold is None else [("threshold", result.threshold)]
    rows = [("adapter", str(result.folder)), ("members", len(result.members)), *threshold, ("note", RESEARCH_USE)]
    report = {"adapter": str(result.folder), "members": [str(folder) for folder in result.members], **dict(threshold)}
    report |= {"cross_validation": {name: value for name, value in table.items() if name != "purpose"}}
    for shown in [None] if as_json else [build_table(columns, lines, title=title), build_table(("", ""), rows)]:
        emit(report | {"note": RESEARCH_USE}, as_json, shown)


def _report(result: "FitResult", as_json: bool) -> None:
    from dinomed.adapters.folds.train import FoldsResult
    from dinomed.apps.output import build_table, emit
    from dinomed.notice import RESEARCH_USE

    metrics = {name: value for name, value in result.validation.items() if isinstance(value, int | float)}
    threshold = {} if result.threshold is None else {"threshold": result.threshold}
    report = {"adapter": str(result.folder), "epoch": result.epoch, **threshold, "validation": result.validation}
    chosen = {name: value for name, value in result.chosen.items() if not isinstance(value, dict | list)}
    if isinstance(result, FoldsResult):
        _report_folds(result, as_json)
        return
    report |= {"chosen": result.chosen} if chosen else {}
    report |= {"refitted_on": result.refitted_on} if result.refitted_on else {}
    epoch = [] if chosen else [("epoch kept", result.epoch)]
    rows: list[tuple[str, object]] = [("adapter", str(result.folder)), *epoch, *chosen.items(), *threshold.items()]
    rows += [(f"{name} (val)", value) for name, value in metrics.items()]
    if result.refitted_on:
        rows.append(("after that", f"trained again on all {result.refitted_on} images of train and val"))
    tables = [build_table(("", ""), [*rows, ("note", RESEARCH_USE)])]
    if result.tried:
        metric = next(name for name in result.tried[0] if name not in ("head", "seconds", "kept"))
        lines = [(row["head"], row[metric], row["seconds"], "kept" if row["kept"] else "") for row in result.tried]
        tables.insert(0, build_table(("head", f"{metric} (val)", "s", ""), lines, title="Heads that were compared"))
        report |= {"tried": result.tried}
    for table in [None] if as_json else tables:
        emit(report | {"note": RESEARCH_USE}, as_json, table)
