"""Plots as parts of a page (`dinomed.html.page`): lines over training steps, and scatter plots."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from dinomed.html.drawing import PALETTE, Drawing

COLORS = len(PALETTE)
"""Number of colours of groups."""


def curve(
    points: Sequence[tuple[float, float]], caption: str, marks: Mapping[str, float] | None = None, unit: str = "step"
) -> str:
    """Return a line over training steps or epochs as SVG; empty with fewer than two finite points.

    Args:
        points: (step, value); points that are not finite are left out.
        marks: name -> value of horizontal lines, such as log K.
        unit: step or epoch.
    """
    points = [(x, y) for x, y in points if np.isfinite(x) and np.isfinite(y)]
    if len(points) < 2:
        return ""
    marks = marks or {}
    width, height, left, bottom, top = 310, 170, 56, 22, 10
    values = [y for _, y in points] + list(marks.values())
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.5
    low, high = low - margin, high + margin
    first, last = points[0][0], points[-1][0]

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (x - first) / max(last - first, 1e-9) * (width - left - 8)
        return round(across, 1), round(top + (high - y) / (high - low) * (height - bottom - top), 1)

    path = " ".join(f"{x},{y}" for x, y in (place(*point) for point in points))
    lines = ""
    for name, value in marks.items():
        _, y = place(first, value)
        lines += f'<line x1="{left}" x2="{width - 8}" y1="{y}" y2="{y}" stroke="var(--soft)" stroke-dasharray="3 3"/>'
        lines += f'<text x="{width - 10}" y="{y - 3}" text-anchor="end">{escape(name)}</text>'
    axis = "".join(
        f'<text x="{left - 5}" y="{place(first, y)[1] + 4}" text-anchor="end">{y:.3g}</text>'
        for y in (low + margin, (low + high) / 2, high - margin)
    )
    axis += f'<text x="{left}" y="{height - 6}">{first:g}</text>'
    axis += f'<text x="{width - 8}" y="{height - 6}" text-anchor="end">{unit} {last:g}</text>'
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(caption)}">{lines}{axis}<polyline points="{path}" fill="none" stroke="var(--line)" '
        f'stroke-width="1.8"/></svg><figcaption>{escape(caption)}</figcaption></figure>'
    )


def draw_points(
    groups: Mapping[str, np.ndarray], label: str, *, box: tuple[float, float, float, float], width: int = 460
) -> Drawing:
    """Draw the points of groups on a plane, each group in its colour of `PALETTE`.

    Args:
        groups: name -> points, float (n, 2). Later groups are drawn on top; a group without points keeps its colour.
        label: description for screen readers.
        box: (left, bottom, right, top) of the visible range; points outside are drawn at its edge.
        width: in px.
    """
    height = round(width * 0.8)
    drawing = Drawing(width, height, label)
    low, high = np.array(box[:2]), np.array(box[2:])
    radius = min(max(150 / max(sum(len(points) for points in groups.values()), 1) ** 0.5, 1.5), 4.5)
    for number, points in enumerate(groups.values()):
        if len(points):
            place = (np.clip(points, low, high) - low) / np.maximum(high - low, 1e-9)
            place = np.stack([4 + place[:, 0] * (width - 8), height - 4 - place[:, 1] * (height - 8)], axis=1)
            drawing.dots(place, radius, PALETTE[number % COLORS])
    return drawing


def scatter(
    groups: Mapping[str, np.ndarray], caption: str, *, box: tuple[float, float, float, float], width: int = 460
) -> str:
    """Return a scatter plot of groups (`draw_points`) for a page, with their names and counts below."""
    keys = "".join(
        f'<span class="key"><b style="color:var(--c{number % COLORS})">●</b> {escape(name)} ({len(points):,})</span> '
        for number, (name, points) in enumerate(groups.items())
    )
    plane = draw_points(groups, caption, box=box, width=width).to_svg(themed=True)
    caption = f"{escape(caption)}<br>{keys}"
    return f'<figure class="wide" style="width:{width}px">{plane}<figcaption>{caption}</figcaption></figure>'
