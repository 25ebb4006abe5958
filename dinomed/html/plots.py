"""Plots as parts of a page (`dinomed.html.page`): lines over training steps, and scatter plots."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from dinomed.html.drawing import PALETTE, SOFT, Drawing

COLORS = len(PALETTE)
"""Number of colours of groups."""
TICK_SIZE = 11
"""Size of the numbers and names of axes, px."""


def place_drawing(drawing: Drawing, caption: str, names: Sequence[str] = (), mark: str = "–", wide: bool = True) -> str:
    """Return a drawing as a figure of a page, with its caption and the names of its lines or groups below.

    Args:
        drawing: its colours of `PALETTE` follow the theme of the page.
        caption: text below the drawing.
        names: of the lines or groups, in the order of the colours.
        mark: sign of a line or a group in the legend.
        wide: the caption may be as wide as the drawing; otherwise the figures of a row have captions of one width.
    """
    keys = "".join(
        f'<span class="key"><b style="color:var(--c{number % COLORS})">{mark}</b> {escape(name)}</span> '
        for number, name in enumerate(names)
    )
    kind = f' class="wide" style="width:{drawing.width:g}px"' if wide else ""
    legend = f"<br>{keys}" if keys else ""
    return f"<figure{kind}>{drawing.to_svg(themed=True)}<figcaption>{escape(caption)}{legend}</figcaption></figure>"


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
        return across, top + (high - y) / (high - low) * (height - bottom - top)

    drawing = Drawing(width, height, caption)
    for name, value in marks.items():
        y = place(first, value)[1]
        drawing.line([(left, y), (width - 8, y)], SOFT, 1, dashed=True)
        drawing.text((width - 10, y - 3), name, size=TICK_SIZE, color=SOFT, anchor="end")
    for value in (low + margin, (low + high) / 2, high - margin):
        y = place(first, value)[1]
        drawing.text((left - 5, y + 4), f"{value:.3g}", size=TICK_SIZE, color=SOFT, anchor="end")
    drawing.text((left, height - 6), f"{first:g}", size=TICK_SIZE, color=SOFT)
    drawing.text((width - 8, height - 6), f"{unit} {last:g}", size=TICK_SIZE, color=SOFT, anchor="end")
    drawing.line([place(*point) for point in points], PALETTE[0], 1.8)
    return place_drawing(drawing, caption, wide=False)


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
    names = [f"{name} ({len(points):,})" for name, points in groups.items()]
    return place_drawing(draw_points(groups, caption, box=box, width=width), caption, names, "●")
