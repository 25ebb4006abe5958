"""Tables and curves of `label_efficiency.py`, from its finished runs."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.adapters.evaluation.draws import interval_over_draws
from dinomed.adapters.heads.solved.solve import macro_auroc
from dinomed.apps.pages.plots import bands, draw_bands
from dinomed.html.drawing import write_drawing
from dinomed.html.page import build_page, build_table, heading, paragraph
from dinomed.io.files import write_text

SOURCES = {
    "same": "same source",
    "other": "another source",
    "unseen": "another source, val and test",  # the backbone has not seen them
}
METRIC = {"segment": "mean Dice", "classify": "macro AUROC"}
DIFFERENCES = (
    "Differences between the same images and draws, above 0 where the head is better; in parentheses as above."
)
Row = Mapping[str, Any]
Cell = tuple[float, float, float, int]
"""Mean over the draws, ends of the interval, and number of draws."""


def write_report(rows: Sequence[Row], folder: Path) -> None:
    """Write ``results.md``, ``index.html`` and the curves as SVG into a folder."""
    parts, lines = [], []
    groups: dict[tuple[str, str, float | None], list[Row]] = defaultdict(list)
    for row in rows:
        if "failed" not in row:
            groups[row["data"], row["task"], row["seconds"]].append(row)
    for (data, task, seconds), members in groups.items():
        length = "free" if seconds is None else f"{seconds:g}s"
        title = f"{data}, {METRIC[task]}, {length_word(seconds)}"
        counts = sorted(
            {row["count"] for row in members}, key=lambda word: float("inf") if word == "all" else int(word)
        )
        parts += [heading(title), *draw_curves(members, counts, task, folder / f"{data}_{length}".replace(" ", "_"))]
        lines += [f"### {title}", ""]
        for (columns, table), text in (
            (build_cells(members, counts), note(task)),
            (build_differences(members, counts), DIFFERENCES),
        ):
            if table:
                parts += [build_table(columns, table), paragraph(text)]
                lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
                lines += ["| " + " | ".join(line) + " |" for line in table] + ["", text, ""]
    write_text(folder / "results.md", "\n".join(lines) + "\n")
    write_text(folder / "index.html", build_page("Label efficiency", parts))


def sources_of(rows: Sequence[Row]) -> dict[str, str]:
    """Return the sources that all rows were tested on, with their names."""
    return {source: name for source, name in SOURCES.items() if all(source in row for row in rows)}


def length_word(seconds: float | None) -> str:
    """Return the length of a run as text."""
    return "as long as each wants" if seconds is None else f"{seconds:g} processor seconds each"


def note(task: str) -> str:
    """Return how the intervals are to be read."""
    if task == "classify":
        return "In parentheses the lowest and the highest of the draws; then the processor seconds, features included."
    return (
        "In parentheses the 95% interval over draws and groups of test images, both resampled; then the processor "
        "seconds, features included. A cell with fewer draws names them."
    )


def build_cells(rows: Sequence[Row], counts: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of the table: one row a head, two columns a number of images."""
    sources = sources_of(rows)
    columns = ["head", *(f"{count}: {name}" for count in counts for name in (*sources.values(), "s"))]
    draws = max(len({row["draw"] for row in rows}), 1)
    table = []
    for head in dict.fromkeys(row["head"] for row in rows):
        line = [head]
        for count in counts:
            runs = [row for row in rows if row["head"] == head and row["count"] == count]
            for source in sources:
                mean, low, high, number = summarize([row[source] for row in runs])
                fewer = f", {number} of {draws}" if number < draws and count != "all" else ""
                line.append(f"{mean:.3f} ({low:.3f} to {high:.3f}{fewer})" if number else "")
            spent = [sum(row["spent"].values()) for row in runs]
            line.append(f"{np.mean(spent):.0f}" if spent else "")
        table.append(line)
    return columns, table


def build_differences(rows: Sequence[Row], counts: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of the differences between each head and the network from scratch, over the draws
    that both have."""
    sources = sources_of(rows)
    columns = [
        "difference to the network from scratch",
        *(f"{count}: {name}" for count in counts for name in sources.values()),
    ]
    runs = {(row["head"], row["count"], row["draw"]): row for row in rows}
    scratch = next((row["head"] for row in rows if row["head"].endswith("from scratch")), None)
    table = []
    for head in dict.fromkeys(row["head"] for row in rows if row["head"] != scratch):
        line = [head]
        for count in counts:
            draws = [draw for name, number, draw in runs if (name, number) == (head, count)]
            pairs = [
                (runs[head, count, draw], runs[scratch, count, draw])
                for draw in draws
                if (scratch, count, draw) in runs
            ]
            for source in sources:
                mean, low, high, number = summarize_differences(
                    [(ours[source], theirs[source]) for ours, theirs in pairs]
                )
                line.append(f"{mean:+.3f} ({low:+.3f} to {high:+.3f})" if number else "")
        if any(line[1:]):
            table.append(line)
    return columns, table


def draw_curves(rows: Sequence[Row], counts: Sequence[str], task: str, files: Path) -> list[str]:
    """Return the curves of each test source for a page, and write each to a file whose name begins as `files`."""
    figures = []
    for source, title in sources_of(rows).items():
        heads = list(dict.fromkeys(row["head"] for row in rows))
        lines = {
            head: [
                summarize([row[source] for row in rows if row["head"] == head and row["count"] == count])[:3]
                for count in counts
            ]
            for head in heads
        }
        caption = f"tested on the {title}" if source == "same" else f"tested on {title}"
        axes = ("labelled images", METRIC[task])
        drawing = draw_bands(lines, counts, caption, axes, legend=True)
        if drawing is not None:
            figures.append(bands(lines, counts, caption, axes))
            write_drawing(drawing, files.with_name(f"{files.name}_{source}.svg"), drawing.label)
    return figures


def summarize(tests: Sequence[Mapping[str, Any]]) -> Cell:
    """Return the mean over the draws with its interval; all draws are tested on the same images."""
    if not tests:
        return float("nan"), float("nan"), float("nan"), 0
    if "targets" in tests[0]:
        scores = [macro_auroc(np.array(test["targets"]), np.array(test["scores"])) for test in tests]
        return float(np.mean(scores)), min(scores), max(scores), len(scores)
    return _over_draws(np.array([test["values"] for test in tests]), tests[0]["groups"])


def summarize_differences(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Cell:
    """Return the mean difference between the two of each draw with its interval, image by image where images have
    scores."""
    if not pairs:
        return float("nan"), float("nan"), float("nan"), 0
    if "targets" in pairs[0][0]:
        scores = [summarize([first])[0] - summarize([second])[0] for first, second in pairs]
        return float(np.mean(scores)), min(scores), max(scores), len(scores)
    values = np.array([np.subtract(first["values"], second["values"]) for first, second in pairs])
    return _over_draws(values, pairs[0][0]["groups"])


def _over_draws(values: np.ndarray, groups: Sequence[str]) -> Cell:
    """Return the mean of values (draws, images) with its interval."""
    low, high = interval_over_draws(values, groups)
    return float(values.mean()), low, high, len(values)
