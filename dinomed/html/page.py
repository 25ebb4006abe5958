"""A report as one HTML file: no script, nothing fetched, pictures and curves inside; readable in light and dark.

A page is built of parts, each a string of HTML in which everything that came from outside is escaped:

>>> "<b>" in build_page("A <b> title", [paragraph("2 < 3")])
False
"""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from dinomed.html.words import cell
from dinomed.notice import RESEARCH_USE

_STYLE = """
:root { color-scheme: light dark; --line: #0891b2; --soft: #64748b; --edge: #cbd5e1; --mark: #0891b21f; }
@media (prefers-color-scheme: dark) { :root { --line: #22d3ee; --soft: #94a3b8; --edge: #475569; --mark: #22d3ee24; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.research { border-left: 4px solid #d97706; background: #d9770622; padding: .4rem .8rem; font-weight: 600; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--edge); text-align: left; }
th { color: var(--soft); font-weight: 600; } td.number { text-align: right; } tr.best { background: var(--mark); }
figure { display: inline-block; margin: .4rem .6rem .4rem 0; vertical-align: top; max-width: 100%; }
figure img { max-width: 100%; border-radius: 4px; } figcaption, .soft { font-size: .85rem; color: var(--soft); }
figcaption { max-width: 20rem; } figure.wide figcaption { max-width: none; }
details { margin: .8rem 0; } summary { cursor: pointer; }
pre { overflow-x: auto; background: var(--mark); padding: .7rem .9rem; border-radius: 4px; font-size: .85rem; }
svg { border: 1px solid var(--edge); border-radius: 4px; } svg text { fill: var(--soft); font-size: 11px; }
.pair { display: inline-block; vertical-align: top; margin: 0 1.2rem .6rem 0; } .pair p { margin: 0; }
td.bars { width: 14rem; } td.bars i { display: block; height: .5rem; margin: .12rem 0; border-radius: 2px; }
td.bars i:first-child { background: var(--soft); } td.bars i:last-child { background: var(--line); }
.key { white-space: nowrap; margin-right: .8rem; } .key b { font-size: 1.1rem; line-height: 1; }
:root { --c0: #0891b2; --c1: #dc2626; --c2: #94a3b8; --c3: #d97706; --c4: #7c3aed; --c5: #16a34a; --c6: #db2777;
  --c7: #92400e; }
@media (prefers-color-scheme: dark) { :root { --c0: #22d3ee; --c1: #f87171; --c2: #64748b; --c3: #fbbf24;
  --c4: #a78bfa; --c5: #4ade80; --c6: #f472b6; --c7: #d6a06a; } }
"""
COLORS = 8
"""Colours that `scatter` has."""


def build_page(title: str, parts: Sequence[str]) -> str:
    """The whole document; the line that it is for research stands at the top."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Even if something slipped through the escaping, this page may not run or fetch it.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n<h1>{escape(title)}</h1>\n"
        f'<p class="research">{RESEARCH_USE.capitalize()}.</p>\n' + "\n".join(parts) + "\n</body></html>\n"
    )


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def code(text: str) -> str:
    """Text as it is, in a box: settings, commands."""
    return f"<pre>{escape(text)}</pre>"


def folded(title: str, text: str) -> str:
    """A long text that a click opens."""
    return f"<details><summary>{escape(title)}</summary>{code(text)}</details>"


def build_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], best: int | None = None) -> str:
    """Rows under column names, numbers to the right; row `best` is marked."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = ""
    for index, row in enumerate(rows):
        cells = "".join(_cell(value) for value in row)
        body += f"<tr class='best'>{cells}</tr>" if index == best else f"<tr>{cells}</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    text = escape(cell(value))
    return f"<td class='number'>{text}</td>" if number or value is None else f"<td>{text}</td>"


def figure(
    image: np.ndarray, caption: str, *, wide: bool = False, max_side: int = 420, quality: int = 90, width_px: int = 260
) -> str:
    """A picture, uint8 (H, W, 3), reduced to `max_side` px (`wide`: 1200) so that the file stays small.

    Args:
        quality: of the JPEG.
        width_px: shown at least so wide.
    """
    picture = Image.fromarray(image)
    side = 1200 if wide else max_side
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=quality, subsampling=0)
    source = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
    kind = ' class="wide"' if wide else ""
    return (
        f'<figure{kind}><img src="{source}" alt="{escape(caption)}" width="{max(picture.width, width_px)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def curve(points: Sequence[tuple[float, float]], caption: str, marks: Mapping[str, float] | None = None) -> str:
    """One line over steps as SVG; `marks` are horizontal lines with a name (log K, for example).

    Points that are not finite are left out.
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
    axis += f'<text x="{width - 8}" y="{height - 6}" text-anchor="end">step {last:g}</text>'
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(caption)}">{lines}{axis}<polyline points="{path}" fill="none" stroke="var(--line)" '
        f'stroke-width="1.8"/></svg><figcaption>{escape(caption)}</figcaption></figure>'
    )


def compare(column: str, names: tuple[str, str], rows: Sequence[tuple[str, float, float]]) -> str:
    """A table of two numbers a row, (name, one, other), with bars: the share of each in the sum of its column."""
    sums = (sum(row[1] for row in rows) or 1, sum(row[2] for row in rows) or 1)
    most = max((max(one / sums[0], other / sums[1]) for _, one, other in rows), default=0) or 1
    head = "".join(f"<th>{escape(name)}</th>" for name in (column, names[0], "", names[1], "", ""))
    body = ""
    for name, *values in rows:
        shares = [value / total for value, total in zip(values, sums, strict=True)]
        cells = "".join(
            f"{_cell(value)}<td class='number soft'>{share:.1%}</td>"
            for value, share in zip(values, shares, strict=True)
        )
        bars = "".join(f'<i style="width:{100 * share / most:.1f}%"></i>' for share in shares)
        body += f"<tr><td>{escape(name)}</td>{cells}<td class='bars'>{bars}</td></tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def scatter(
    groups: Mapping[str, np.ndarray], caption: str, *, box: tuple[float, float, float, float], width: int = 460
) -> str:
    """Points of up to `COLORS` groups, each float (n, 2), as SVG with their names and numbers below.

    Args:
        groups: the first are drawn on top; a group without points keeps its colour.
        box: (left, bottom, right, top) of what is seen; points outside are drawn at the edge.
    """
    height = round(width * 0.8)
    low, high = np.array(box[:2]), np.array(box[2:])
    paths, keys = "", ""
    dot = min(max(300 / max(sum(len(points) for points in groups.values()), 1) ** 0.5, 3.0), 9.0)
    for number, (name, points) in enumerate(groups.items()):
        color = f"var(--c{number % COLORS})"
        place = (np.clip(points, low, high) - low) / np.maximum(high - low, 1e-9)
        place = np.stack([4 + place[:, 0] * (width - 8), height - 4 - place[:, 1] * (height - 8)], axis=1)
        dots = "".join(f"M{x:.0f} {y:.0f}h0" for x, y in place)  # a line of no length with round ends
        paths = (f'<path d="{dots}" stroke="{color}"/>' if dots else "") + paths
        key = f"{escape(name)} ({len(points):,})"
        keys += f'<span class="key"><b style="color:{color}">●</b> {key}</span> '
    return (
        f'<figure class="wide" style="width:{width}px"><svg viewBox="0 0 {width} {height}" width="100%" role="img" '
        f'aria-label="{escape(caption)}" stroke-width="{dot:.1f}" stroke-linecap="round" stroke-opacity="0.65">'
        f"{paths}</svg><figcaption>{escape(caption)}<br>{keys}</figcaption></figure>"
    )
