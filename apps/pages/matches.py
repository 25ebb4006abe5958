"""Picture of two images side by side, with the same number and colour around regions that match."""

from colorsys import hsv_to_rgb

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dinomed.adapters.retrieval.evidence import MAX_REGIONS, Evidence

_GAP = 8  # px between the two images
_BACKGROUND = (24, 24, 27)
_COLOURS = [
    tuple(int(255 * value) for value in hsv_to_rgb(hue, 0.9, 1.0)) for hue in (0.5, 0.13, 0.86, 0.32, 0.05)
]  # cyan, yellow, magenta, green, orange: different from each other, from skin and from mucosa
assert len(_COLOURS) >= MAX_REGIONS


def draw_matches(query: np.ndarray, result: np.ndarray, evidence: Evidence, height: int = 320) -> np.ndarray:
    """Return the query on the left and the result on the right, uint8 (height, W, 3).

    Args:
        query: uint8 (H, W, 3), of any size.
        result: uint8 (H, W, 3), of any size.
        evidence: regions that match.
        height: height of the picture, px.
    """
    sides = []
    for image, grid, left in ((query, evidence.query, True), (result, evidence.result, False)):
        scale = height / image.shape[0]
        picture = Image.fromarray(image).resize(
            (max(1, round(image.shape[1] * scale)), height), Image.Resampling.BICUBIC
        )
        boxes = [
            grid.box([pair.query if left else pair.result for pair in region.pairs])
            for region in evidence.regions[:MAX_REGIONS]
        ]
        _frame(picture, [tuple(value * scale for value in box) for box in boxes])
        sides.append(np.asarray(picture))
    gap = np.full((height, _GAP, 3), _BACKGROUND, np.uint8)
    return np.concatenate([sides[0], gap, sides[1]], axis=1)


def _frame(picture: Image.Image, boxes: list[tuple[float, ...]]) -> None:
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=14)
    for number, (left, top, right, bottom) in reversed(list(enumerate(boxes))):  # the largest region is drawn last
        colour = _COLOURS[number]
        right, bottom = min(right, picture.width) - 1, min(bottom, picture.height) - 1
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=(0, 0, 0))
        pen.rectangle((left, top, right, bottom), outline=colour, width=2)
        pen.rectangle((left, top, left + 13, top + 15), fill=colour)
        pen.text((left + 3, top - 1), str(number + 1), fill=(0, 0, 0), font=font)
