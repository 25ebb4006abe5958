"""Reading of a file by all readers of images, in a decoding process of the fuzz test."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from dinomed.images.decode import UnreadableImage
from dinomed.images.depthmap import read_depth
from dinomed.images.intensity import IntensityConfig
from dinomed.images.labelmap import read_label_map
from dinomed.images.read import read_header, read_image, read_mask, read_whole

READERS: tuple[Callable[[str], Any], ...] = (
    read_header,
    read_whole,
    lambda path: read_image(path, intensity=IntensityConfig(bits=16)),
    lambda path: read_image(path, at_least=64),
    lambda path: read_image(path, channels=5),
    read_mask,
    read_label_map,
    read_depth,
)


def check_reading(path: str) -> tuple[list[str], None]:
    """Return the reasons of the readers that refuse the file; another exception than `UnreadableImage` passes."""
    reasons = []
    for read in READERS:
        try:
            read(path)
        except UnreadableImage as error:
            reasons.append(error.reason)
    with suppress(UnreadableImage):
        header = read_header(path)
        assert header.width > 0
        assert header.height > 0
    return reasons, None
