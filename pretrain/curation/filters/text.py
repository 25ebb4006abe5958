"""Burned-in text: the share of an image that lines of letters cover.

There is no network and no character recognition. Letters are strokes that stand out from their surroundings (top-hat
and black-hat), in components of similar height and colour, side by side on a line; a line has at least three.
Horizontal text with a height of about 1.5 to 15% of the short side is found; slanted, vertical or faint text is not.
"""

import cv2
import numpy as np

_SIDE = 480  # short side in px for detection: a caption of 2% of the height of a video frame has 10 px
_STROKE = 17  # px, wider than a stroke of the largest letters
_CONTRAST = 45  # grey levels over (or under) the surroundings
_HEIGHTS = (7, 72)  # px
_LEAST = 3  # letters in a line


def text_share(image: np.ndarray) -> float:
    """Return the share of an image, uint8 RGB ``(H, W, 3)``, inside the boxes of its lines of text: 0 to 1."""
    boxes, (height, width) = find_text(image)
    covered = np.zeros((height, width), bool)
    for left, top, right, bottom in boxes:
        covered[top:bottom, left:right] = True
    return float(covered.mean())


def find_text(image: np.ndarray) -> tuple[list[tuple[int, int, int, int]], tuple[int, int]]:
    """Return the boxes of the lines of text in an image, uint8 RGB ``(H, W, 3)``, at a short side of 480 px.

    Returns:
        The boxes (left, top, right, bottom) in px of the resized image, right and bottom exclusive; its (height,
        width).
    """
    short = min(image.shape[:2])
    scale = _SIDE / short
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    gray = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None, fx=scale, fy=scale, interpolation=kind)
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (_STROKE, _STROKE))
    boxes = []
    for operation in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT):  # light on dark, dark on light
        strokes = (cv2.morphologyEx(gray, operation, kernel) > _CONTRAST).astype(np.uint8)
        boxes += _lines(_letters(strokes, np.asarray(gray)))
    return boxes, (gray.shape[0], gray.shape[1])


def _letters(strokes: np.ndarray, gray: np.ndarray) -> np.ndarray:
    """Return components that may be letters, float (n, 5): left, top, right, bottom, mean grey level; from left to
    right."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(strokes, connectivity=8)
    stats = stats[1:]
    if not len(stats):
        return np.empty((0, 5))
    sums = np.bincount(labels.ravel(), gray.ravel(), minlength=len(stats) + 1)[1:]
    left, top, width, height, area = stats.T
    fill = area / (width * height)
    fits = (height >= _HEIGHTS[0]) & (height <= _HEIGHTS[1]) & (width <= 2 * height) & (width >= 2)
    fits &= (fill >= 0.2) & ((fill <= 0.85) | (width < 0.5 * height))  # solid blocks are not letters, except I and 1
    letters = np.stack([left, top, left + width, top + height, sums / area], axis=1).astype(float)[fits]
    return letters[np.argsort(letters[:, 0], kind="stable")]


def _lines(letters: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Return the boxes of the lines that the letters form."""
    left, top, right, bottom, level = letters.T
    height = bottom - top
    free = np.ones(len(letters), bool)
    boxes = []
    for first in range(len(letters)):
        if not free[first]:
            continue
        line, last = [first], first
        while True:
            tall = height[last]
            near = free & (left > left[last]) & (left - right[last] < 1.1 * tall) & (left - right[last] > -0.3 * tall)
            near &= (np.abs(bottom - bottom[last]) < 0.2 * tall) | (np.abs(top - top[last]) < 0.2 * tall)
            near &= (height < 1.7 * tall) & (height > 0.6 * tall) & (np.abs(level - level[last]) < 40)
            near[line] = False
            if not near.any():
                break
            last = int(np.flatnonzero(near)[0])  # the next to the right
            line.append(last)
        if _is_text(letters[line]):
            free[line] = False
            box = letters[line]
            boxes.append((*box[:, :2].min(axis=0).astype(int), *box[:, 2:4].max(axis=0).astype(int)))
    return boxes


def _is_text(line: np.ndarray) -> bool:
    """Return whether components in a row are letters, and not ruler marks or reflections."""
    if len(line) < _LEAST:
        return False
    left, top, right, bottom, _ = line.T
    width, height = right - left, bottom - top
    tall = np.median(height)
    level = min(np.ptp(bottom), np.ptp(top)) <= 0.35 * tall or np.median(np.abs(bottom - np.median(bottom))) <= 1
    marks = np.median(width / height) < 0.3  # a ruler's marks are all thin; a word has few such letters
    return bool(level and not marks and right.max() - left.min() >= 1.5 * tall)
