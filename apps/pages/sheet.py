"""Contact sheet of a prediction: a thumbnail with the outline of each image, sorted by buttons.

The page is one file. It loads nothing and shows no names of images unless they are asked for, since they may identify a
patient: an image has the number of its line in `predictions.csv`.
"""

from collections.abc import Iterator, Sequence
from html import escape
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from PIL import Image

from dinomed.adapters.inference.folder import SheetRow
from dinomed.adapters.inference.plan import FAILED_FILE, TABLE_FILE
from dinomed.adapters.predictor import Predictor
from dinomed.adapters.task import find_task
from dinomed.apps.pages.overlay import draw_mask
from dinomed.burned_in_text.mask import TextMask
from dinomed.datasets.manifest import Manifest
from dinomed.html.page import build_page, build_table, code, heading, jpeg_url, paragraph
from dinomed.images.read import MAX_PIXELS, UnreadableImage, read_shown
from dinomed.isolation.images import read_shown_isolated

STATIC = Path(__file__).parent / "static"
MAX_IMAGES, MAX_ERRORS = 400, 200  # on one page
THUMBNAIL_PX = 256  # of the longer side; shown at about half of it, for screens of high density
ORDERS = {
    "number": "Order of the table",
    "area": "Largest area",
    "-area": "Smallest area",
    "uncertainty": "Most uncertain",
    "unlikeness": "Most unlike the training images",
}
_STYLE = """
.orders { display: flex; flex-wrap: wrap; gap: 8px; position: sticky; top: 0; background: Canvas; padding: 8px 0;
  z-index: 1; }
.orders button { font: inherit; padding: 6px 12px; min-height: 36px; border: 1px solid var(--soft); border-radius: 8px;
  background: Canvas; color: CanvasText; cursor: pointer; }
.orders button[aria-pressed=true] { background: #0b6a80; border-color: #0b6a80; color: #fff; font-weight: 600; }
.orders button:focus-visible { outline: 3px solid var(--line); outline-offset: 2px; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(150px, 44%), 1fr)); gap: 10px; padding: 0;
  list-style: none; }
.sheet li { border: 1px solid var(--edge); border-radius: 8px; padding: 6px; min-width: 0; }
.sheet li.unlike { border: 2px solid #d97706; padding: 5px; }
.sheet img, .sheet .none { width: 100%; aspect-ratio: 4 / 3; object-fit: contain; background: #0b1017; display: block;
  border-radius: 5px; }
.sheet .none { color: #e8edf3; font-size: .8rem; padding: 8px; box-sizing: border-box; overflow: hidden; }
.sheet p { margin: 4px 0 0; font-size: .85rem; overflow-wrap: anywhere; } .sheet .soft { font-size: .8rem; }
.sheet b { font-variant-numeric: tabular-nums; } .sheet .mark { font-weight: 600; }
@media print { .orders { display: none; } .sheet li { break-inside: avoid; } }
"""
_SCRIPT = 'connectSorting(document.querySelector(".orders"), document.querySelector(".sheet"));'


def build_sheet(
    predictor: Predictor,
    manifest: Manifest,
    rows: Sequence[SheetRow],
    failed: Sequence[tuple[str, str]],
    *,
    names: bool = False,
    mask: TextMask | None = None,
) -> str:
    """Return the page.

    Args:
        predictor: the predictor of the rows.
        manifest: the images.
        rows: the predictions; of more than `MAX_IMAGES`, the ends of each order are shown.
        failed: (path, reason) of images without a prediction.
        names: show the paths of images.
        mask: masks burned-in text in the images.
    """
    shown = choose_rows(rows, MAX_IMAGES)
    orders = [
        key for key in ORDERS if key == "number" or any(_values(row)[key.strip("-")] is not None for row in shown)
    ]
    buttons = "".join(
        f'<button type="button" data-sort="{key}" aria-pressed="{"true" if key == "number" else "false"}">'
        f"{ORDERS[key]}</button>"
        for key in orders
    )
    items = "".join(_item(predictor, manifest, row, names, mask) for row in shown)
    parts = [
        paragraph(_opening(rows, failed)),
        paragraph(_note(rows, shown, names)),
        f'<div class="orders" role="group" aria-label="Order of the images">{buttons}</div>',
        f'<ol class="sheet" aria-label="Predictions">{items}</ol>',
        *([] if mask is None else [paragraph(mask.describe())]),
        *_errors(failed, names),
    ]
    if (task := find_task(predictor.task)).panel:
        command = f"dinomed demo {task.name} --adapter ADAPTER"
        parts += [heading("Next"), paragraph("Examine single images in the browser:"), code(command)]
    return build_page("Predictions", parts, script=read_sort_script() + _SCRIPT, style=_STYLE)


def read_sort_script() -> str:
    """Return the script that sorts a list of pictures; the demo uses it too."""
    return (STATIC / "sort.js").read_text(encoding="utf-8")


