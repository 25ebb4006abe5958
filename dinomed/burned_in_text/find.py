"""Detection of burned-in text: the boxes of lines of letters, and the share of an image that they cover.

There is no network and no character recognition. Letters are strokes that stand out from their surroundings (top-hat
and black-hat), in components of similar height and colour, side by side on a line; a line has at least three.
Horizontal text with a height of about 1.5 to 15% of the short side is found; slanted, vertical or faint text is not.
"""

from collections.abc import Sequence

import numpy as np

from dinomed.burned_in_text.letters import find_letters, find_lines

SIDE = 480
"""Short side for detection, px: a caption of 2% of the height of a video frame has 10 px."""
CONTRASTS = (45,)
"""Grey levels over (or under) the surroundings."""
_STROKE = 17  # px, wider than a stroke of the largest letters
_MAX_PIXELS = 16e6  # of an enlarged image: the short side of a long strip is enlarged less


def text_share(image: np.ndarray) -> float:
    """Return the share of an image, uint8 RGB ``(H, W, 3)``, inside the boxes of its lines of text: 0 to 1."""
    boxes, (height, width) = find_text(image)
    covered = np.zeros((height, width), bool)
    for left, top, right, bottom in boxes:
        covered[top:bottom, left:right] = True
    return float(covered.mean())


def find_text(
    image: np.ndarray, side: int = SIDE, contrasts: Sequence[int] = CONTRASTS
) -> tuple[list[tuple[int, int, int, int]], tuple[int, int]]:
    """Return the boxes of the lines of text in an image, uint8 RGB (H, W, 3) or gray (H, W).

    Args:
        image: the image.
        side: short side of the resized image in which lines are searched, px. An image is not enlarged beyond 16
            million pixels, so that of a long strip is shorter.
        contrasts: grey levels by which letters stand out from their surroundings; lines are searched with each.

    Returns:
        The boxes (left, top, right, bottom) in px of the resized image, right and bottom exclusive; its (height,
        width).
    """
    import cv2

    height, width = image.shape[:2]
    scale = min(side / min(height, width), max(1, (_MAX_PIXELS / (height * width)) ** 0.5))
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    plain = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    gray = cv2.resize(plain, None, fx=scale, fy=scale, interpolation=kind)
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (_STROKE, _STROKE))
    boxes = []
    for operation in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT):  # light on dark, dark on light
        levels = cv2.morphologyEx(gray, operation, kernel)
        for contrast in contrasts:
            boxes += find_lines(find_letters((levels > contrast).astype(np.uint8), np.asarray(gray)))
    return boxes, (gray.shape[0], gray.shape[1])
