"""Drawing of masks over images, for reports. Images are uint8 (H, W, 3), masks (H, W)."""

import numpy as np
import torch
from torch.nn.functional import max_pool2d

LINE = (0, 229, 255)  # cyan: differs from skin, lesions and gentian ink
HALO = (0, 38, 51)  # a dark rim outside the line, for contrast on pale skin
FILL = 0.22


def line_width_px(shape: tuple[int, ...]) -> int:
    """Return the width of an outline: 2 px, and more for large images, which are displayed smaller."""
    return max(2, round(max(shape[:2]) / 350))


def grow(mask: np.ndarray, radius_px: int) -> np.ndarray:
    """Return the mask dilated by a square of `radius_px`, bool (H, W)."""
    if radius_px == 0 or not mask.any():
        return mask.astype(bool)
    size = 2 * radius_px + 1
    # Two passes with a line equal one with a square, in time linear in the radius.
    planes = torch.from_numpy(mask.astype(np.float32))[None, None]
    planes = max_pool2d(planes, (size, 1), stride=1, padding=(radius_px, 0))
    planes = max_pool2d(planes, (1, size), stride=1, padding=(0, radius_px))
    return planes[0, 0].numpy() > 0


def outline(mask: np.ndarray, width_px: int) -> np.ndarray:
    """Return the pixels inside `mask` that are at most `width_px` from its border, bool (H, W).

    >>> outline(np.ones((5, 5)), 1).sum()
    np.int64(0)
    """
    inside = mask.astype(bool)
    return inside & grow(~inside, width_px)


def draw_mask(image: np.ndarray, mask: np.ndarray, *, fill: float = FILL) -> np.ndarray:
    """Return the image with the outline of the mask and its inside tinted by `fill` (0: none, 1: opaque)."""
    assert image.shape[:2] == mask.shape, (image.shape, mask.shape)
    inside, width = mask.astype(bool), line_width_px(image.shape)
    out = image.copy()
    if fill:
        tint = (1 - fill) * image[inside].astype(np.float32) + fill * np.array(LINE, dtype=np.float32)
        out[inside] = tint.round().astype(np.uint8)
    out[grow(inside, max(1, width // 2)) & ~inside] = HALO
    out[outline(inside, width)] = LINE
    return out