def choose_rows(rows: Sequence[SheetRow], count: int) -> list[SheetRow]:
    """Return at most `count` rows in their order: the ends of each order in turn, the most unusual first."""
    if len(rows) <= count:
        return list(rows)
    ends: list[list[SheetRow]] = []
    for key in ("uncertainty", "unlikeness", "area"):
        known = [(value, row) for row in rows if (value := _values(row)[key]) is not None]
        falling = [row for _, row in sorted(known, key=lambda item: -item[0])]
        ends += [falling, falling[::-1]] if key == "area" else [falling]
    chosen = dict.fromkeys(row.number for row in chain.from_iterable(zip_longest(*ends)) if row is not None)
    kept = set(list(chosen)[:count])
    return [row for row in rows if row.number in kept]


def _values(row: SheetRow) -> dict[str, float | None]:
    return {
        "number": row.number,
        "area": row.entry.area,
        "uncertainty": row.entry.uncertainty,
        "unlikeness": row.percentile,
    }


def _opening(rows: Sequence[SheetRow], failed: Sequence[tuple[str, str]]) -> str:
    text = f"{len(rows):,} images have a prediction"
    checked = [row.unlike for row in rows if row.unlike is not None]
    if checked:
        warning = ", so their results may be wrong" if any(checked) else ""
        text += f"; {sum(checked):,} of {len(checked):,} are unlike the training images{warning}"
    empty = sum(row.entry.area == 0 for row in rows)
    text += f"; in {empty:,} nothing is outlined" if empty else ""
    return f"{text}. {len(failed):,} files have none." if failed else f"{text}."


def _note(rows: Sequence[SheetRow], shown: Sequence[SheetRow], names: bool) -> str:
    text = "" if names else f"The number of an image is that of its line in {TABLE_FILE}. "
    if len(shown) < len(rows):
        text += (
            f"Of {len(rows):,} images {len(shown):,} are shown: the most uncertain, the most unlike the training "
            "images, and those with the largest and smallest areas. "
        )
    if rows[0].entry.read_mask is None:
        text += "Uncertainty: 0 to 1, one minus the probability of the class; of several labels, of the least certain."
    else:
        text += "Uncertainty: 0 to 1, one minus the Dice score that the probabilities let expect for the outline."
    if any(row.percentile is not None for row in rows):
        text += " Unlikeness: share of the training images that are nearer to the others than this image."
    return text


def _item(predictor: Predictor, manifest: Manifest, row: SheetRow, names: bool, mask: TextMask | None) -> str:
    values = "".join(f' data-{key}="{value}"' for key, value in _values(row).items() if value is not None)
    name = manifest.column("image")[row.row] if names else f"image {row.number:,}"
    facts = f"uncertainty {row.entry.uncertainty:.2f}"
    if row.percentile is not None:
        facts += f", unlikeness {row.percentile:.0f}%"
    mark = '<p class="mark">Unlike the training images</p>' if row.unlike else ""
    label = f"{name}: {row.entry.text}"
    return (
        f"<li{values}{' class=unlike' if row.unlike else ''}>{_thumbnail(predictor, manifest, row, label, mask)}"
        f'<p><b>{escape(str(name))}</b><br>{escape(row.entry.text)}</p><p class="soft">{facts}</p>{mark}</li>'
    )


def _thumbnail(predictor: Predictor, manifest: Manifest, row: SheetRow, label: str, text: TextMask | None) -> str:
    """Return an <img>, or the reason why the image or its mask can no longer be read."""
    reading = predictor.backbone.preprocessing
    try:
        read = read_shown if manifest.decoded else read_shown_isolated
        picture = read(manifest.path(row.row), reading.channels, reading.intensity, MAX_PIXELS)
        mask = None if row.entry.read_mask is None else row.entry.read_mask()
    except UnreadableImage as error:
        return f'<div class="none">{escape(error.reason)}</div>'
    picture = picture if text is None else text(picture)
    return f'<img src="{jpeg_url(draw_thumbnail(picture, mask), 80)}" alt="{escape(label, quote=True)}" loading="lazy">'


def draw_thumbnail(picture: np.ndarray, mask: np.ndarray | None, side: int = THUMBNAIL_PX) -> np.ndarray:
    """Return a picture, uint8 (H, W, 3), of at most `side` px with the outline of a mask, bool (H, W)."""
    small = Image.fromarray(picture)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    if mask is None or mask.shape != picture.shape[:2]:
        return np.asarray(small)
    share = Image.fromarray(mask.astype(np.uint8) * 255).resize(small.size, Image.Resampling.BOX)
    return draw_mask(np.asarray(small), np.asarray(share) >= 128, fill=0.12)


def _errors(failed: Sequence[tuple[str, str]], names: bool) -> Iterator[str]:
    if not failed:
        return
    yield heading("Files without a prediction")
    column = "file" if names else f"line of {FAILED_FILE}"
    rows = [(path if names else number, reason) for number, (path, reason) in enumerate(failed[:MAX_ERRORS], 1)]
    yield build_table((column, "reason"), rows)
    if len(failed) > MAX_ERRORS:
        yield paragraph(f"{len(failed) - MAX_ERRORS:,} more are listed in {FAILED_FILE}.")
