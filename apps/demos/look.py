"""Page, style sheet, script and texts of the demos, from the files in `static/`."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr

from dinomed.apps.pages.sheet import read_sort_script
from dinomed.explore.live_page import read_scripts
from dinomed.notice import RESEARCH_USE

STATIC = Path(__file__).parent / "static"
SCRIPTS = (
    "regions.js",
    "viewer.js",
    "app.js",
    "segment.js",
    "grow.js",
    "queue.js",
    "correct.js",
    "measure.js",
    "cases.js",
    "trust.js",
    "window.js",
    "frames.js",
    "explore.js",
    "batch.js",
)


@cache
def _texts() -> dict[str, str]:
    texts: dict[str, str] = json.loads((STATIC / "texts.json").read_text(encoding="utf-8"))
    return {"research": f"{RESEARCH_USE.capitalize()}.", **texts}


def text(name: str) -> str:
    """Return a text of the page, from `texts.json`."""
    return _texts()[name]


def fill_template(**parts: str) -> str:
    """Return the HTML of the page: ``[[name]]`` is replaced by a part, or by a text.

    Gradio reads the result as a template of JavaScript and of Handlebars, so their signs are replaced by references.
    """
    page = (STATIC / "app.html").read_text(encoding="utf-8")
    for name, value in {**_texts(), **parts}.items():
        page = page.replace(f"[[{name}]]", value)
    for sign, reference in (("`", "&#96;"), ("$", "&#36;"), ("{", "&#123;"), ("\\", "&#92;")):
        page = page.replace(sign, reference)
    return page


def script() -> str:
    """Return the script of the page, which Gradio calls with `element`, `server` and `upload`."""
    parts = [(STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS]
    parts[:0] = [read_scripts("similarity.js", "map_plane.js"), read_sort_script()]
    return "\n".join([f"const TEXT = {json.dumps(_texts())};", *parts, 'app.dataset.ready = "true";'])


def look() -> dict[str, Any]:
    """Return the theme and the style sheet for `launch`. System fonts only: others would be fetched."""
    style = (STATIC / "app.css").read_text(encoding="utf-8")
    return {
        "theme": gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        "head": f"<style>{style}</style>",
    }
