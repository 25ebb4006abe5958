"""Verification of image pairs by keypoints that match under one affine map.

Descriptors and hashes propose pairs. Among millions of pairs of similar images some proposals are wrong, so each pair
is checked: the SIFT keypoints of both images (Lowe, 2004) are matched by their descriptors, and the matches that one
affine map explains are counted. Images of different lesions share no keypoints or a handful. Copies share tens to
hundreds, and so do two photographs of one lesion with the same hairs.

What a device draws into its images matches too: the navigation panel of an endoscope, the ruler of a dermatoscope. So
one image is warped onto the other by the map, and both must be similar in most places, not only at the keypoints. Of
1,431 pairs of endoscopic frames of different patients, 96 share 8 keypoints or more, and these are similar in at most
0.59 of the places (a ruler: 0.71). Of 694 synthetic copies that match, from three sources, the lowest share is 0.77.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from dinomed.pretrain.curation.deduplication.config import MIN_MATCHES

_SHORT_SIDE, _LONG_SIDE = 256, 512  # px; the short side of scaled images, unless the long side would be above its limit
_MAX_KEYPOINTS = 600
_RATIO = 0.8  # ratio test of Lowe: largest distance of the best match relative to the second best
_TOLERANCE_PX = 4.0
_MIN_SCALE, _MAX_SCALE_RATIO = 0.2, 2.2  # smallest scale of the map, and largest ratio of its two scales
_CELL_PX = 6  # keypoints nearer than this count once
_PLACE_PX, _BLUR_PX = 32, 2.0  # side of a place; blur that removes noise and compression before the comparison
_MIN_TEXTURE = 2.0  # standard deviation in grey levels; a place with less says nothing
_MIN_CORRELATION = 0.5  # of a place that counts as similar
_MIN_SIMILAR_SHARE = 0.75  # of the places


@dataclass(frozen=True)
class Keypoints:
    """SIFT keypoints.

    Attributes:
        position: float32 (n, 2), in px of the scaled image.
        descriptor: float32 (n, 128), of length 1.
    """

    position: np.ndarray
    descriptor: np.ndarray


@dataclass(frozen=True)
class ImageKeypoints:
    """The keypoints of an image and of its mirror image. SIFT is invariant to rotation, but not to mirroring.

    Attributes:
        gray: the scaled image, uint8 (h, w).
    """

    plain: Keypoints
    mirrored: Keypoints
    gray: np.ndarray


def find_keypoints(image: np.ndarray) -> ImageKeypoints:
    """Find the keypoints of an image, uint8 RGB ``(H, W, 3)``. A smooth image has few or none. Takes 60 ms."""
    short, long = sorted(image.shape[:2])
    scale = min(_SHORT_SIDE / short, _LONG_SIDE / long)
    gray = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    gray = np.asarray(cv2.resize(gray, None, fx=scale, fy=scale, interpolation=interpolation))
    equalised = np.asarray(cv2.createCLAHE(2.0, (8, 8)).apply(gray))  # so that pale skin has keypoints too
    return ImageKeypoints(_sift(equalised), _sift(np.ascontiguousarray(equalised[:, ::-1])), gray)


def count_matches(first: ImageKeypoints, second: ImageKeypoints) -> int:
    """Count the keypoints that match under one affine map, for the first image as it is and mirrored.

    Returns:
        The larger number of the two, 0 to `_MAX_KEYPOINTS`. 0 if the images have enough matches for copies, and are
        not similar between the keypoints.
    """
    num_plain, map_plain = _match(first.plain, second.plain)
    num_mirrored, map_mirrored = _match(first.mirrored, second.plain)
    count, matrix, gray = (
        (num_plain, map_plain, first.gray)
        if num_plain >= num_mirrored
        else (num_mirrored, map_mirrored, first.gray[:, ::-1])
    )
    if count >= MIN_MATCHES and matrix is not None and _similar_share(gray, second.gray, matrix) < _MIN_SIMILAR_SHARE:
        return 0
    return count


def _sift(gray: np.ndarray) -> Keypoints:
    sift = cv2.SIFT.create(nfeatures=_MAX_KEYPOINTS, contrastThreshold=0.01, edgeThreshold=15)
    points, descriptor = sift.detectAndCompute(gray, None)
    if descriptor is None or not len(points):
        return Keypoints(np.empty((0, 2), np.float32), np.empty((0, 128), np.float32))
    root = np.sqrt(descriptor / np.maximum(descriptor.sum(axis=1, keepdims=True), 1e-6))  # RootSIFT: Hellinger distance
    return Keypoints(np.array([point.pt for point in points], np.float32), root.astype(np.float32))


def _match(first: Keypoints, second: Keypoints) -> tuple[int, np.ndarray | None]:
    """Return the number of matches, and the affine map from `first` to `second`, float (2, 3)."""
    if min(len(first.position), len(second.position)) < MIN_MATCHES:
        return 0, None
    similarity = first.descriptor @ second.descriptor.T
    order = np.argpartition(-similarity, 1, axis=1)[:, :2]
    best_two = np.take_along_axis(similarity, order, axis=1)
    swap = best_two[:, 1] > best_two[:, 0]
    nearest = np.where(swap, order[:, 1], order[:, 0])
    best_distance, second_distance = (
        np.sqrt(np.maximum(2 - 2 * value, 0)) for value in (best_two.max(axis=1), best_two.min(axis=1))
    )
    is_clear = best_distance < _RATIO * second_distance
    if is_clear.sum() < MIN_MATCHES:
        return 0, None
    source, target = first.position[is_clear], second.position[nearest[is_clear]]
    matrix, inliers = cv2.estimateAffine2D(
        source, target, method=cv2.RANSAC, ransacReprojThreshold=_TOLERANCE_PX, maxIters=1000
    )
    if matrix is None:
        return 0, None
    scales = np.linalg.svd(matrix[:, :2], compute_uv=False)
    if scales[1] < _MIN_SCALE or scales[0] > 1 / _MIN_SCALE or scales[0] > _MAX_SCALE_RATIO * scales[1]:
        return 0, None  # a map that squeezes the points onto a line or a spot fits any points
    kept = np.asarray(inliers).ravel() > 0
    cells = (np.unique(np.round(positions[kept] / _CELL_PX), axis=0) for positions in (source, target))
    return min(map(len, cells)), matrix


def _similar_share(first: np.ndarray, second: np.ndarray, matrix: np.ndarray) -> float:
    """Return the share of places at which two grey images correlate, of the places that both show with some texture.

    Local correlation ignores brightness, contrast and colour, and a logo or a caption spoils few places. The share is
    0 if there is no such place.
    """
    height, width = second.shape
    warped = cv2.warpAffine(first.astype(np.float32), matrix, (width, height))
    covered = cv2.warpAffine(np.ones(first.shape, np.float32), matrix, (width, height), flags=cv2.INTER_NEAREST)
    a, b = (cv2.GaussianBlur(image, (0, 0), _BLUR_PX) for image in (warped, second.astype(np.float32)))

    def place_means(values: np.ndarray) -> np.ndarray:
        """Return the means over squares whose centres are half a square apart, inside the image."""
        half = _PLACE_PX // 2
        means = np.asarray(cv2.boxFilter(values, cv2.CV_64F, (_PLACE_PX, _PLACE_PX), borderType=cv2.BORDER_REPLICATE))
        return means[half : height - half + 1 : half, half : width - half + 1 : half]

    mean_a, mean_b = place_means(a), place_means(b)
    std_a, std_b = (np.sqrt(np.maximum(place_means(x * x) - m * m, 0)) for x, m in ((a, mean_a), (b, mean_b)))
    usable = (place_means(covered) > 0.999) & (std_a >= _MIN_TEXTURE) & (std_b >= _MIN_TEXTURE)
    if not usable.any():
        return 0.0
    correlation = (place_means(a * b) - mean_a * mean_b)[usable] / (std_a * std_b)[usable]
    return float((correlation > _MIN_CORRELATION).mean())
