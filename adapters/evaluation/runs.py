"""Comparison of several adapters on the same data: metrics of each, and paired differences with intervals.

All adapters are measured on the images that none of them leaves out. A resample draws the same groups for all, so the
interval of a difference is that of pairs (Efron and Tibshirani 1993, chapter 16), which is narrower than the
difference of two intervals.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinomed.adapters.evaluated import EvaluatedUnits
from dinomed.adapters.evaluation.evaluate import Evaluation, predict_split
from dinomed.adapters.inference.loader import read_adapter_record
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.metrics.bootstrap import LEVEL, RESAMPLES, bootstrap
from dinomed.notice import RESEARCH_USE


def evaluate_runs(
    folders: Sequence[str], manifest: Manifest, split: str, *, resamples: int = RESAMPLES, **options: Any
) -> dict[str, Any]:
    """Evaluate adapters on the same images, and compare them; the first one is the reference.

    Task and classes are compared before anything is predicted.

    Args:
        folders: the adapters.
        manifest, split, options: as for `dinomed.adapters.evaluation.evaluate.predict_split`.
        resamples: number of bootstrap resamples of the groups.

    Returns:
        The report of `compare_runs`.

    Raises:
        UsageError: as `compare_runs`, or as `predict_split`.
        DinomedError: an image or mask cannot be read.
    """
    names = name_runs(folders)
    records = [read_adapter_record(folder) for folder in folders]
    _check_same([{"task": record.task} for record in records], [record.classes for record in records], names)
    evaluations = [predict_split(folder, manifest, split, **options) for folder in folders]
    return compare_runs(evaluations, names, resamples=resamples)


def compare_runs(
    evaluations: Sequence[Evaluation], names: Sequence[str], *, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Compare the results of adapters; the first one is the reference.

    Args:
        evaluations: of the same manifest and split.
        names: name of each adapter in the report.
        resamples: number of bootstrap resamples of the groups.

    Returns:
        `task`, `split`, `unit`, `n` (compared units), `groups`, `bootstrap`, `reference` (name), `better` (metric to
        "larger" or "smaller"), and `runs`, a row for each adapter: `name`, `backbone`, `image_size`, `aspect`,
        `left_out` (units of its own evaluation that are not compared), `seen_in_training` (of its own evaluation),
        `metrics` (metric to `value`, `low`, `high`), and `difference` (the same, minus the reference; None for the
        reference itself).

    Raises:
        UsageError: the adapters have different tasks, units, classes or labels, or no unit in common.
    """
    properties = [{what: each.result[what] for what in ("task", "unit")} for each in evaluations]
    _check_same(properties, [each.predictor.classes for each in evaluations], names)
    first = evaluations[0].evaluated
    units = [_unit_keys(each) for each in evaluations]
    common = set(units[0]).intersection(*units[1:])
    if not common:
        unit = properties[0]["unit"]
        raise UsageError(
            f"no {unit} is left for all adapters: each was trained on images of this split; give other data"
        )
    places = [{key: place for place, key in enumerate(keys)} for keys in units]
    order = [key for key in units[0] if key in common]
    rows = [[place[key] for key in order] for place in places]
    _check_targets(evaluations, rows, names)
    groups = [first.groups[row] for row in rows[0]]
    headline = first.headline
    runs = []
    for evaluation, compared, name in zip(evaluations, rows, names, strict=True):
        evaluated, result = evaluation.evaluated, evaluation.result
        runs.append(
            {
                "name": name,
                "backbone": result["backbone"]["name"],
                "image_size": result["image_size"],
                "aspect": result["aspect"],
                "left_out": len(evaluated.groups) - len(compared),
                "seen_in_training": result["seen_in_training"],
                "metrics": _intervals([evaluated], [compared], groups, headline, resamples),
                "difference": None
                if evaluation is evaluations[0]
                else _intervals([evaluated, first], [compared, rows[0]], groups, headline, resamples),
            }
        )
    result = evaluations[0].result
    return {
        "purpose": RESEARCH_USE,
        "task": result["task"],
        "split": result["split"],
        "unit": result["unit"],
        "n": len(order),
        "groups": len(set(groups)),
        "bootstrap": {
            "over": "groups" if first.manifest.has("group") else "images",
            "resamples": resamples,
            "level": LEVEL,
            "seed": 0,
        },
        "reference": names[0],
        "better": {name: "smaller" if name in first.errors else "larger" for name in headline},
        "runs": runs,
    }


