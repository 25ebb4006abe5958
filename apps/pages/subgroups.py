"""Section of subgroups on the page of an evaluation: metrics, the worst and the best subgroup, and their gaps."""

from collections.abc import Mapping, Sequence
from typing import Any

from dinomed.adapters.evaluated import MIN_GROUPS
from dinomed.adapters.evaluation.subgroups import UNKNOWN
from dinomed.adapters.task import find_task
from dinomed.html.page import build_table, heading, paragraph
from dinomed.html.words import format_interval, format_value

GAP_COLUMNS = ("measure", "worst subgroup", "value", "best subgroup", "value", "gap", "95% interval of the gap")
GAP_NOTE = (
    "The gap is the difference of the worst and the best judged subgroup. The two were chosen from these images, so "
    "with many or small subgroups the gap is too large on average. An interval that includes 0 shows no difference."
)
MAX_NAMED = 8
"""Largest number of subgroups whose numbers of groups are in a line."""
_TITLES = {"sensitivity": "sensitivity", "false_positive_rate": "false positive rate", "auroc": "AUROC"}


def build_subgroup_section(result: Mapping[str, Any]) -> list[str]:
    """Return the tables of all entries of ``--by``."""
    parts = []
    for entry, rows in result.get("subgroups", {}).items():
        comparison = result["gaps"][entry]
        parts += [heading(f"By {entry}"), _metrics_table(result, entry, rows)]
        gaps = gap_rows(comparison, result["task"])
        parts += [build_table(GAP_COLUMNS, gaps)] if gaps else []
        parts += [paragraph(line) for line in too_small_lines(comparison, rows)]
        parts += [f'<p class="soft">{GAP_NOTE}</p>', _values_table(result["task"], entry, comparison)] if gaps else []
        parts += _class_tables(entry, comparison)
    return parts


def _metrics_table(result: Mapping[str, Any], entry: str, rows: list[dict[str, Any]]) -> str:
    """Return the two first metrics of each subgroup with their intervals."""
    titles, first = find_task(result["task"]).metric_titles, list(result["intervals"])[:2]
    table = []
    for row in rows:
        intervals = [row["intervals"][name] for name in first]
        values = [part for each in intervals for part in (each["value"], format_interval(each["low"], each["high"]))]
        table.append((row["value"], row["n"], row["groups"], *values, "few groups: uncertain" if row["few"] else ""))
    names = [part for name in first for part in (_short(titles.get(name, name)), "95% interval")]
    return build_table((entry, "n", "groups", *names, ""), table)


def gap_rows(comparison: Mapping[str, Any], task: str) -> list[tuple[Any, ...]]:
    """Return a row of `GAP_COLUMNS` for each measure of all classes; none if no measure has a gap."""
    rows = [row for row in comparison["measures"] if row["class"] is None]
    known = any(row["gap"] is not None for row in rows)
    return [_gap_row(_title(row, task, comparison), row) for row in rows] if known else []


def largest_odds_gap(comparison: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Return a row of `GAP_COLUMNS` for the class with the largest equalised odds difference; None without one."""
    if not comparison["equalised_odds"]:
        return None
    row = comparison["equalised_odds"][0]
    return _gap_row(f"equalised odds: {_TITLES[row['measure']]} of {row['class']}", row)


def too_small_lines(comparison: Mapping[str, Any], subgroups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return lines about the subgroups that are too small to judge, and the rule; empty if all are judged.

    If fewer than two subgroups are large enough, one line has their numbers of groups and the number that is needed. If
    there is only one subgroup, the line says so.

    Args:
        comparison: the entry of ``gaps`` in a report.
        subgroups: the entry of ``subgroups`` in a report.
    """
    small = comparison["too_small"]
    sizes = {row["value"]: row["groups"] for row in subgroups if row["value"] != UNKNOWN}
    if len(sizes) == 1:
        return [
            f"no subgroups are compared: {next(iter(sizes))} is the only one, and at least two with "
            f"{MIN_GROUPS} groups each (patients, lesions or videos) are needed"
        ]
    if small and len(sizes) - len(small) < 2:
        counts = ", ".join(f"{name} has {count}" for name, count in [*sizes.items()][:MAX_NAMED])
        counts += f", and {len(sizes) - MAX_NAMED} more subgroups" if len(sizes) > MAX_NAMED else ""
        return [
            "no subgroups are compared: at least two of them need "
            f"{MIN_GROUPS} groups each (patients, lesions or videos); {counts}"
        ]
    lines = [f"too small to judge: {', '.join(small)}"] if small else []
    cells = [name for row in comparison["measures"] for name in row["too_small"] if name not in small]
    if cells:
        lines.append(f"{len(cells)} values of measures have too few groups with or without a class; they are not shown")
    return [*lines, f"rule: {comparison['rule']}"] if lines else []


def _class_tables(entry: str, comparison: Mapping[str, Any]) -> list[str]:
    rows = [row for row in comparison["measures"] if row["class"] is not None]
    if not any(row["values"] for row in rows):
        return []
    gaps = [_gap_row(f"{_TITLES[row['measure']]} of {row['class']}", row) for row in rows if row["gap"] is not None]
    parts = []
    odds = largest_odds_gap(comparison)
    if odds:
        parts.append(
            paragraph(
                f"Largest equalised odds difference: {odds[0].removeprefix('equalised odds: ')}, "
                f"{format_value(odds[5])} ({odds[6]}), between {odds[1]} and {odds[3]}."
            )
        )
    thresholds = ", ".join(f"{name} {value:.3f}" for name, value in comparison["thresholds"].items())
    parts.append(paragraph(f"Each class against the rest, at its threshold from val: {thresholds}."))
    columns = [f"{_TITLES[row['measure']]} of {row['class']}" for row in rows]
    return [*parts, *([build_table(GAP_COLUMNS, gaps)] if gaps else []), _values(entry, columns, rows)]


def _values_table(task: str, entry: str, comparison: Mapping[str, Any]) -> str:
    rows = [row for row in comparison["measures"] if row["class"] is None]
    return _values(entry, [_title(row, task, comparison) for row in rows], rows)


def _values(entry: str, columns: list[str], rows: list[dict[str, Any]]) -> str:
    """Return a table of the compared values: a row for each subgroup, a dash where it is too small."""
    names = list(dict.fromkeys(name for row in rows for name in (*row["values"], *row["too_small"])))
    return build_table((entry, *columns), [(name, *(row["values"].get(name) for row in rows)) for name in names])


def _gap_row(title: str, row: Mapping[str, Any]) -> tuple[Any, ...]:
    if row["gap"] is None:
        return (title, "fewer than two subgroups are judged", None, "", None, None, "")
    interval = format_interval(row["low"], row["high"])
    return (title, row["worst"], row["worst_value"], row["best"], row["best_value"], row["gap"], interval)


def _title(row: Mapping[str, Any], task: str, comparison: Mapping[str, Any]) -> str:
    title = _short(find_task(task).metric_titles.get(row["measure"], row["measure"]))
    classes = comparison["classes"]
    return f"{title} of {', '.join(classes)}" if classes and row["measure"] in ("auroc", "balanced_accuracy") else title


def _short(title: str) -> str:
    return title.partition(" (")[0]
