"""Report of an evaluation: metrics with intervals over groups, subgroups, and the best and worst cases.

It does not depend on the task, which provides `EvaluatedUnits`. No result names an image or a group.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from dinomed.adapters.evaluated import EvaluatedUnits
from dinomed.datasets.manifest import FIXED, Manifest
from dinomed.errors import UsageError
from dinomed.metrics.bootstrap import LEVEL, RESAMPLES

FEW = 20
"""A subgroup of fewer groups is flagged: its metrics are uncertain."""
MAX_VALUES = 30
"""Largest number of different values of a column of subgroups."""
_NUMBERS = 8  # a column with more different numbers than this is split at its quartiles


def summarize(evaluated: EvaluatedUnits, columns: Sequence[str] = (), resamples: int = RESAMPLES) -> dict[str, Any]:
    """Return the report of all units.

    Args:
        evaluated: predictions and targets.
        columns: columns of the manifest whose values are subgroups.
        resamples: number of bootstrap resamples of the groups.

    Returns:
        `metrics`, `intervals`, `bootstrap` (its settings), the details of the task, and `subgroups` if there are
        columns.
    """
    rows = range(len(evaluated.groups))
    report: dict[str, Any] = {
        "metrics": evaluated.metrics(rows),
        "intervals": evaluated.intervals(rows, resamples),
        "bootstrap": {
            "over": "groups" if evaluated.manifest.has("group") else "images",
            "groups": evaluated.count_groups(rows),
            "resamples": resamples,
            "level": LEVEL,
            "seed": 0,
        },
    } | evaluated.details(resamples)
    if columns:
        report["subgroups"] = summarize_subgroups(evaluated, columns, resamples)
    return report


def summarize_subgroups(
    evaluated: EvaluatedUnits, columns: Sequence[str], resamples: int = RESAMPLES
) -> dict[str, list[dict[str, Any]]]:
    """Return for each column one row for each value: `value`, `n` units, `groups`, `few` (fewer than 20 groups) and
    `intervals`."""
    subgroups: dict[str, list[dict[str, Any]]] = {}
    for column in columns:
        subgroups[column] = []
        for value, rows in split_subgroups(evaluated.manifest, column):
            groups = evaluated.count_groups(rows)
            row = {"value": value, "n": len(rows), "groups": groups, "few": groups < FEW}
            subgroups[column].append({**row, "intervals": evaluated.intervals(rows, resamples)})
    return subgroups


def check_columns(manifest: Manifest, columns: Sequence[str]) -> None:
    """Raise a `UsageError` for a column that is missing, is empty, or identifies images or patients."""
    for column in columns:
        manifest.column(column)  # its error names the nearest column
        if column in (*FIXED, "group", "mask", "split"):
            raise UsageError(f"`by={column}`: this column is no property of a patient or image; give another column")
        if not manifest.has(column):
            raise UsageError(f"`by={column}`: the column is empty; leave it out")


def split_subgroups(manifest: Manifest, column: str) -> list[tuple[str, list[int]]]:
    """Return (value, rows) for each value of a column, in order; rows without a value come last.

    Numbers with more than 8 different values are split at their quartiles.

    Raises:
        UsageError: the column has too many values to be a property.
    """
    values = manifest.column(column)
    numbers = _parse_numbers(values)
    if numbers is not None and len(set(numbers[~np.isnan(numbers)])) > _NUMBERS:
        names: list[str | None] = _quartile_names(numbers)
        rising = [names[i] for i in np.argsort(numbers, kind="stable")]  # unknown values come last
        order = list(dict.fromkeys(name for name in rising if name is not None))
    else:
        names = [None if value is None else str(value) for value in values]
        counts = Counter(name for name in names if name is not None)
        if len(counts) > MAX_VALUES:
            raise UsageError(
                f"`by={column}`: it has {len(counts)} different values; give a column of at most {MAX_VALUES}"
            )
        order = sorted(counts)
    subgroups = [(value, [i for i, name in enumerate(names) if name == value]) for value in order]
    unknown = [i for i, name in enumerate(names) if name is None]
    return [*subgroups, *([("not known", unknown)] if unknown else [])]


def extreme_cases(evaluated: EvaluatedUnits, count: int) -> tuple[list[int], list[int]]:
    """Return the best and the worst `count` units, each from its end; no unit is in both."""
    order = np.argsort(-evaluated.scores, kind="stable").tolist()
    best = min(count, len(order) // 2)
    return order[:best], order[::-1][: min(count, len(order) - best)]


def _parse_numbers(values: Sequence[Any]) -> np.ndarray | None:
    """Return the values as numbers, nan where unknown; None if one is no number."""
    try:
        numbers = np.array([np.nan if value is None else float(value) for value in values])
    except ValueError:
        return None
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _quartile_names(numbers: np.ndarray) -> list[str | None]:
    """Return the range between quartiles in which each number lies."""
    edges = np.unique(np.nanquantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
    which = np.clip(np.searchsorted(edges, numbers, side="left"), 1, len(edges) - 1)
    names = [f"{'from' if i == 1 else 'over'} {edges[i - 1]:g} to {edges[i]:g}" for i in range(1, len(edges))]
    return [None if np.isnan(number) else names[i - 1] for number, i in zip(numbers, which, strict=True)]
