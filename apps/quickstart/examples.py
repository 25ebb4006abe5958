"""Example pictures for a demo: chosen by content, numbered, encoded anew.

What a file is called, and what is written in it beside the pixels (EXIF, comments), may name a patient: neither goes
along. What is no picture that dinomed reads is passed over, whatever its name ends in.
"""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from dinomed.images.read import UnreadableImage, read_image
from dinomed.io.files import replacing

MAX_PIXELS = 30_000_000  # a demo shares one machine; the largest dermoscopy pictures have 24 megapixels


def write_examples(paths: Iterable[Path], folder: Path, count: int) -> list[Path]:
    """Write the first `count` of `paths` that are pictures as ``example_1.jpg``, ... in `folder`; the files written."""
    written: list[Path] = []
    pictures = (image for path in paths if (image := _read(path)) is not None)
    for image in islice(pictures, count):
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
