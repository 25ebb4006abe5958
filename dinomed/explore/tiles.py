"""Parts of the pictures of this folder: colours of maps, overlays, and rows of tiles with captions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dinomed.html.drawing import SCALE, SOFT, Box, Drawing

# dark to bright, and rising in lightness for readers who see no colours; the viewer of the demo has the same
HEAT = np.array([[26, 22, 60], [36, 92, 122], [62, 161, 128], [178, 208, 70], [253, 240, 120]], np.float64)
TILE, _GAP, _HEAD, _LINE = 200.0, 14.0, 26.0, 18.0


@dataclass(frozen=True)
class Tile:
    """One picture of a row.

    Attributes:
        pixels: uint8 (H, W, 3).
        caption: a line below it.
        shape: (height, width) whose aspect ratio the tile gets; None for that of the pixels.
        smooth: False for maps of patches, whose squares stay visible.
    """

    pixels: np.ndarray
    caption: str = ""
    shape: tuple[int, int] | None = None
    smooth: bool = True


@dataclass(frozen=True)
class Section:
    """A row of tiles, continued in further rows, under a title."""

    title: str
    tiles: Sequence[Tile]


def draw_sections(
    sections: Sequence[Section], label: str, *, columns: int = 8, tile: float = TILE
) -> tuple[Drawing, list[list[Box]]]:
    """Draw sections below each other.

    Args:
        label: description of the drawing for screen readers.
        columns: most tiles of a row.
        tile: width and height into which each tile is fitted.

    Returns:
        The drawing, and for each section the boxes of its tiles, for marks on them.
    """
    wide = min(columns, max(len(section.tiles) for section in sections))
    places: list[list[Box]] = []
    y = _GAP
    for section in sections:
        y += _HEAD if section.title else 0
        boxes: list[Box] = []
        for start in range(0, len(section.tiles), wide):
            sizes = [_fit(each, tile) for each in section.tiles[start : start + wide]]
            boxes += [
                (_GAP + place * (tile + _GAP) + (tile - size[0]) / 2, y, *size) for place, size in enumerate(sizes)
            ]
            has_caption = any(each.caption for each in section.tiles[start : start + wide])
            y += max(height for _, height in sizes) + (_LINE if has_caption else 0) + _GAP
        places.append(boxes)
    drawing = Drawing(wide * (tile + _GAP) + _GAP, y, label)
    for section, boxes in zip(sections, places, strict=True):
        if section.title:
            drawing.text((_GAP, boxes[0][1] - 9), section.title, size=15, bold=True)
        for each, box in zip(section.tiles, boxes, strict=True):
            drawing.image(each.pixels, box, smooth=each.smooth, label=each.caption or section.title)
            if each.caption:
                place = (box[0] + box[2] / 2, box[1] + box[3] + 14)
                drawing.text(place, each.caption, size=12, color=SOFT, anchor="middle")
    return drawing, places


def heat_colours(values: np.ndarray, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Return the colours of a map (H, W) between two values, uint8 (H, W, 3)."""
    place = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * (len(HEAT) - 1)
    at = np.minimum(place.astype(int), len(HEAT) - 2)
    part = (place - at)[..., None]
    return (HEAT[at] * (1 - part) + HEAT[at + 1] * part).round().astype(np.uint8)


def blend(shown: np.ndarray, colours: np.ndarray, opacity: float = 0.6) -> np.ndarray:
    """Return an image, reduced to the size of a tile, under the colours of its patches, uint8 (rows, columns, 3)."""
    image = _tile_image(shown)
    size = (image.shape[1], image.shape[0])
    over = np.asarray(Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC))
    return (image * (1 - opacity) + over * opacity).round().astype(np.uint8)


def darken(shown: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return an image, reduced to the size of a tile, dark where the patches of a mask (rows, columns) are false."""
    image = _tile_image(shown)
    size = (image.shape[1], image.shape[0])
    light = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)) / 255
    return (image * (0.25 + 0.75 * light[..., None])).round().astype(np.uint8)


def patch_centre(patch: tuple[int, int], grid: tuple[int, ...], box: Box) -> tuple[float, float]:
    """Return the centre (x, y) of a patch (row, column) of a grid (rows, columns) that is stretched to a box."""
    left, top, width, height = box
    return left + (patch[1] + 0.5) * width / grid[1], top + (patch[0] + 0.5) * height / grid[0]


def patch_box(patch: tuple[int, int], grid: tuple[int, ...], box: Box) -> Box:
    """Return the box of a patch (row, column) of a grid (rows, columns) that is stretched to a box."""
    width, height = box[2] / grid[1], box[3] / grid[0]
    return box[0] + patch[1] * width, box[1] + patch[0] * height, width, height


def _tile_image(shown: np.ndarray) -> np.ndarray:
    image = Image.fromarray(shown)
    image.thumbnail((round(TILE * SCALE), round(TILE * SCALE)), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _fit(tile: Tile, side: float) -> tuple[float, float]:
    """Return the width and height of a tile that is fitted into a square."""
    height, width = tile.shape or tile.pixels.shape[:2]
    scale = side / max(height, width)
    return width * scale, height * scale
