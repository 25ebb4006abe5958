"""Do two pictures show the same thing, moved? Points that match under one affine map.

Descriptors and hashes propose pairs; among millions of pairs of look-alikes some proposals are wrong. Here each is
checked: SIFT points of both (Lowe, 2004), matched by their surroundings, and counted where one map carries them onto
each other. Pictures of different lesions share none or a handful, copies share tens to hundreds, and so do two
photographs of one lesion with the same hairs.

What a device draws into its pictures aligns too: the navigation panel of an endoscope, the ruler of a dermatoscope. So
one picture is laid over the other by that map, and they have to be alike in most places, not in those points alone. Of
1,431 pairs of endoscopic frames of different patients 96 share 8 points or more, and lie alike in 0.59 of the places at
most (a ruler: 0.71); of 694 synthetic copies that align, of three sources, the least is 0.77.
"""

from dataclasses import dataclass

import cv2
import numpy as np

LEAST_MATCHES = 8
"""From here on two pictures are called copies. Of different real lesions none has reached 7 (docs/curation.md)."""
_SHORT, _LONG = 256, 512  # px that a picture is scaled to: the short side, unless the long one would be over the other
_POINTS = 600
_RATIO = 0.8  # Lowe's: the best match has to be that much nearer than the second
_TOLERANCE_PX = 4.0
_SHRINK, _STRETCH = 0.2, 2.2  # the smallest scale of the map, and the largest ratio of its two scales
_CELL_PX = 6  # points nearer than this count once
_PLACE_PX, _BLUR_PX = 32, 2.0  # places are squares of this side; noise and compression are blurred away first
_TEXTURE = 2.0  # grey levels of spread, below which a place says nothing
_ALIKE = 0.5  # correlation
_LEAST_ALIKE = 0.75  # share of the places


@dataclass(frozen=True)
class Points:
    """SIFT points: `place` float32 (n, 2) in px of the scaled picture, `look` float32 (n, 128) of length 1."""

    place: np.ndarray
    look: np.ndarray


@dataclass(frozen=True)
class Alignable:
    """The points of a picture, and those of its mirror image: SIFT knows turns, but not mirrors. `gray`, uint8 (h, w),
    is the scaled picture."""

    plain: Points
    mirrored: Points
    gray: np.ndarray


def find_points(image: np.ndarray) -> Alignable:
    """The points of a picture, uint8 RGB ``(H, W, 3)``; few or none where it is smooth. 60 ms."""
    short, long = sorted(image.shape[:2])
    scale = min(_SHORT / short, _LONG / long)
    gray = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    gray = np.asarray(cv2.resize(gray, None, fx=scale, fy=scale, interpolation=kind))
    clear = np.asarray(cv2.createCLAHE(2.0, (8, 8)).apply(gray))  # so that pale skin has points too
    return Alignable(_sift(clear), _sift(np.ascontiguousarray(clear[:, ::-1])), gray)


def count_matches(one: Alignable, other: Alignable) -> int:
    """The number of places that match under one affine map, of either picture as it is or mirrored: 0 to `_POINTS`.

    0 where so many match that the pictures could be copies, and they are not alike between these places.
    """
    plain, map_plain = _count(one.plain, other.plain)
    mirrored, map_mirrored = _count(one.mirrored, other.plain)
    count, matrix, gray = (
        (plain, map_plain, one.gray) if plain >= mirrored else (mirrored, map_mirrored, one.gray[:, ::-1])
    )
    if count >= LEAST_MATCHES and matrix is not None and _share_alike(gray, other.gray, matrix) < _LEAST_ALIKE:
        return 0
    return count


def _sift(gray: np.ndarray) -> Points:
    sift = cv2.SIFT.create(nfeatures=_POINTS, contrastThreshold=0.01, edgeThreshold=15)
    found, look = sift.detectAndCompute(gray, None)
    if look is None or not len(found):
        return Points(np.empty((0, 2), np.float32), np.empty((0, 128), np.float32))
    root = np.sqrt(look / np.maximum(look.sum(axis=1, keepdims=True), 1e-6))  # Hellinger distance, "RootSIFT"
    return Points(np.array([point.pt for point in found], np.float32), root.astype(np.float32))


def _count(one: Points, other: Points) -> tuple[int, np.ndarray | None]:
    """How many match, and the map from `one` to `other`, float (2, 3)."""
    if min(len(one.place), len(other.place)) < LEAST_MATCHES:
        return 0, None
    likeness = one.look @ other.look.T
    order = np.argpartition(-likeness, 1, axis=1)[:, :2]
    best = np.take_along_axis(likeness, order, axis=1)
    swap = best[:, 1] > best[:, 0]
    nearest = np.where(swap, order[:, 1], order[:, 0])
    first, second = (np.sqrt(np.maximum(2 - 2 * value, 0)) for value in (best.max(axis=1), best.min(axis=1)))
    clear = first < _RATIO * second
    if clear.sum() < LEAST_MATCHES:
        return 0, None
    source, target = one.place[clear], other.place[nearest[clear]]
    matrix, inside = cv2.estimateAffine2D(
        source, target, method=cv2.RANSAC, ransacReprojThreshold=_TOLERANCE_PX, maxIters=1000
    )
    if matrix is None:
        return 0, None
    scales = np.linalg.svd(matrix[:, :2], compute_uv=False)
    if scales[1] < _SHRINK or scales[0] > 1 / _SHRINK or scales[0] > _STRETCH * scales[1]:
        return 0, None  # points squeezed onto a line or a spot agree with anything
    kept = np.asarray(inside).ravel() > 0
    return min(len(np.unique(np.round(places[kept] / _CELL_PX), axis=0)) for places in (source, target)), matrix


def _share_alike(one: np.ndarray, other: np.ndarray, matrix: np.ndarray) -> float:
    """Of the places that both pictures have, and that are not flat in either, the share at which they correlate.

    Local correlation leaves brightness, contrast and colour aside, and a logo or a caption spoils few places. 0 where
    there is no such place.
    """
    height, width = other.shape
    laid = cv2.warpAffine(one.astype(np.float32), matrix, (width, height))
    there = cv2.warpAffine(np.ones(one.shape, np.float32), matrix, (width, height), flags=cv2.INTER_NEAREST)
    a, b = (cv2.GaussianBlur(picture, (0, 0), _BLUR_PX) for picture in (laid, other.astype(np.float32)))

    def mean(values: np.ndarray) -> np.ndarray:
        """Of the square around every half a square, inside the picture."""
        half = _PLACE_PX // 2
        found = np.asarray(cv2.boxFilter(values, cv2.CV_64F, (_PLACE_PX, _PLACE_PX), borderType=cv2.BORDER_REPLICATE))
        return found[half : height - half + 1 : half, half : width - half + 1 : half]

    mean_a, mean_b = mean(a), mean(b)
    spread_a, spread_b = (np.sqrt(np.maximum(mean(x * x) - m * m, 0)) for x, m in ((a, mean_a), (b, mean_b)))
    usable = (mean(there) > 0.999) & (spread_a >= _TEXTURE) & (spread_b >= _TEXTURE)
    if not usable.any():
        return 0.0
    correlation = (mean(a * b) - mean_a * mean_b)[usable] / (spread_a * spread_b)[usable]
    return float((correlation > _ALIKE).mean())