def _check_same(
    properties: Sequence[Mapping[str, str]], classes: Sequence[Sequence[str]], names: Sequence[str]
) -> None:
    """Raise a `UsageError` if an adapter has other properties (task, unit) or other classes than the first one."""
    for other, other_classes, name in zip(properties[1:], classes[1:], names[1:], strict=True):
        for what, value in properties[0].items():
            if other[what] != value:
                raise UsageError(f"{names[0]} and {name} cannot be compared: {what} {value} and {other[what]}")
        if tuple(other_classes) != tuple(classes[0]):
            raise UsageError(
                f"{names[0]} and {name} have different classes: {', '.join(classes[0])} and "
                f"{', '.join(other_classes)}; compare adapters of the same classes"
            )


def _unit_keys(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return a key of each evaluated unit, which is the same for all adapters: its group, or its image.

    The image that stands for a group in `EvaluatedUnits.manifest` depends on the number of frames of the adapter.
    """
    manifest = evaluation.evaluated.manifest
    groups = manifest.groups() if evaluation.result["unit"] == "group" else [None] * len(manifest)
    return [
        ("image", image) if group is None else ("group", group)
        for image, group in zip(manifest.column("image"), groups, strict=True)
    ]


def _check_targets(evaluations: Sequence[Evaluation], rows: Sequence[Sequence[int]], names: Sequence[str]) -> None:
    """Raise a `UsageError` if adapters of the same classes were measured on different labels of the same images."""
    count = len(evaluations[0].predictor.classes)

    def known_targets(evaluation: Evaluation, compared: Sequence[int]) -> np.ndarray | None:
        targets = evaluation.evaluated.targets
        if targets is None:
            return None
        # classes beyond those of the adapters stand in the order in which each evaluation found them
        return targets[list(compared), :count] if targets.ndim == 2 else np.minimum(targets[list(compared)], count)

    expected = known_targets(evaluations[0], rows[0])
    for evaluation, compared, name in zip(evaluations[1:], rows[1:], names[1:], strict=True):
        targets = known_targets(evaluation, compared)
        if expected is None or targets is None:
            continue
        if targets.shape != expected.shape or not np.array_equal(targets, expected, equal_nan=targets.ndim == 2):
            raise UsageError(
                f"{names[0]} and {name} were trained on different labels (columns, or one label and several); compare "
                "adapters of the same labels"
            )


def _intervals(
    evaluated: Sequence[EvaluatedUnits],
    rows: Sequence[Sequence[int]],
    groups: Sequence[str],
    headline: Sequence[str],
    resamples: int,
) -> dict[str, dict[str, float]]:
    """Return value and interval of each metric of one run, or of its difference from a second one."""
    statistics = [each.statistic(compared) for each, compared in zip(evaluated, rows, strict=True)]

    def difference(counts: np.ndarray) -> np.ndarray:
        values = statistics[0](counts)
        return values if len(statistics) == 1 else values - statistics[1](counts)

    point = difference(np.ones((1, len(groups))))[0]
    intervals = bootstrap(difference, groups, resamples=resamples)
    return {
        name: {"value": float(value), "low": interval.low, "high": interval.high}
        for name, value, interval in zip(headline, point, intervals, strict=True)
    }


def name_runs(folders: Sequence[str]) -> list[str]:
    """Return a name for each adapter folder: its last part, with more parts where two would be equal.

    >>> name_runs(["runs/a/seg", "runs/b/seg", "runs/c"])
    ['a/seg', 'b/seg', 'c']
    >>> name_runs(["C:\\\\runs\\\\a", "C:\\\\runs\\\\b"])
    ['a', 'b']
    """
    parts = [[part for part in folder.replace("\\", "/").split("/") if part not in ("", ".")] for folder in folders]
    depth = [1] * len(parts)
    while True:
        names = ["/".join(each[-count:]) for each, count in zip(parts, depth, strict=True)]
        deeper = [
            count + (names.count(name) > 1 and count < len(each))
            for name, each, count in zip(names, parts, depth, strict=True)
        ]
        if deeper == depth:
            return [f"{name} ({place})" if names.count(name) > 1 else name for place, name in enumerate(names, 1)]
        depth = deeper
