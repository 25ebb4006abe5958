"""Report of an evaluation: metrics with intervals over groups, subgroups, and the best and worst cases.

It does not depend on the task, which provides `EvaluatedUnits`. No result names an image or a group.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dinomed.adapters.evaluated import MIN_GROUPS, EvaluatedUnits
from dinomed.adapters.evaluation.abstention import summarize_abstention
from dinomed.adapters.evaluation.comparison import compare
from dinomed.adapters.evaluation.subgroups import split_subgroups
from dinomed.metrics.bootstrap import LEVEL, RESAMPLES


def summarize(evaluated: EvaluatedUnits, by: Sequence[str] = (), resamples: int = RESAMPLES) -> dict[str, Any]:
    """Return the report of all units.

    Args:
        evaluated: predictions and targets.
        by: columns of the manifest, columns with bands, or pairs of them, that define subgroups; see
            `dinomed.adapters.evaluation.subgroups`.
        resamples: number of bootstrap resamples of the groups.

    Returns:
        `metrics`, `intervals`, `bootstrap` (its settings), the details of the task, `abstention`, and, if `by` is not
        empty, `subgroups` and `gaps`.
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
    report["abstention"] = summarize_abstention(evaluated, resamples)
    if by:
        report["subgroups"] = summarize_subgroups(evaluated, by, resamples)
        report["gaps"] = {
            entry: compare(evaluated, split_subgroups(evaluated.manifest, entry), resamples) for entry in by
        }
    return report


def summarize_subgroups(
    evaluated: EvaluatedUnits, by: Sequence[str], resamples: int = RESAMPLES
) -> dict[str, list[dict[str, Any]]]:
    """Return for each entry of `by` one row for each subgroup: `value`, `n` units, `groups`, `few` (fewer than 20
    groups) and `intervals`."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for entry in by:
        tables[entry] = []
        for subgroup in split_subgroups(evaluated.manifest, entry):
            groups = evaluated.count_groups(subgroup.rows)
            row = {"value": subgroup.value, "n": len(subgroup.rows), "groups": groups, "few": groups < MIN_GROUPS}
            tables[entry].append({**row, "intervals": evaluated.intervals(subgroup.rows, resamples)})
    return tables


def extreme_cases(evaluated: EvaluatedUnits, count: int) -> tuple[list[int], list[int]]:
    """Return the best and the worst `count` units, each from its end; no unit is in both."""
    order = np.argsort(-evaluated.scores, kind="stable").tolist()
    best = min(count, len(order) // 2)
    return order[:best], order[::-1][: min(count, len(order) - best)]
