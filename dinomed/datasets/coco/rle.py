"""Run-length encoded masks as COCO stores them: the lengths of runs of 0 and 1, column by column, first of 0.

The text form packs each length into characters of 5 bits, from the third on as the difference to the length two places
before (`rleToString` in maskApi.c of pycocotools). Lengths are checked here before pycocotools reads them, since its C
code does not.
"""

from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np

from dinomed.errors import UsageError

Runs = list[int]
_MAX_SHIFT = 60  # bits of a length; images have fewer than 2**30 pixels


def mask_api() -> ModuleType:
    """Return the module `pycocotools.mask`.

    Raises:
        UsageError: pycocotools is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError:
        raise UsageError("COCO files need the package pycocotools: pip install 'dinomed[coco]'") from None
    return mask


def parse_runs(text: str) -> Runs:
    """Return the lengths of the runs from their text form.

    Raises:
        ValueError: a character is not of the text form, or the text ends within a length.

    Example:
        >>> parse_runs("52203")
        [5, 2, 2, 2, 5]
    """
    runs: Runs = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > _MAX_SHIFT:
            raise ValueError("the run lengths are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("the run lengths are cut off")
    return runs


def check_runs(runs: Any, height: int, width: int) -> Runs:
    """Return the lengths if they cover an image of height x width px exactly.

    Raises:
        ValueError: they are no lengths, or cover another number of pixels.
    """
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise ValueError("the run lengths are not whole numbers of at least 0")
    if sum(runs) != height * width:
        raise ValueError(f"the runs cover {sum(runs)} pixels, the image has {height * width}")
    return runs


def runs_of_pixels(pixels: np.ndarray, height: int, width: int) -> Runs:
    """Return the lengths of the runs of a mask whose pixels are 1 at some places.

    Args:
        pixels: int64 (N,), places of the pixels column by column (``column * height + row``), sorted.
        height: of the mask, px.
        width: of the mask, px.

    Example:
        >>> runs_of_pixels(np.array([2, 3, 4, 7]), height=2, width=5)
        [2, 3, 2, 1, 2]
    """
    if not len(pixels):
        return [height * width]
    last = np.flatnonzero(np.diff(pixels) > 1)  # of each run but the final one
    starts = pixels[np.concatenate([[0], last + 1])]
    ends = pixels[np.concatenate([last, [len(pixels) - 1]])] + 1
    edges = np.stack([starts, ends], axis=1).ravel()
    runs = np.diff(np.concatenate([[0], edges, [height * width]]))
    return [int(run) for run in (runs if runs[-1] else runs[:-1])]


def encode_runs(runs: Runs, height: int, width: int) -> dict[str, Any]:
    """Return the lengths as COCO JSON: ``{"size": [height, width], "counts": text}``."""
    encoded = mask_api().frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def draw_outlines(outlines: Iterable[list[list[float]] | Runs], height: int, width: int) -> np.ndarray:
    """Return the union of some objects as a mask, bool (height, width).

    Args:
        outlines: of each object, its polygons ``[x, y, x, y, ...]`` in px, or the lengths of its runs, both checked.
        height: of the image, px.
        width: of the image, px.
    """
    api, encoded = mask_api(), list[Any]()
    for outline in outlines:
        if outline and isinstance(outline[0], list):
            encoded += api.frPyObjects(outline, height, width)
        else:
            encoded.append(api.frPyObjects({"size": [height, width], "counts": outline}, height, width))
    return np.asarray(api.decode(api.merge(encoded))).astype(bool)
