"""Page of a map of images: points coloured by a column, thumbnails under the pointer, selection by lasso."""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from dinomed.burned_in_text.mask import TextMask
from dinomed.datasets.manifest import FIXED, KNOWN, NAMES, SAMPLES, Manifest
from dinomed.datasets.pixels import read_row
from dinomed.explore.live_page import read_scripts
from dinomed.html.page import build_page, data_block
from dinomed.images.read import UnreadableImage
from dinomed.io.prefetch import prefetch
from dinomed.progress import bar

NAMED = 7  # values of a column that have a colour of their own
OTHER, UNKNOWN = "other", "unknown"
_HIDDEN = (*FIXED, *SAMPLES, "mask", "path", "row")  # columns that describe the file
_SHEET = 20  # thumbnails in a row and in a column of a sheet
_HELP = (
    "Draw a line around points to select them; a click or tap selects one and writes its values below; the wheel "
    "enlarges. Keys: arrows move a cross, Enter selects the point at it, Space sets two corners of a rectangle, + and "
    "\u2212 zoom, 0 fits, Escape clears."
)
_STYLE = """
body { max-width: 84rem; } .map { display: grid; grid-template-columns: minmax(0, 1fr) 17rem; gap: 14px; }
.map-plane { position: relative; } .map-plane canvas { display: block; width: 100%; height: 74vh; min-height: 320px;
  border: 1px solid var(--edge); border-radius: 6px; touch-action: none; cursor: crosshair; }
.map-plane canvas:focus-visible { outline: 3px solid var(--line); } .map-move canvas { cursor: grab; }
.map-tip { position: absolute; pointer-events: none; background: Canvas; border: 1px solid var(--edge); padding: 5px;
  border-radius: 6px; font-size: .8rem; max-width: 15rem; overflow-wrap: anywhere; }
.map-tip canvas, .map-grid canvas { all: unset; display: block; } .map-side > * { margin: 0 0 .7rem; }
.map-side button, .map-side select { font: inherit; padding: 4px 10px; }
.map-legend { list-style: none; padding: 0; } .map-legend label { display: flex; gap: 7px; align-items: center;
  min-height: 28px; } .map-legend input { width: 18px; height: 18px; margin: 0; flex: none; }
.map-legend i { width: 12px; height: 12px; border-radius: 50%; flex: none; }
.map-grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(56px, 1fr)); gap: 3px; }
@media (max-width: 760px) { .map { grid-template-columns: minmax(0, 1fr); } .map-plane canvas { height: 60vh; } }
"""


def colour_columns(manifest: Manifest, *, names: bool = False) -> dict[str, list[Any]]:
    """Return the columns that hold values, except those that describe the file.

    Args:
        names: keep the names of groups and the columns of `may_hold_names`, which may identify patients; otherwise
            groups are numbered in the order of their first occurrence, and these columns are left out.
    """
    columns = {
        name: manifest.column(name)
        for name in manifest.columns
        if name not in _HIDDEN and manifest.has(name) and (names or not may_hold_names(manifest, name))
    }
    if "group" in columns and not names:
        numbers: dict[Any, int] = {}
        columns["group"] = [
            None if value is None else f"group {numbers.setdefault(value, len(numbers) + 1)}"
            for value in columns["group"]
        ]
    return columns


def may_hold_names(manifest: Manifest, column: str) -> bool:
    """Return whether a column may hold names of files, which may identify patients: of videos, volumes or targets."""
    if column in NAMES or column in KNOWN:
        return column in NAMES
    first = next((value for value in manifest.column(column) if value is not None), None)
    return isinstance(first, str) and (manifest.root / first).is_file()


def colour_groups(values: Sequence[Any]) -> tuple[list[str], np.ndarray]:
    """Divide the values of a column into at most `NAMED` frequent ones, the others, and the unknown ones.

    Returns:
        The names of the groups, the most frequent value first, and the number of the group of each value, int (N,).
    """
    known = Counter(str(value) for value in values if value is not None)
    names = [name for name, _ in sorted(known.items(), key=lambda item: (-item[1], item[0]))[:NAMED]]
    number = {name: place for place, name in enumerate(names)}
    groups = np.array([-2 if value is None else number.get(str(value), -1) for value in values])
    for mark, name in ((-1, OTHER), (-2, UNKNOWN)):
        if (groups == mark).any():
            groups[groups == mark] = len(names)
            names.append(name)
    return names, groups


