"""Section of a segmenter on the page of an evaluation: histogram of Dice, Dice by lesion size and by threshold."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinomed.adapters.evaluated import EvaluatedValues
from dinomed.adapters.task import find_task
from dinomed.adapters.tasks.segment.evaluated import EvaluatedMasks
from dinomed.apps.pages.plots import square
from dinomed.html.drawing import EDGE, PALETTE, SOFT, Drawing
from dinomed.html.page import build_table, heading, paragraph
from dinomed.html.plots import TICK_SIZE, place_drawing

BINS = 20
MAX_DOTS = 2000
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 420, 230, 46, 12, 12, 36  # px


def build_mask_section(result: Mapping[str, Any], evaluated: EvaluatedValues) -> list[str]:
    """Return the tables of the task, and the plots of Dice over the images."""
    parts: list[str] = []
    for table in find_task(result["task"]).report_tables(result):
        parts += [heading(table.title), paragraph(table.note), build_table(table.columns, table.rows)]
    dice = np.asarray(evaluated.columns["dice"])
    parts += [heading("Dice of the images"), draw_histogram(dice[~np.isnan(dice)])]
    if isinstance(evaluated, EvaluatedMasks):
        parts.append(draw_by_size(evaluated.target_shares, dice))
        rows = [(row["size"], row["n"], row["dice"]) for row in result["dice_by_size"]]
        parts += [heading("Dice by lesion size"), build_table(("area of the reference mask", "n", "Dice"), rows)]
        if result["dice_by_threshold"] is not None:
            parts += [heading("Dice by threshold"), _by_threshold(result)]
    return parts


def _by_threshold(result: Mapping[str, Any]) -> str:
    points = [(row["threshold"], row["dice"]) for row in result["dice_by_threshold"]]
    best = max(points, key=lambda point: point[1])
    used = result["threshold"]
    lines = {"mean Dice": points, f"threshold of the adapter: {used:g}": [(used, 0.0), (used, 1.0)]}
    caption = f"Mean Dice at every threshold; the best of this data is {best[0]:g} ({best[1]:.3f})"
    note = "The threshold comes from the training. The best one of this data is shown, and must not be chosen from it."
    return square(lines, caption, ("threshold", "mean Dice")) + f'<p class="soft">{note}</p>'


def draw_histogram(values: np.ndarray) -> str:
    """Return a histogram of values from 0 to 1, as SVG."""
    if not len(values):
        return ""
    counts, edges = np.histogram(values, bins=BINS, range=(0, 1))
    highest = int(counts.max())
    middle = float(np.median(values))
    caption = f"Images by Dice; red line: median {middle:.3f}"
    drawing = Drawing(_WIDTH, _HEIGHT, caption)
    for count, left, right in zip(counts.tolist(), edges, edges[1:], strict=False):
        x0, x1 = _across(left), _across(right)
        height = count / highest * (_HEIGHT - _TOP - _BOTTOM)
        box = (x0 + 0.5, _HEIGHT - _BOTTOM - height, x1 - x0 - 1, height)
        drawing.bar(box, PALETTE[0], f"{left:.2f} to {right:.2f}: {count:,}")
    drawing.line([(_across(middle), _TOP), (_across(middle), _HEIGHT - _BOTTOM)], PALETTE[1], 2)
    ticks = [(_across(value), f"{value:g}") for value in (0, 0.25, 0.5, 0.75, 1)]
    _draw_axes(drawing, ticks, [(_HEIGHT - _BOTTOM, "0"), (_TOP + 4, f"{highest:,}")], "Dice")
    return place_drawing(drawing, caption)


def draw_by_size(shares: np.ndarray, dice: np.ndarray) -> str:
    """Return the Dice of each image against the area of its reference mask (share of the image, on a log scale)."""
    known = np.flatnonzero((shares > 0) & ~np.isnan(dice))
    if len(known) < 2:
        return ""
    chosen = known[np.unique(np.linspace(0, len(known) - 1, min(MAX_DOTS, len(known))).round().astype(int))]
    sizes = np.log10(shares[known])
    low, high = float(sizes.min()) - 0.05, float(sizes.max()) + 0.05

    def across(share: float) -> float:
        return _LEFT + (np.log10(share) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    shown = "" if len(chosen) == len(known) else f" ({len(chosen):,} of {len(known):,} images)"
    caption = f"Dice by lesion size{shown}"
    drawing = Drawing(_WIDTH, _HEIGHT, caption)
    drawing.dots(np.array([(across(shares[i]), _up(dice[i])) for i in chosen]), 2.6, PALETTE[0])
    marks = [value for value in (0.0001, 0.001, 0.01, 0.1, 0.3, 1.0) if low <= np.log10(value) <= high]
    marks = marks or [10 ** ((low + high) / 2)]
    ticks = [(across(value), f"{100 * value:.3g}%") for value in marks]
    heights = [(_up(value) + 4, f"{value:g}") for value in (0, 0.5, 1)]
    _draw_axes(drawing, ticks, heights, "area of the reference mask")
    return place_drawing(drawing, caption)


def _across(value: float) -> float:
    return _LEFT + float(value) * (_WIDTH - _LEFT - _RIGHT)


def _up(value: float) -> float:
    return _HEIGHT - _BOTTOM - float(value) * (_HEIGHT - _TOP - _BOTTOM)


def _draw_axes(
    drawing: Drawing, ticks: Sequence[tuple[float, str]], heights: Sequence[tuple[float, str]], name: str
) -> None:
    """Draw both axes with their numbers (place, text), and the name of the horizontal one."""
    bottom = _HEIGHT - _BOTTOM
    drawing.line([(_LEFT, _TOP), (_LEFT, bottom), (_WIDTH - _RIGHT, bottom)], EDGE, 1)
    for x, text in ticks:
        drawing.text((x, bottom + 14), text, size=TICK_SIZE, color=SOFT, anchor="middle")
    for y, text in heights:
        drawing.text((_LEFT - 5, y), text, size=TICK_SIZE, color=SOFT, anchor="end")
    drawing.text(((_LEFT + _WIDTH) / 2, _HEIGHT - 5), name, size=TICK_SIZE, color=SOFT, anchor="middle")
