"""Binary masks: conversion of the usual encodings to 0 and 1; label maps are refused.

Accepted are two levels (0 and 1, 0 and 255, or a palette of black and one colour), and 0 to 255 with soft edges, as
JPEG and smooth resizing produce them, with a threshold of 128. Intermediate levels count as edges if they are within
4 px of both a dark (below 32) and a bright (from 224) pixel, and cover at most a quarter of the image. Dark levels
other than black count as compression noise if they are within 20 px (a JPEG block with halved colour) of a bright
pixel. If the other intermediate or dark pixels exceed 1% of the foreground, they are a class or an "ignore"
value; only the user can map it, so the mask is refused.
"""

import numpy as np
from PIL import Image

from dinomed.errors import DinomedError
from dinomed.images.intensity import flatten, is_wide, samples

_HALF, _DARK, _BRIGHT = 128, 32, 224
_EDGE_PX, _NOISE_PX, _MAX_BLACK = 4, 20, 3
_MAX_HALF_TONES, _STRAY = 0.25, 0.01


def to_mask(image: Image.Image) -> np.ndarray:
    """Decode `image` to a mask, uint8 ``(H, W)`` of 0 and 1, without its EXIF orientation.

    Raises:
        DinomedError: the values are not those of a mask; the message names them.
    """
    mask = _to_mask(image)
    refuse_hidden_shape(image, mask)
    return mask


def refuse_hidden_shape(image: Image.Image, values: np.ndarray) -> None:
    """Raise a `DinomedError` if `values` (H, W) are all 0, but the transparency of their image has a shape."""
    if values.any() or not image.has_transparency_data:
        return
    alpha = np.asarray(image.convert("RGBA"))[..., 3]
    if alpha.min() < alpha.max():
        raise DinomedError(
            "empty once its transparency is applied: the shape is only in the transparency, which is not read; write "
            "it in gray values, 255 in the mask and 0 outside"
        )


def _to_mask(image: Image.Image) -> np.ndarray:
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if is_wide(image):
        return _from_wide(samples(image))
    if image.mode == "P":
        colored = flatten(image).convert("RGB")
        foreground = np.asarray(colored).any(axis=2)
        colors = colored.getcolors(2)
        if colors is not None and len(colors) - (not foreground.all()) <= 1:  # black and one other colour
            return np.asarray(foreground, np.uint8)
    flat = flatten(image)
    if flat.mode == "L":
        return binarize(np.asarray(flat))
    return binarize(_one_color(np.asarray(flat.convert("RGB"))))


def binarize(levels: np.ndarray) -> np.ndarray:
    """Convert gray levels, uint8 ``(H, W)``, to 0 and 1 by the rule of the module.

    >>> binarize(np.array([[0, 255], [255, 0]], np.uint8)).tolist()
    [[0, 1], [1, 0]]
    """
    present = np.flatnonzero(np.bincount(levels.ravel(), minlength=256))
    if present[-1] <= 1:
        return levels.copy()
    mask = (levels >= _HALF).astype(np.uint8)
    if set(present) <= {0, 255}:
        return mask
    bright = levels >= _BRIGHT
    half_tone = (levels >= _DARK) & ~bright
    black = np.bincount(levels[levels < _DARK], minlength=1).argmax()  # 0, or near it in a strongly compressed JPEG
    dark_noise = (levels < _DARK) & (levels != (black if black <= _MAX_BLACK else 0))
    if present[-1] < _BRIGHT or half_tone.mean() > _MAX_HALF_TONES:
        raise _refused(present)
    edge = _near(bright, _EDGE_PX) & _near(levels < _DARK, _EDGE_PX)
    stray = (half_tone & ~edge).sum() + (dark_noise & ~_near(bright, _NOISE_PX)).sum()
    if stray > _STRAY * mask.sum():
        raise _refused(present)
    return mask


def _from_wide(values: np.ndarray) -> np.ndarray:
    """Convert samples above 8 bits: 0 and 1, 8-bit levels in a 16-bit file, or the full 16 bits."""
    if values.dtype.kind == "f":
        if not np.isin(values, (0, 1)).all():
            raise DinomedError("floating-point values other than 0 and 1; a mask has 0 and 1, or 0 and 255")
        return values.astype(np.uint8)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise _refused(np.unique(values))
    if high <= 255:
        return binarize(values.astype(np.uint8))
    if high < _BRIGHT * 257:
        raise _refused(np.unique(values))
    return binarize((values.astype(np.uint32) // 257).astype(np.uint8))


def _one_color(pixels: np.ndarray) -> np.ndarray:
    """Return the levels of the brightest channel of RGB ``(H, W, 3)`` if all bright pixels have one colour."""
    if (pixels == pixels[..., :1]).all():
        return pixels[..., 0]
    levels = pixels.max(axis=2)
    codes = ((pixels >= _HALF) * np.array([1, 2, 4], np.uint8)).sum(axis=2, dtype=np.uint8)
    counts = np.bincount(codes.ravel(), minlength=8)[1:]
    common = counts > _STRAY * counts.sum()
    if common.sum() > 1:
        names = [name for name, there in zip(_COLORS, common, strict=True) if there]
        raise DinomedError(f"several colours ({', '.join(names)}); a mask has black and one other colour")
    return levels


_COLORS = ("red", "green", "yellow", "blue", "magenta", "cyan", "white")


def _near(pixels: np.ndarray, distance: int) -> np.ndarray:
    """Return where a true pixel is within `distance` px along both axes."""
    import cv2  # here: few masks need it

    side = 2 * distance + 1
    return cv2.dilate(pixels.astype(np.uint8), np.ones((side, side), np.uint8)).astype(bool)


def _refused(levels: np.ndarray) -> DinomedError:
    named = ", ".join(str(int(level)) for level in levels[:8]) + (", ..." if len(levels) > 8 else "")
    return DinomedError(
        f"values {named} are not those of a mask (0 and 1, or 0 and 255); map its classes to 0 and 255, or "
        "scan with `label_maps=True` and train with `settings=['kind=multiclass']`"
    )
