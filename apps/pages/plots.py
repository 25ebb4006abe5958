"""SVG curves and matrices for HTML pages: ROC, precision and recall, reliability, scores by the number of labels."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from dinomed.html.drawing import EDGE, PALETTE, SOFT, Drawing
from dinomed.html.page import scrolling_table
from dinomed.html.plots import COLORS

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
    paths, keys = "", ""
    for number, (name, points) in enumerate(lines.items()):
        color = f"var(--c{number % COLORS})"
        drawn = [_place(x, y) for x, y in thin(points)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
        paths += f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.7"/>'
        if dots:
            paths += "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{color}"/>' for x, y in drawn)
        keys += f'<span class="key"><b style="color:{color}">–</b> {escape(name)}</span> '
    (x0, y0), (x1, y1) = _place(0, 0), _place(1, 1)
    frame = f'<rect x="{x0}" y="{y1}" width="{x1 - x0}" height="{y0 - y1}" fill="none" stroke="var(--edge)"/>'
    if diagonal:
        frame += f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="var(--soft)" stroke-dasharray="3 3"/>'
    for value in (0, 0.5, 1):
        x, y = _place(value, value)
        frame += f'<text x="{x}" y="{y0 + 14}" text-anchor="middle">{value:g}</text>'
        frame += f'<text x="{x0 - 5}" y="{y + 4}" text-anchor="end">{value:g}</text>'
    frame += f'<text x="{(x0 + x1) / 2}" y="{y0 + 28}" text-anchor="middle">{escape(axes[0])}</text>'
    middle = (y0 + y1) / 2
    frame += (
        f'<text x="11" y="{middle}" text-anchor="middle" transform="rotate(-90 11 {middle})">{escape(axes[1])}</text>'
    )
    return _figure(frame + paths, _LEFT + _SIDE + 14, _TOP + _SIDE + _BOTTOM, caption, keys)


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
    keys = "".join(
        f'<span class="key"><b style="color:var(--c{number % COLORS})">–</b> {escape(name)}</span> '
        for number, name in enumerate(lines)
    )
    return (
        f'<figure class="wide" style="width:{drawing.width:g}px">{drawing.to_svg(themed=True)}'
        f"<figcaption>{escape(drawing.label)}<br>{keys}</figcaption></figure>"
    )


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
        drawing.text((left - 4, y + 4), f"{value:.2f}", size=11, color=SOFT, anchor="end")
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
        drawing.text((width - 6, y - 4), f"{name}: {value:.2f}", size=11, color=SOFT, anchor="end")
    for index, tick in enumerate(ticks):
        drawing.text((place(index, low)[0], height - 20), tick, size=11, color=SOFT, anchor="middle")
    drawing.text(((left + width) / 2, height - 5), axes[0], size=11, color=SOFT, anchor="middle")
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


def _figure(shapes: str, width: int, height: int, caption: str, keys: str) -> str:
    return (
        f'<figure class="wide" style="width:{width}px"><svg viewBox="0 0 {width} {height}" width="100%" role="img" '
        f'aria-label="{escape(caption)}">{shapes}</svg><figcaption>{escape(caption)}<br>{keys}</figcaption></figure>'
    )
