"""What is known about an image once it has been read: every file is decoded whole, once, with its mask."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dinomed.images.labelmap import read_label_map
from dinomed.images.read import Header, MaskSizeError, UnreadableImage, read_header, read_mask, read_whole
from dinomed.io.files import sha256_file
from dinomed.io.prefetch import prefetch
from dinomed.progress import bar

_LYING = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_CHUNK = 32  # files a task: single files cost more in switching between threads than they spread the load


@dataclass(frozen=True)
class Facts:
    """One image that can be used. `foreground` is the share of its mask that is lesion, None where there is none;
    `mask_problem` says why a mask cannot be used, `wrong_size` that it has another size than the image; `turned` that
    EXIF turns the image and not the mask, and that both have a shape that fits either way."""

    image: str
    sha256: str
    bytes: int
    header: Header
    mask: str | None = None
    foreground: float | None = None
    mask_problem: str | None = None
    wrong_size: bool = False
    turned: bool = False


def read_facts(
    folder: Path, image: str, mask: str | None = None, label_maps: bool = False, decode: bool = True
) -> Facts:
    """Read `image` and `mask` (paths relative to `folder`); masks may be label maps, of any values.

    Raises:
        UnreadableImage: the image cannot be used. A mask that cannot be used is told in the result.
    """
    path = folder / image
    header = read_whole(path) if decode else read_header(path)
    foreground, problem, wrong_size, turned = None, None, False, False
    if mask is not None and decode:
        try:
            read = read_label_map if label_maps else read_mask
            foreground = float((read(folder / mask, size=(header.height, header.width)) != 0).mean())
            turned = header.orientation != 1 and _fits_both_ways(header) and read_header(folder / mask).orientation == 1
        except UnreadableImage as error:
            problem, wrong_size = error.reason, isinstance(error, MaskSizeError)
            if wrong_size and _fits_as_stored(header, read_header(folder / mask)):
                problem += "; it fits the image as it is stored, before its EXIF orientation: turn the mask upright"
    return Facts(image, sha256_file(path), path.stat().st_size, header, mask, foreground, problem, wrong_size, turned)


def _fits_both_ways(image: Header) -> bool:
    """Whether turning the image as its EXIF orientation asks leaves its shape as it was."""
    return image.width == image.height or image.orientation not in _LYING


def _fits_as_stored(image: Header, mask: Header) -> bool:
    return image.orientation in _LYING and (mask.height, mask.width) == (image.width, image.height)


def read_all(
    folder: Path,
    images: Sequence[str],
    masks: Mapping[str, str],
    workers: int | None = None,
    label_maps: bool = False,
    decode: bool = True,
) -> tuple[list[Facts], list[tuple[str, str]]]:
    """The facts of all `images` that can be read, in their order, and (path, reason) of the others.

    In threads: Pillow frees the interpreter while it decodes, and no process has to start (measured on 3,000 pictures
    of 200x150 and 2 cores: 2.2 s with one thread, 1.2 s with two, 1.9 s with two processes).
    """

    def read_chunk(start: int) -> list[Facts | UnreadableImage]:
        return [_try(folder, image, masks.get(image), label_maps, decode) for image in images[start : start + _CHUNK]]

    starts = range(0, len(images), _CHUNK)
    facts: list[Facts] = []
    unreadable: list[tuple[str, str]] = []
    with bar("reading images", len(images)) as progress:
        for start, results in zip(
            starts, prefetch(read_chunk, starts, workers or min(16, os.cpu_count() or 1)), strict=True
        ):
            for image, result in zip(images[start:], results, strict=False):
                if isinstance(result, Facts):
                    facts.append(result)
                else:
                    unreadable.append((image, result.reason))
            progress.advance(len(results))
    return facts, unreadable


def _try(folder: Path, image: str, mask: str | None, label_maps: bool, decode: bool) -> Facts | UnreadableImage:
    try:
        return read_facts(folder, image, mask, label_maps, decode)
    except UnreadableImage as error:
        return error
