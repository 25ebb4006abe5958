"""Handcrafted features of an image: colour, gradients and texture, with and without their place; no weights.

No part is robust to every edit of a copy, but for each edit some part is robust. Gradients with their place
(`_gradients`) are robust to colour changes; histograms of colour and texture to rotations, flips and crops; Fourier
magnitudes around the centre, and histograms of rings, hold the radius without the angle. The weight of each part is
learned from synthetic copies (`descriptors.projection`).
"""

from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np

from dinomed.pretrain.curation.filters.quality import find_content

SIDE, TEXTURE_SIDE = 64, 128  # px; images are resized to squares
_PADDING = 10  # grey levels: maximum range of a row of padding
_CELLS, _DIRECTIONS, _SIGMAS = 4, 8, (1.0, 2.5)
_BINS = 8
_FREQUENCIES, _RADII, _ANGLES = 8, 12, 64
_RING_EDGES, _RING_BINS = (0.3, 0.5, 0.7, 0.9), 12  # in half sides


def compose(image: np.ndarray) -> np.ndarray:
    """Compute the features of an image, uint8 RGB ``(H, W, 3)``: float32 ``(SIZE,)``, each part of about length 1.

    Uniform padding is cropped, and the image is resized to a square. 3 ms.
    """
    image = _cut_padding(image)
    small = _resize(image, SIDE)
    lab = np.asarray(cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB))
    gray = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)).astype(np.float32)
    fine = np.asarray(cv2.cvtColor(_resize(image, TEXTURE_SIDE), cv2.COLOR_RGB2GRAY)).astype(np.float32)
    parts = [_gradients(gray), _colors(lab), _texture(fine), _polar(lab), _rings(lab)]
    return np.concatenate(parts).astype(np.float32)


def _cut_padding(image: np.ndarray) -> np.ndarray:
    top, bottom, left, right = find_content(image, _PADDING)
    if (bottom - top) * (right - left) < 0.1 * image.shape[0] * image.shape[1]:
        return image  # nearly uniform: too little would be left
    return np.ascontiguousarray(image[top:bottom, left:right])


def _resize(image: np.ndarray, side: int) -> np.ndarray:
    shrinks = min(image.shape[:2]) >= side
    return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR))


def _gradients(gray: np.ndarray) -> np.ndarray:
    """Compute the strength of gradients by direction and place, at two scales."""
    parts = []
    for sigma in _SIGMAS:
        smooth = cv2.GaussianBlur(gray, (0, 0), sigma)
        strength, angle = cv2.cartToPolar(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
        place = np.asarray(angle) * (_DIRECTIONS / (2 * np.pi))
        low = place.astype(np.intp)
        share = place - low
        flat = np.arange(SIDE) * _CELLS // SIDE
        cell = (flat[:, None] * _CELLS + flat) * _DIRECTIONS
        sums = np.bincount(
            (cell + low % _DIRECTIONS).ravel(), (strength * (1 - share)).ravel(), _CELLS**2 * _DIRECTIONS
        )
        sums += np.bincount((cell + (low + 1) % _DIRECTIONS).ravel(), (strength * share).ravel(), len(sums))
        parts.append(_unit(np.sqrt(sums / (SIDE / _CELLS) ** 2), 1e-3))
    return np.concatenate(parts)


def _colors(lab: np.ndarray) -> np.ndarray:
    """Compute the joint histogram of the three channels of Lab."""
    return _histogram([_bin(lab[..., c], *span, _BINS) for c, span in enumerate(((0, 100), (-32, 48), (-32, 64)))])


def _texture(gray: np.ndarray) -> np.ndarray:
    """Compute joint histograms of three octaves of detail (differences of Gaussians), with normalised contrast."""
    gray = (gray - gray.mean()) / (gray.std() + 4)
    smooth = [gray, *(cv2.GaussianBlur(gray, (0, 0), sigma) for sigma in (1.5, 3, 6, 12))]
    detail = [(finer - coarser)[4:-4, 4:-4] for finer, coarser in pairwise(smooth)]
    bins = [_bin(np.sign(band) * np.sqrt(np.abs(band)), -0.8, 0.8, _BINS) for band in detail[1:]]
    finest = _bin(detail[0], -0.5, 0.5, _BINS)
    return np.concatenate([_histogram(bins), _histogram([finest, bins[0]])])


def _polar(lab: np.ndarray) -> np.ndarray:
    """Compute Fourier magnitudes along circles around the centre, which rotations and flips do not change."""
    centre = ((SIDE - 1) / 2, (SIDE - 1) / 2)
    size = (2 * _RADII, _ANGLES)
    circles = np.asarray(cv2.warpPolar(lab, size, centre, SIDE / 2, cv2.INTER_LINEAR))
    circles = circles.reshape(_ANGLES, _RADII, 2, 3).mean(axis=2)
    waves = np.abs(np.fft.rfft(circles, axis=0))[:_FREQUENCIES] / _ANGLES
    waves[0] -= waves[0].mean(axis=0)  # `_colors` holds the mean colour; this part holds its change with the radius
    return np.concatenate([_unit(waves[..., c].ravel(), 0.5) for c in range(3)])


def _rings(lab: np.ndarray) -> np.ndarray:
    """Compute a histogram of each channel in each of five rings around the centre."""
    ring = _ring_of()
    parts = []
    for c, span in enumerate(((0, 100), (-18, 62), (-18, 62))):
        bins = ring * _RING_BINS + _bin(lab[..., c], *span, _RING_BINS)
        table = np.bincount(bins.ravel(), minlength=(len(_RING_EDGES) + 1) * _RING_BINS).reshape(-1, _RING_BINS)
        parts.append(np.sqrt(table / table.sum(axis=1, keepdims=True)).ravel())
    return np.concatenate(parts)


@lru_cache
def _ring_of() -> np.ndarray:
    """Return the ring of every pixel, (SIDE, SIDE)."""
    offset = (np.arange(SIDE) - (SIDE - 1) / 2) / (SIDE / 2)
    return np.digitize(np.hypot(offset[:, None], offset), _RING_EDGES)


def _bin(values: np.ndarray, low: float, high: float, bins: int) -> np.ndarray:
    """Return the index of equal bins between low and high; values outside go into the outer bins."""
    return np.clip((values - low) * (bins / (high - low)), 0, bins - 1).astype(np.intp)


def _histogram(bins: list[np.ndarray]) -> np.ndarray:
    """Compute the square roots of the shares of a joint histogram: a vector of length 1."""
    joint = np.zeros_like(bins[0])
    for index in bins:
        joint = joint * _BINS + index
    counts = np.bincount(joint.ravel(), minlength=_BINS ** len(bins))
    return np.sqrt(counts / joint.size)


def _unit(vector: np.ndarray, floor: float) -> np.ndarray:
    return vector / (np.linalg.norm(vector) + floor)


SIZE = 2 * _CELLS**2 * _DIRECTIONS + 2 * _BINS**3 + _BINS**2 + 3 * (_FREQUENCIES * _RADII + 5 * _RING_BINS)
