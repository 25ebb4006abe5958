"""Reading of the pixels of the images of a manifest."""

from typing import Any

import numpy as np

from dinomed.datasets.manifest import Manifest
from dinomed.images.read import read_image
from dinomed.isolation.images import read_image_isolated


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
