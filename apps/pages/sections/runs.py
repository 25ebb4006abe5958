"""Page of the comparison of several adapters on the same data."""

from collections.abc import Mapping
from html import escape
from typing import Any

from dinomed.adapters.task import find_task
from dinomed.apps.pages.sections.summary import used_seen
from dinomed.html.page import build_page, build_table, heading, next_steps, paragraph, verdict, with_contents
from dinomed.html.words import format_interval, format_value

_NBSP = "\N{NO-BREAK SPACE}"


def build_runs_page(report: Mapping[str, Any]) -> str:
    """Return the page, from the report of `dinomed.adapters.evaluation.runs.compare_runs`."""
    titles = find_task(report["task"]).metric_titles
    boot = report["bootstrap"]
    over = boot["over"]
    note = (
        f"Intervals: {boot['level']:.0%}, {boot['resamples']:,} resamples of {over}. A resample draws the same {over} "
        "for all adapters, so a difference is that of pairs. With many metrics and adapters some intervals exclude 0 "
        "by chance."
    )
    parts = [paragraph(note), heading("Metrics")]
    for name, better in report["better"].items():
        rows = [
            (
                run["name"], run["backbone"], run["metrics"][name]["value"], _interval(run["metrics"][name]),
                *_difference(run, name),
            )
            for run in report["runs"]
        ]  # fmt: skip
        values = [run["metrics"][name]["value"] for run in report["runs"]]
        known = [value for value in values if value == value]
        best = values.index(min(known) if better == "smaller" else max(known)) if known else None
        columns = ("adapter", "backbone", titles.get(name, name), "95% interval", "difference", "95% interval", "")
        parts += [f"<h3>{escape(titles.get(name, name))} ({better} is better)</h3>", build_table(columns, rows, best)]
    settings = ("adapter", "image size", "aspect", "images not compared")
    parts += [heading("Data"), build_table(settings, _data_rows(report))]
    parts.append(
        paragraph(
            "Images are compared that no adapter leaves out. On a test split an adapter leaves out images of its own "
            "training, unless seen images are allowed."
        )
    )
    command = f"dinomed evaluate {report['reference']} --data DATA --split {report['split']} -o report"
    parts += next_steps([(command, "the page of a single adapter, with curves and cases")])
    return build_page("Comparison", [verdict(describe_runs(report)), *with_contents(parts)])


def describe_runs(report: Mapping[str, Any]) -> str:
    """Return the differences of the first metric in sentences."""
    name = next(iter(report["better"]))
    title = find_task(report["task"]).metric_titles.get(name, name).partition(" (")[0]
    sign = -1 if report["better"][name] == "smaller" else 1
    better: list[str] = []
    worse: list[str] = []
    undecided: list[str] = []
    for run in report["runs"][1:]:
        row = run["difference"][name]
        text = f"{run['name']} ({row['value']:+.3f}, {_plain(row)})"
        low, high = sorted((sign * row["low"], sign * row["high"]))
        (better if low > 0 else worse if high < 0 else undecided).append(text)
    parts = [
        f"{', '.join(runs)} {text} {report['reference']}"
        for runs, text in ((better, "better than"), (worse, "worse than"), (undecided, "not distinguished from"))
        if runs
    ]
    unit = "groups" if report["unit"] == "group" else "images"
    seen = [run["name"] for run in report["runs"] if used_seen(run["seen_in_training"])]
    warning = f" METRICS TOO HIGH: the fit of {', '.join(seen)} used some of these images or groups." if seen else ""
    data = f"{report['n']:,} {unit} of {report['groups']:,} independent groups"
    return f"{title} on {data}: {'; '.join(parts)}.{warning}"


def difference_rows(report: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return columns and rows for a terminal: each adapter and metric, with its difference."""
    rows = []
    for name in report["better"]:
        for run in report["runs"]:
            value = run["metrics"][name]
            rows.append((name, run["name"], value["value"], _plain(value), *_difference(run, name)))
    columns = ("metric", "adapter", report["split"], "95% interval", "difference", "95% interval", "")
    return columns, [tuple(cell.replace(_NBSP, " ") if isinstance(cell, str) else cell for cell in row) for row in rows]


def _data_rows(report: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return [(run["name"], run["image_size"], run["aspect"], run["left_out"]) for run in report["runs"]]


def _difference(run: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    if run["difference"] is None:
        return "reference", "", ""
    row = run["difference"][name]
    clear = row["low"] > 0 or row["high"] < 0
    return f"{row['value']:+.3f}", _interval(row), "interval without 0" if clear else ""


def _interval(row: Mapping[str, float]) -> str:
    return format_interval(row["low"], row["high"])


def _plain(row: Mapping[str, float]) -> str:
    return f"{format_value(float(row['low']))} to {format_value(float(row['high']))}"
