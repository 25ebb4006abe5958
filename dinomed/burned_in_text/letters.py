"""Letters and lines of burned-in text: connected components of strokes, and rows of them."""

import numpy as np

_HEIGHTS = (7, 72)  # px
_LEAST = 3  # letters in a line


def find_letters(strokes: np.ndarray, gray: np.ndarray) -> np.ndarray:
    """Return components that may be letters, float (n, 5): left, top, right, bottom, mean grey level; from left to
    right."""
    import cv2

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


def find_lines(letters: np.ndarray) -> list[tuple[int, int, int, int]]:
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
