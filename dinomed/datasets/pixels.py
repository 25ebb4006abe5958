"""Reading of the pixels of the images of a manifest."""

from pathlib import Path
from typing import Any

import numpy as np

from dinomed.datasets.manifest import Manifest
from dinomed.images.read import MAX_PIXELS, IntensityConfig, read_image, read_shown
from dinomed.isolation.images import read_image_isolated, read_shown_isolated

_PERCENTILES = IntensityConfig(percentiles=(0.5, 99.5))


def read_row(manifest: Manifest, row: int, **options: Any) -> np.ndarray:
    """Read an image of a manifest.

    An image that no scan has decoded, one of a bare folder, is decoded in a process with limits (`dinomed.isolation`).

    Args:
        manifest: the manifest.
        row: row of the image.
        options: as of `dinomed.images.read.read_image`.

    Raises:
        UnreadableImage: the image cannot be read, or exceeds a limit.
    """
    read = read_image if manifest.decoded else read_image_isolated
    return read(manifest.path(row), **options)


def read_picture(path: str | Path, *, isolated: bool = False) -> np.ndarray:
    """Read the picture by which images are compared and shown on pages, uint8 RGB (H, W, 3).

    An image with other numbers of channels than 1 and 3, or with values that have no range, such as Hounsfield units,
    is shown by its first channel, from its percentile 0.5 to 99.5. The picture does not depend on a backbone, so that
    hashes of all collections can be compared.

    Args:
        isolated: decode in a process with limits (`dinomed.isolation`), as files that no scan has decoded.

    Raises:
        UnreadableImage: the image cannot be read.
    """
    if isolated:
        return read_shown_isolated(path, None, _PERCENTILES, MAX_PIXELS)
    return read_shown(path, None, _PERCENTILES)
