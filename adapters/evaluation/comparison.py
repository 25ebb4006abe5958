"""Comparison of subgroups: for each measure the worst and the best subgroup and their gap, with its interval."""

from collections.abc import Sequence
from typing import Any

from dinomed.adapters.evaluated import MIN_CASES, MIN_GROUPS, EvaluatedUnits, SubgroupMeasures
from dinomed.adapters.evaluation.subgroups import Subgroup
from dinomed.metrics.bootstrap import RESAMPLES
from dinomed.metrics.gaps import Gap, measure_gaps

RULE = (
    f"a subgroup is judged if it has at least {MIN_GROUPS} groups (patients, lesions or videos), and for the rates of "
    f"a class at least {MIN_CASES} groups with the class (sensitivity), without it (false positive rate), or both "
    "(AUROC)"
)


def compare(evaluated: EvaluatedUnits, subgroups: Sequence[Subgroup], resamples: int = RESAMPLES) -> dict[str, Any]:
    """Compare subgroups by every measure of `EvaluatedUnits.subgroup_measures`; rows without a value are left out.

    Args:
        evaluated: predictions and targets.
        subgroups: of `dinomed.adapters.evaluation.subgroups.split_subgroups`.
        resamples: number of bootstrap resamples of the groups.

    Returns:
        - `rule`: which subgroups are judged; `too_small`: those with too few groups for any measure; `classes`: the
          classes of the macro measures; `thresholds` of classes.
        - `measures`: a row for each measure: `measure`, `class` (or None), `values` (subgroup to value, judged ones
          only), `too_small` (subgroups that are not judged), `worst`, `worst_value`, `best`, `best_value`, `gap` (0 or
          more), `low`, `high` and `undefined` of its interval. All of them are None with fewer than two judged
          subgroups.
        - `equalised_odds`: for each class the larger one of its gaps in sensitivity and in the false positive rate
          (the equalised odds difference): `class`, `threshold`, `measure`, and the entries of that gap. Only for
          classes of which both gaps are known.
    """
    known = [subgroup for subgroup in subgroups if subgroup.known]
    if not known:
        return {"rule": RULE, "too_small": [], "classes": [], "thresholds": {}, "measures": [], "equalised_odds": []}
    rows = [subgroup.rows for subgroup in known]
    measures = evaluated.subgroup_measures(rows)
    values, gaps = measure_gaps(
        measures.statistics, rows, evaluated.groups, measures.judged, measures.lower_is_better, resamples=resamples
    )
    table = []
    for column, ((name, of_class), gap) in enumerate(zip(measures.names, gaps, strict=True)):
        judged = measures.judged[:, column] & (values[:, column] == values[:, column])
        table.append(
            {
                "measure": name,
                "class": of_class,
                "values": {known[i].value: float(values[i, column]) for i in range(len(known)) if judged[i]},
                "too_small": [known[i].value for i in range(len(known)) if not judged[i]],
                **_describe_gap(gap, known, values[:, column]),
            }
        )
    return {
        "rule": RULE,
        "too_small": [group.value for group in known if evaluated.count_groups(group.rows) < MIN_GROUPS],
        "classes": measures.classes,
        "thresholds": measures.thresholds,
        "measures": table,
        "equalised_odds": _equalised_odds(measures, table),
    }


def _describe_gap(gap: Gap | None, subgroups: Sequence[Subgroup], values: Any) -> dict[str, Any]:
    if gap is None:
        names = ("worst", "worst_value", "best", "best_value", "gap", "low", "high", "undefined")
        return dict.fromkeys(names)
    return {
        "worst": subgroups[gap.worst].value,
        "worst_value": float(values[gap.worst]),
        "best": subgroups[gap.best].value,
        "best_value": float(values[gap.best]),
        "gap": gap.value,
        "low": gap.interval.low,
        "high": gap.interval.high,
        "undefined": gap.interval.undefined,
    }


def _equalised_odds(measures: SubgroupMeasures, table: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the larger gap of each class, the largest one first."""
    rows = []
    for name, threshold in measures.thresholds.items():
        gaps = [
            row for row in table if row["class"] == name and row["measure"] in ("sensitivity", "false_positive_rate")
        ]
        if len(gaps) == 2 and all(row["gap"] is not None for row in gaps):
            larger = max(gaps, key=lambda row: float(row["gap"]))
            kept = {key: value for key, value in larger.items() if key not in ("values", "too_small")}
            rows.append({**kept, "threshold": threshold})
    return sorted(rows, key=lambda row: -row["gap"])
