"""Pages as single HTML files: no external files, no scripts but their own, embedded images, light and dark colours.

A page consists of parts. Each part is a string of HTML in which all input is escaped:

>>> "<b>" in build_page("A <b> title", [paragraph("2 < 3")])
False
"""

import base64
import hashlib
import io
import json
import re
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from dinomed.html.words import format_value
from dinomed.notice import RESEARCH_USE

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #0f172a; --line: #0891b2; --soft: #526075; --edge: #cbd5e1;
  --mark: #0891b21f; }
@media (prefers-color-scheme: dark) { :root { --page: #0f151d; --text: #e8edf3; --line: #22d3ee; --soft: #a3b1c4;
  --edge: #475569; --mark: #22d3ee24; } }
html { background: var(--page); color: var(--text); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.research { border-left: 4px solid #d97706; background: #d9770622; padding: .4rem .8rem; font-weight: 600; }
body { overflow-wrap: break-word; } h1, .research { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .8rem 0; } .scroll:focus-visible { outline: 2px solid var(--line); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--edge); text-align: left; }
th { color: var(--soft); font-weight: 600; } td.number { text-align: right; } tr.best { background: var(--mark); }
figure { display: inline-block; margin: .4rem .6rem .4rem 0; vertical-align: top; max-width: 100%; }
figure img { max-width: 100%; border-radius: 4px; } figcaption, .soft { font-size: .85rem; color: var(--soft); }
figcaption { max-width: 20rem; } figure.wide figcaption { max-width: none; }
details { margin: .8rem 0; } summary { cursor: pointer; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--mark); padding: .7rem .9rem;
  border-radius: 4px; font-size: .85rem; }
svg { border: 1px solid var(--edge); border-radius: 4px; max-width: 100%; }
svg text { fill: var(--soft); font-size: 11px; }
.pair { display: inline-block; vertical-align: top; margin: 0 1.2rem .6rem 0; } .pair p { margin: 0; }
td.bars { width: 14rem; } td.bars i { display: block; height: .5rem; margin: .12rem 0; border-radius: 2px; }
td.bars i:first-child { background: var(--soft); } td.bars i:last-child { background: var(--line); }
.verdict { font-size: 1.08rem; border-left: 4px solid var(--line); padding: .2rem .8rem; }
.contents { display: flex; flex-wrap: wrap; gap: .3rem 1rem; margin: 1rem 0; } a { color: inherit; }
.contents a, td a { text-decoration-color: var(--line); text-underline-offset: 3px; } td a { font-weight: 600; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; } :target { scroll-margin-top: 1rem; background: var(--mark); }
.key { display: inline-block; margin-right: .8rem; } .key b { font-size: 1.1rem; line-height: 1; }
:root { --c0: #0891b2; --c1: #dc2626; --c2: #94a3b8; --c3: #d97706; --c4: #7c3aed; --c5: #16a34a; --c6: #db2777;
  --c7: #92400e; }
@media (prefers-color-scheme: dark) { :root { --c0: #22d3ee; --c1: #f87171; --c2: #64748b; --c3: #fbbf24;
  --c4: #a78bfa; --c5: #4ade80; --c6: #f472b6; --c7: #d6a06a; } }
"""


def build_page(title: str, parts: Sequence[str], *, script: str = "", style: str = "") -> str:
    """Build the document, with the notice of research use at the top.

    Args:
        title: of the page.
        parts: HTML in which all input is escaped.
        script: JavaScript that runs at the end; the browser refuses every other script, by the hash of this one.
        style: further rules of CSS.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    runs = f"script-src 'sha256-{digest}'; " if script else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="generator" content="dinomed">'
        # Second protection besides escaping: the page may not run or load anything.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        f"{runs}style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head><body>\n<h1>{escape(title)}</h1>\n"
        f'<p class="research">{RESEARCH_USE.capitalize()}.</p>\n<main>\n'
        + "\n".join(parts)
        + "\n</main>"
        + (f"<script>{script}</script>" if script else "")
        + "</body></html>\n"
    )


def parts_of(document: str, name: str = "") -> str:
    """Return the parts of a document that `build_page` built, for another page.

    Args:
        name: put before the names that links lead to, so that those of several documents differ.

    >>> parts_of(build_page("Evaluation", [paragraph("all good")]))
    '<p>all good</p>'
    >>> parts_of(build_page("", ['<a href="#part-1">A</a><h2 id="part-1">A</h2>']), "mine")
    '<a href="#mine-part-1">A</a><h2 id="mine-part-1">A</h2>'
    """
    parts = document.partition("<main>\n")[2].rpartition("\n</main>")[0]
    return re.sub(r'(<[^>]* (?:id="|href="#))', rf"\g<1>{name}-", parts) if name else parts


def data_block(name: str, data: Any) -> str:
    """Return data as JSON in an element of this name, for the script of a page."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{escape(name)}">{text}</script>'


def verdict(result: str, limits: str = "") -> str:
    """Return the first paragraph of a page: the result in a sentence, and what limits it."""
    return f'<p class="verdict"><strong>{escape(result)}</strong> {escape(limits)}</p>'


def next_steps(commands: Sequence[tuple[str, str]], note: str = "") -> list[str]:
    """Return the section of the commands that follow.

    Args:
        commands: each with what it does, in a few words.
        note: on the words in capitals.
    """
    width = max(len(command) for command, _ in commands)
    lines = "\n".join(f"{command:<{width}}  # {what}" for command, what in commands)
    return [heading("Next"), *([paragraph(note)] if note else []), code(lines)]


def heading(text: str) -> str:
    """Return a heading."""
    return f"<h2>{escape(text)}</h2>"


def with_contents(parts: Sequence[str]) -> list[str]:
    """Return the parts with a list of links to their headings before the first heading.

    >>> with_contents([paragraph("before"), heading("A"), heading("B")])[1]
    '<nav class="contents" aria-label="Contents"><a href="#part-1">A</a> <a href="#part-2">B</a></nav>'
    """
    titles: list[str] = []
    marked: list[str] = []
    for part in parts:
        title = part.removeprefix("<h2>").removesuffix("</h2>")
        if part == f"<h2>{title}</h2>":
            titles.append(title)
            part = f'<h2 id="part-{len(titles)}">{title}</h2>'
        marked.append(part)
    links = " ".join(f'<a href="#part-{number}">{title}</a>' for number, title in enumerate(titles, 1))
    first = next((place for place, part in enumerate(marked) if part.startswith("<h2 id=")), len(marked))
    return [*marked[:first], f'<nav class="contents" aria-label="Contents">{links}</nav>', *marked[first:]]


def paragraph(text: str) -> str:
    """Return a paragraph."""
    return f"<p>{escape(text)}</p>"


def code(text: str) -> str:
    """Return preformatted text, such as settings and commands."""
    return f"<pre>{escape(text)}</pre>"


def folded(title: str, text: str) -> str:
    """Return a long text that is hidden until a click."""
    return f"<details><summary>{escape(title)}</summary>{code(text)}</details>"


def build_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], best: int | None = None) -> str:
    """Return a table with numbers aligned right and row `best` highlighted."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = ""
    for index, row in enumerate(rows):
        cells = "".join(_table_cell(value) for value in row)
        body += f"<tr class='best'>{cells}</tr>" if index == best else f"<tr>{cells}</tr>"
    return scrolling_table(head, body)


def scrolling_table(head: str, body: str) -> str:
    """Return a table in a box of its own, which scrolls on a narrow screen, by keyboard too."""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="Table">{table}</div>'


def _table_cell(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    text = escape(format_value(value))
    return f"<td class='number'>{text}</td>" if number or value is None else f"<td>{text}</td>"


def figure(
    image: np.ndarray, caption: str, *, wide: bool = False, max_side: int = 420, quality: int = 90, width_px: int = 260
) -> str:
    """Return an image, uint8 (H, W, 3), as an embedded JPEG with a caption.

    Args:
        wide: reduce to 1200 px in place of `max_side`.
        max_side: largest length of the longer side in px.
        quality: of the JPEG.
        width_px: smallest width on the page.
    """
    picture = Image.fromarray(image)
    side = 1200 if wide else max_side
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    source = jpeg_url(picture, quality)
    kind = ' class="wide"' if wide else ""
    return (
        f'<figure{kind}><img src="{source}" alt="{escape(caption)}" width="{max(picture.width, width_px)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def jpeg_url(picture: Image.Image | np.ndarray, quality: int = 90) -> str:
    """Return a picture as the data URL of a JPEG."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(np.ascontiguousarray(picture))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")


def build_bar_table(column: str, names: tuple[str, str], rows: Sequence[tuple[str, float, float]]) -> str:
    """Return a table of two numbers per row, with bars that show the share of each number in its column."""
    sums = (sum(row[1] for row in rows) or 1, sum(row[2] for row in rows) or 1)
    largest_share = max((max(first / sums[0], second / sums[1]) for _, first, second in rows), default=0) or 1
    head = "".join(f"<th>{escape(name)}</th>" for name in (column, names[0], "", names[1], "", ""))
    body = ""
    for name, *values in rows:
        shares = [value / total for value, total in zip(values, sums, strict=True)]
        cells = "".join(
            f"{_table_cell(value)}<td class='number soft'>{share:.1%}</td>"
            for value, share in zip(values, shares, strict=True)
        )
        bars = "".join(f'<i style="width:{100 * share / largest_share:.1f}%"></i>' for share in shares)
        body += f"<tr><td>{escape(name)}</td>{cells}<td class='bars'>{bars}</td></tr>"
    return scrolling_table(head, body)