def build_map_page(
    points: np.ndarray,
    manifest: Manifest,
    columns: Mapping[str, Sequence[Any]],
    *,
    chosen: str | None,
    rows: Sequence[int],
    note: str,
    names: bool = False,
    star: np.ndarray | None = None,
    mask: TextMask | None = None,
) -> str:
    """Build the page. Nothing is loaded and nothing leaves it.

    Args:
        points: float (N, 2).
        manifest: the N images.
        columns: name -> N values, by which the points can be coloured.
        chosen: column at the start.
        rows: the rows of the images in the whole manifest.
        note: how the map was made.
        names: write the paths and the manifest of the images into the page, so that a selection is saved as a manifest.
            Otherwise it is saved as a list of rows, because names of files may identify patients.
        star: the position (2,) of one more image.
        mask: masks burned-in text in the thumbnails.
    """
    place = to_unit(points if star is None else np.vstack([points, star]))
    side = 96 if len(points) <= 1000 else 64 if len(points) <= 5000 else 40
    data: dict[str, Any] = {
        "points": (place[: len(points)] * 65535).round().astype(int).ravel().tolist(),
        "star": None if star is None else place[-1].tolist(),
        "chosen": chosen,
        "rows": [int(row) for row in rows],
        "side": side,
        "sheet": _SHEET,
        "sheets": _thumbnail_sheets(manifest, side, mask),
        "columns": {},
        "manifest": manifest_columns(manifest) if names else None,
    }
    for name, values in columns.items():
        group_names, groups = colour_groups(values)
        data["columns"][name] = {"names": group_names, "groups": groups.tolist()}
    options = "".join(f"<option>{escape(name)}</option>" for name in columns)
    save = "Save as manifest (CSV)" if names else "Save as list of rows (CSV)"
    page = (
        '<div class="map"><div class="map-plane"><canvas id="plane" tabindex="0" role="application" '
        f'aria-label="Map of {len(points):,} images" aria-describedby="help"></canvas>'
        '<div class="map-tip" id="tip" hidden></div></div><div class="map-side">'
        f'<label>Colour <select id="column">{options}</select></label>'
        '<p><button type="button" id="mode" aria-pressed="false">Move the map</button> '
        '<button type="button" id="fit">Fit</button> <button type="button" id="all">Select all shown</button></p>'
        f'<ul class="map-legend" id="legend"></ul><p class="soft" id="help">{_HELP}</p>'
        '<p id="chosen" aria-live="polite"></p>'
        f'<p><button type="button" id="save" disabled>{save}</button> '
        '<button type="button" id="clear" disabled>Clear</button></p><div class="map-grid" id="grid"></div></div></div>'
    )
    parts = [page, f'<p class="soft">{escape(note)}</p>', data_block("map-data", data)]
    return build_page("Map of images", parts, script=read_scripts("map_plane.js", "map_page.js"), style=_STYLE)


def to_unit(points: np.ndarray, reference: np.ndarray | None = None) -> np.ndarray:
    """Scale points (N, 2) so that `reference` (default: these points) fills 0 to 1, both axes alike, y downwards."""
    reference = points if reference is None else reference
    low, high = reference.min(axis=0), reference.max(axis=0)
    unit = 0.5 + (points - (low + high) / 2) / max(float((high - low).max()), 1e-9)
    return np.stack([unit[:, 0], 1 - unit[:, 1]], axis=1)


def manifest_columns(manifest: Manifest) -> dict[str, list[Any]]:
    """Return the columns of a manifest for a CSV that any command opens from any folder."""
    columns = {name: manifest.column(name) for name in (*FIXED, *(c for c in manifest.columns if c not in FIXED))}
    return columns | {"root": [str(manifest.root.resolve())] * len(manifest)}


def _thumbnail_sheets(manifest: Manifest, side: int, mask: TextMask | None = None) -> list[str]:
    """Return the central squares of all images on sheets, each as the data URL of a JPEG."""

    def thumbnail(row: int) -> np.ndarray:
        try:
            pixels = read_row(manifest, row)
            image = Image.fromarray(pixels if mask is None else mask(pixels))
        except UnreadableImage:
            return np.full((side, side, 3), 128, np.uint8)
        return np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC))

    sheets = []
    with bar("thumbnails", len(manifest)) as progress:
        tiles = prefetch(thumbnail, range(len(manifest)))
        for start in range(0, len(manifest), _SHEET * _SHEET):
            sheet = np.zeros((_SHEET * side, _SHEET * side, 3), np.uint8)
            count = min(_SHEET * _SHEET, len(manifest) - start)
            for at in range(count):
                top, left = at // _SHEET * side, at % _SHEET * side
                sheet[top : top + side, left : left + side] = next(tiles)
                progress.advance()
            used = sheet[: -(-count // _SHEET) * side]
            stream = io.BytesIO()
            Image.fromarray(used).save(stream, "JPEG", quality=72)
            sheets.append(f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}")
    return sheets
