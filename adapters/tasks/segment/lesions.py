"""Lesions of a mask: which connected regions count, with their areas.

A segmenter also marks the black frame of an endoscope or a dermatoscope, hairs and specks. `LesionRules` states what is
left out. The browser demo applies the same rules in its script, `apps/demos/static/regions.js`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLACK = 24  # 0 to 255; frames are 0 to 20 after JPEG compression, the darkest pigment is above 30 in one channel
RIM = 0.01  # of the longer side: the soft rim of a frame, left out too
NEIGHBORS = np.ones((3, 3), bool)  # pixels that touch at a corner belong to one region


@dataclass(frozen=True)
class LesionRules:
    """What counts as a lesion.

    Attributes:
        min_share: smallest area, as a share of the image, 0 to 1. The default is 0.05%: a disc of 22 px in an image of
            1024 x 768 px.
        largest_only: keep the largest region only.
    """

    min_share: float = 0.0005
    largest_only: bool = False


@dataclass(frozen=True)
class Lesion:
    """One connected region of a mask.

    Attributes:
        area_px: number of pixels.
        box: (left, top, right, bottom) in pixels, right and bottom exclusive.
    """

    area_px: int
    box: tuple[int, int, int, int]


def field_of_view(image: np.ndarray) -> np.ndarray:
    """Return the pixels that the instrument shows, bool (H, W), for an image, uint8 (H, W, 3).

    Outside are black pixels that are connected with a corner of the image, and a rim around them. Black pixels
    elsewhere belong to the field of view. An image that is black in most of its pixels is field of view throughout.
    """
    import cv2
    from scipy import ndimage

    labels, _ = ndimage.label((image <= BLACK).all(axis=-1))
    corners = {int(label) for label in labels[[0, 0, -1, -1], [0, -1, 0, -1]]} - {0}
    outside = np.isin(labels, list(corners))
    if not corners or outside.mean() > 0.75:
        return np.ones(image.shape[:2], bool)
    radius = round(RIM * max(image.shape[:2]))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return np.asarray(cv2.dilate(outside.astype(np.uint8), kernel) == 0)


def select_lesions(mask: np.ndarray, rules: LesionRules) -> tuple[np.ndarray, list[Lesion]]:
    """Apply the rules to a mask, bool (H, W).

    Returns:
        The mask of the lesions that count, bool (H, W), and these lesions, the largest first.
    """
    from scipy import ndimage

    labels, count = ndimage.label(mask, NEIGHBORS)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    order = [int(label) for label in np.argsort(-areas[1:], kind="stable") + 1]
    kept = [label for label in order if areas[label] >= max(1, rules.min_share * mask.size)]
    kept = kept[:1] if rules.largest_only else kept
    slices = ndimage.find_objects(labels)
    return np.isin(labels, kept), [Lesion(int(areas[label]), _box(slices[label - 1])) for label in kept]


def _box(slices: Sequence[slice]) -> tuple[int, int, int, int]:
    rows, columns = slices
    return columns.start, rows.start, columns.stop, rows.stop
