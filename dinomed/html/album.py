"""Images of a dataset as figures of a page: reduced, embedded, limited in total size, without file names by default.

File names may identify patients. Without `names`, the caption gives the row of the manifest, which leads to the image
for readers who have the manifest.
"""

from collections.abc import Callable, Sequence
from html import escape

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from dinomed.burned_in_text.mask import TextMask
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.pixels import read_picture
from dinomed.html.page import figure, paragraph
from dinomed.images.read import UnreadableImage

MIB = 2**20
_MARK = (220, 38, 38)
_GAP = 2  # px between the pictures of a sheet


class Album:
    """Figures with a limit on their total size; beyond `limit_bytes` of HTML a figure is only a caption.

    Args:
        limit_bytes: largest size of all figures together.
        names: show the file names.
        mask: masks burned-in text in the images; None shows them as they are.
    """

    def __init__(self, limit_bytes: int = 16 * MIB, *, names: bool = False, mask: TextMask | None = None) -> None:
        self.limit_bytes, self.names, self.mask = limit_bytes, names, mask
        self.used_bytes = 0
        self.left_out = 0  # number of figures

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
        """Return the figure of one image; an unreadable image gives a caption with the reason.

        Args:
            row: row of the manifest.
            what: description for the caption.
            side: largest length of the longer side in px.
            quality: of the JPEG.
            width_px: smallest width on the page.
            draw: function that draws on the image, uint8 (H, W, 3) -> the same.
        """
        caption = f"{what}: {self._name(manifest, row)}" if what else self._name(manifest, row)
        if self._full():
            return _missing(caption, "left out, since the page has reached its size limit")
        try:
            image = self._read(manifest, row)
        except UnreadableImage as error:
            return _missing(caption, error.reason)
        image = image if draw is None else draw(image)
        return self._count(
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
        """Return one figure of many images: the central square of each, `side` px; `crossed` ones are struck out."""
        if self._full():
            return _missing(caption, "left out, since the page has reached its size limit")
        tiles = []
        for place, row in enumerate(rows):
            try:
                image = Image.fromarray(self._read(manifest, row))
            except UnreadableImage:
                continue
            tile = ImageOps.fit(image, (side, side), Image.Resampling.BOX if min(image.size) > 4 * side else 3)
            if crossed is not None and crossed[place]:
                ImageDraw.Draw(tile).line((0, side - 1, side - 1, 0), fill=_MARK, width=3)
            tiles.append(np.asarray(tile))
        if not tiles:
            return _missing(caption, "no image can be read")
        step = side + _GAP
        wide, tall = min(columns, len(tiles)), -(-len(tiles) // columns)
        sheet = np.full((tall * step - _GAP, wide * step - _GAP, 3), 128, np.uint8)
        for place, pixels in enumerate(tiles):
            top, left = place // columns * step, place % columns * step
            sheet[top : top + side, left : left + side] = pixels
        return self._count(figure(sheet, caption, wide=True, quality=80, width_px=1))

    def note(self) -> list[str]:
        """Return a paragraph on the text that was masked; none without a mask."""
        return [] if self.mask is None else [paragraph(self.mask.describe())]

    def _read(self, manifest: Manifest, row: int) -> np.ndarray:
        image = read_picture(manifest.path(row), isolated=not manifest.decoded)
        return image if self.mask is None else self.mask(image)

    def _name(self, manifest: Manifest, row: int) -> str:
        return str(manifest.table["image"][row].as_py()) if self.names else f"row {row:,}"

    def _full(self) -> bool:
        full = self.used_bytes >= self.limit_bytes
        self.left_out += full
        return full

    def _count(self, html: str) -> str:
        self.used_bytes += len(html)
        return html


def spaced_indices(total: int, count: int) -> list[int]:
    """Return at most `count` indices, evenly spaced over `total` items.

    >>> spaced_indices(10, 3), spaced_indices(2, 6), spaced_indices(0, 6)
    ([0, 4, 9], [0, 1], [])
    """
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist() if total else []


def _missing(caption: str, why: str) -> str:
    """Return a figure without an image."""
    return f"<figure><figcaption>{escape(f'{caption}: {why}')}</figcaption></figure>"
