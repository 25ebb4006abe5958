"""SVG curves and matrices for HTML pages: ROC, precision and recall, reliability, scores by the number of labels."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from dinomed.html.drawing import EDGE, PALETTE, SOFT, Drawing
from dinomed.html.page import scrolling_table
from dinomed.html.plots import COLORS, TICK_SIZE, place_drawing

Points = Sequence[tuple[float, float]]
Band = tuple[float, float, float]
"""A value with the lower and upper end of its band."""
MAX_POINTS = 160  # of a line; more are not visible and make the page large
LEGEND_LINE = 18  # px
_LEFT, _TOP, _SIDE, _BOTTOM = 40, 10, 230, 34  # px


def square(
    lines: Mapping[str, Points], caption: str, axes: tuple[str, str], *, diagonal: bool = False, dots: bool = False
) -> str:
    """Return a plot of lines in the unit square, each in its own colour, with a legend below.

    Args:
        lines: name -> points (x, y), both in 0 to 1.
        caption: text below the plot.
        axes: names of x and y.
        diagonal: draw the line from (0, 0) to (1, 1): chance, or perfect calibration.
        dots: mark the points.
    """
    drawing = Drawing(_LEFT + _SIDE + 14, _TOP + _SIDE + _BOTTOM, caption)
    (x0, y0), (x1, y1) = _place(0, 0), _place(1, 1)
    drawing.frame((x0, y1, x1 - x0, y0 - y1), EDGE, 1)
    if diagonal:
        drawing.line([(x0, y0), (x1, y1)], SOFT, 1, dashed=True)
    for value in (0, 0.5, 1):
        x, y = _place(value, value)
        drawing.text((x, y0 + 14), f"{value:g}", size=TICK_SIZE, color=SOFT, anchor="middle")
        drawing.text((x0 - 5, y + 4), f"{value:g}", size=TICK_SIZE, color=SOFT, anchor="end")
    drawing.text(((x0 + x1) / 2, y0 + 28), axes[0], size=TICK_SIZE, color=SOFT, anchor="middle")
    drawing.text((11, (y0 + y1) / 2), axes[1], size=TICK_SIZE, color=SOFT, anchor="middle", upright=True)
    for number, points in enumerate(lines.values()):
        color = PALETTE[number % COLORS]
        drawn = [_place(x, y) for x, y in thin(points)]
        drawing.line(drawn, color, 1.7)
        for point in drawn if dots else ():
            drawing.dot(point, 2.6, color)
    return place_drawing(drawing, caption, list(lines))


def bands(
    lines: Mapping[str, Sequence[Band]],
    ticks: Sequence[str],
    caption: str,
    axes: tuple[str, str],
    marks: Mapping[str, float] | None = None,
) -> str:
    """Return a plot of lines with bands (`draw_bands`) for a page, a legend below it; empty without a finite value."""
    drawing = draw_bands(lines, ticks, caption, axes, marks)
    if drawing is None:
        return ""
    return place_drawing(drawing, drawing.label, list(lines))


def draw_bands(
    lines: Mapping[str, Sequence[Band]],
    ticks: Sequence[str],
    caption: str,
    axes: tuple[str, str],
    marks: Mapping[str, float] | None = None,
    *,
    legend: bool = False,
) -> Drawing | None:
    """Draw lines with bands: for each line one (value, low, high) for each of `ticks`; None without a finite value.

    Args:
        lines: name -> bands; a band that is not finite is left out.
        ticks: texts of the horizontal axis.
        caption: what the values were measured on, after the name of the vertical axis.
        axes: names of the horizontal and the vertical axis.
        marks: name -> value of dashed horizontal lines, such as chance.
        legend: write the vertical axis and the names of the lines into the drawing, for a file without a page.
    """
    width, left, bottom, top = 420, 46, 36, 28 if legend else 10
    height = top + 184 + bottom
    marks = marks or {}
    values = [value for rows in lines.values() for row in rows for value in row if np.isfinite(value)]
    if not values:
        return None
    values += marks.values()
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05
    low, high = low - margin, high + margin
    step = (width - left - 20) / max(len(ticks) - 1, 1)

    def place(index: int, value: float) -> tuple[float, float]:
        return left + 8 + index * step, top + (high - value) / (high - low) * (height - top - bottom)

    drawing = Drawing(width, height + (LEGEND_LINE * len(lines) + 6 if legend else 0), f"{axes[1]}: {caption}")
    for value in np.linspace(low + margin, high - margin, 4):
        y = place(0, value)[1]
        drawing.line([(left, y), (width - 4, y)], EDGE, 0.7)
        drawing.text((left - 4, y + 4), f"{value:.2f}", size=TICK_SIZE, color=SOFT, anchor="end")
    for number, rows in enumerate(lines.values()):
        color = PALETTE[number % COLORS]
        known = [(index, row) for index, row in enumerate(rows) if np.isfinite(row).all()]
        middle = [place(index, row[0]) for index, row in known]
        upper, lower = [place(index, row[2]) for index, row in known], [place(index, row[1]) for index, row in known]
        drawing.area([*upper, *reversed(lower)], color)
        drawing.line(middle, color, 1.8)
        for point in middle:
            drawing.dot(point, 2.6, color)
    for name, value in marks.items():
        y = place(0, value)[1]
        drawing.line([(left, y), (width - 4, y)], SOFT, 1, dashed=True)
        drawing.text((width - 6, y - 4), f"{name}: {value:.2f}", size=TICK_SIZE, color=SOFT, anchor="end")
    for index, tick in enumerate(ticks):
        drawing.text((place(index, low)[0], height - 20), tick, size=TICK_SIZE, color=SOFT, anchor="middle")
    drawing.text(((left + width) / 2, height - 5), axes[0], size=TICK_SIZE, color=SOFT, anchor="middle")
    if legend:
        drawing.text((left, 14), drawing.label, size=12, bold=True)
        for number, name in enumerate(lines):
            y = height + LEGEND_LINE * (number + 0.6)
            drawing.line([(left, y), (left + 18, y)], PALETTE[number % COLORS], 2.4)
            drawing.text((left + 26, y + 4), name, size=12)
    return drawing


def matrix(
    names: Sequence[str], counts: Sequence[Sequence[int]], links: Mapping[tuple[int, int], str] | None = None
) -> str:
    """Return a confusion matrix as a table: one row for each true class, shaded by the share of the row.

    Args:
        names: of the classes.
        counts: of each true class, by predicted class.
        links: (row, column) of a cell to the name of the part of the page with its cases.
    """
    links = links or {}
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = ""
    for true, (name, row) in enumerate(zip(names, counts, strict=True)):
        total = sum(row)
        cells = "".join(
            f"<td class='number' style='background:rgb(8 145 178 / {60 * value / total if total else 0:.0f}%)'>"
            f"{_linked(f'{value:,}', links.get((true, predicted)))}</td>"
            for predicted, value in enumerate(row)
        )
        body += f"<tr><th>{escape(name)}</th>{cells}<td class='number soft'>{total:,}</td></tr>"
    return scrolling_table(f"<th>true \\ predicted</th>{head}<th>all</th>", body)


def _linked(text: str, name: str | None) -> str:
    return text if name is None else f'<a href="#{name}">{text}</a>'


def thin(points: Points, most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """Return about `most` of the finite points, evenly along the line, with both ends.

    >>> len(thin([(x / 999, 0.5) for x in range(1000)])) <= MAX_POINTS + 1
    True
    """
    known = [(float(x), float(y)) for x, y in points if np.isfinite(x) and np.isfinite(y)]
    if len(known) <= most:
        return known
    table = np.array(known)
    along = np.r_[0, np.abs(np.diff(table, axis=0)).sum(axis=1).cumsum()]
    keep = np.unique(np.searchsorted(along, np.linspace(0, along[-1], most)))
    return [known[i] for i in np.unique([0, *keep[keep < len(known)], len(known) - 1])]


def _place(x: float, y: float) -> tuple[float, float]:
    return _LEFT + x * _SIDE, _TOP + (1 - y) * _SIDE
