"""Example images of a demo, without the names and the metadata of the original files."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from dinomed.images.read import UnreadableImage, read_image
from dinomed.io.files import replacing

MAX_PIXELS = 30_000_000  # visitors of a demo share one machine; the largest dermoscopy images have 24 megapixels


def write_examples(paths: Iterable[Path], folder: Path, count: int) -> list[Path]:
    """Write the first `count` readable images as ``example_1.jpg``, ... and return the files.

    Names of files and metadata (EXIF, comments) may identify a patient, so the images are numbered and encoded again.
    Files that are not images are skipped.
    """
    written: list[Path] = []
    images = (image for path in paths if (image := _read(path)) is not None)
    for image in islice(images, count):
        target = folder / f"example_{len(written) + 1}.jpg"
        with replacing(target) as temporary:
            Image.fromarray(image).save(temporary, format="JPEG", quality=95, subsampling=0)
        written.append(target)
    return written


def _read(path: Path) -> np.ndarray | None:
    try:
        return read_image(path, max_pixels=MAX_PIXELS)
    except UnreadableImage:
        return None
