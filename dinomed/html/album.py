"""Pictures of a collection on a page: reduced, written into it, of a bounded size in all, nameless unless asked.

What a file is called may name a patient. Without `names` a picture is known by its row of the manifest, from which
whoever has the manifest finds it.
"""

from collections.abc import Callable, Sequence
from html import escape

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from dinomed.datasets.manifest import Manifest
from dinomed.html.page import figure
from dinomed.images.read import UnreadableImage, read_image

MIB = 2**20
_MARK = (220, 38, 38)
_GAP = 2  # px between the pictures of a sheet


class Album:
    """Makes figures until they are `limit_bytes` of HTML in all; from then on it only says that they are missing."""

    def __init__(self, limit_bytes: int = 16 * MIB, *, names: bool = False) -> None:
        self.limit_bytes, self.names = limit_bytes, names
        self.spent = 0  # bytes
        self.left_out = 0  # figures

    def picture(
        self,
        manifest: Manifest,
        row: int,
        what: str = "",
        *,
        side: int = 300,
        quality: int = 90,
        width_px: int = 260,
        draw: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> str:
        """One picture, its longer side `side` px at most, with `what` it is; also where it cannot be read. `draw` puts
        something on it: uint8 (H, W, 3) -> the same."""
        caption = f"{what}: {self._name(manifest, row)}" if what else self._name(manifest, row)
        if self._full():
            return _missing(caption, "left out, for the page is large enough")
        try:
            image = read_image(manifest.path(row))
        except UnreadableImage as error:
            return _missing(caption, error.reason)
        image = image if draw is None else draw(image)
        return self._spend(
            figure(np.ascontiguousarray(image), caption, max_side=side, quality=quality, width_px=width_px)
        )

    def sheet(
        self,
        manifest: Manifest,
        rows: Sequence[int],
        caption: str,
        *,
        crossed: Sequence[bool] | None = None,
        side: int = 76,
        columns: int = 12,
    ) -> str:
        """Many pictures as one: the middle square of each, `side` px. Those that are `crossed` are struck out."""
        if self._full():
            return _missing(caption, "left out, for the page is large enough")
        tiles = []
        for place, row in enumerate(rows):
            try:
                image = Image.fromarray(read_image(manifest.path(row)))
            except UnreadableImage:
                continue
            tile = ImageOps.fit(image, (side, side), Image.Resampling.BOX if min(image.size) > 4 * side else 3)
            if crossed is not None and crossed[place]:
                ImageDraw.Draw(tile).line((0, side - 1, side - 1, 0), fill=_MARK, width=3)
            tiles.append(np.asarray(tile))
        if not tiles:
            return _missing(caption, "none can be read")
        step = side + _GAP
        wide, tall = min(columns, len(tiles)), -(-len(tiles) // columns)
        sheet = np.full((tall * step - _GAP, wide * step - _GAP, 3), 128, np.uint8)
        for place, pixels in enumerate(tiles):
            top, left = place // columns * step, place % columns * step
            sheet[top : top + side, left : left + side] = pixels
        return self._spend(figure(sheet, caption, wide=True, quality=80, width_px=1))

    def _name(self, manifest: Manifest, row: int) -> str:
        return str(manifest.table["image"][row].as_py()) if self.names else f"row {row:,}"

    def _full(self) -> bool:
        full = self.spent >= self.limit_bytes
        self.left_out += full
        return full

    def _spend(self, html: str) -> str:
        self.spent += len(html)
        return html


def spread(total: int, count: int) -> list[int]:
    """At most `count` indices, evenly over `total`.

    >>> spread(10, 3), spread(2, 6), spread(0, 6)
    ([0, 4, 9], [0, 1], [])
    """
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist() if total else []


def _missing(caption: str, why: str) -> str:
    return f"<figure><figcaption>{escape(f'{caption}: {why}')}</figcaption></figure>"
