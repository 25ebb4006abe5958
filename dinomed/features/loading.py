"""Loading images for a backbone in batches: those of a manifest, read ahead in threads, and images in memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dinomed.backbones.preprocessing import Preprocessing
from dinomed.datasets.manifest import Manifest
from dinomed.images.in_memory import ImageSource, as_pixels
from dinomed.images.read import UnreadableImage
from dinomed.images.unchanged import check_unchanged, lost_image
from dinomed.io.prefetch import batched, prefetch

BATCH_SIZE = 16  # larger batches are no faster on a CPU
Transform = Callable[[int, Tensor], Tensor]
"""Function from a row and its image, resized but not normalised (channels, height, width), to another such image."""


@dataclass(frozen=True)
class LoadedImage:
    """An image that is preprocessed for the backbone, or the reason why it cannot be read.

    Attributes:
        index: row of the image in its manifest.
        size: height and width of the image file, px; (0, 0) if it cannot be read.
        pixels: (channels, height, width) of `Preprocessing.input_size`; None if the image cannot be read.
        error: reason why it cannot be read.
    """

    index: int
    size: tuple[int, int]
    pixels: Tensor | None
    error: UnreadableImage | None = None


def load_images(
    manifest: Manifest, preprocessing: Preprocessing, workers: int | None = None, transform: Transform | None = None
) -> Iterator[LoadedImage]:
    """Read and preprocess the images of a manifest in its order, ahead of their use.

    Files that no scan has decoded, those of a bare folder, are decoded in processes with limits (`dinomed.isolation`).

    600 images of 200x150 px to 192 px on two busy cores: 960 images/s, a DataLoader with two workers 520. The smallest
    backbone takes 40/s a core.
    """
    stamps = manifest.stamps()

    def load(index: int) -> LoadedImage:
        try:
            check_unchanged(manifest.path(index), *stamps[index])
            image = preprocessing.read_row(manifest, index)
        except UnreadableImage as error:
            return LoadedImage(index, (0, 0), None, error)
        size = image.shape[0], image.shape[1]
        if transform is None:
            return LoadedImage(index, size, preprocessing(image))
        return LoadedImage(index, size, preprocessing.normalise(transform(index, preprocessing.to_input(image))))

    return prefetch(load, range(len(manifest)), workers)


def is_unchanged(manifest: Manifest, checked_ns: int, workers: int | None = None) -> bool:
    """Return whether the images of a manifest have the size and the content of the scan; missing files are ignored.

    Only files that were changed, moved or copied since `checked_ns` are hashed.

    Args:
        checked_ns: time at which the reading of these images began, when they had the content of the scan, ns.
        workers: threads; None chooses by the number of processors.
    """
    stamps = manifest.stamps()

    def check(row: int) -> bool:
        try:
            check_unchanged(manifest.path(row), *stamps[row], checked_ns)
        except UnreadableImage:
            return False
        return True

    return all(prefetch(check, range(len(manifest)), workers))


def load_batches(
    manifest: Manifest, preprocessing: Preprocessing, batch_size: int = BATCH_SIZE
) -> Iterator[list[LoadedImage]]:
    """Load the images of a manifest in batches of one shape; images that cannot be read are among them.

    Where shapes differ (`aspect` keep) a batch ends when the next image has another one, so the order stays.
    """
    return batched(load_images(manifest, preprocessing), batch_size, shape_of)


def shape_of(image: LoadedImage) -> tuple[int, ...] | None:
    """Return the shape of the pixels of a loaded image; None if it cannot be read."""
    return None if image.pixels is None else tuple(image.pixels.shape)


def preprocess_batches(
    images: Iterable[ImageSource], preprocessing: Preprocessing, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[Tensor, list[tuple[int, ...]]]]:
    """Preprocess images from files or from memory in batches of one shape; see `load_batches`.

    Yields:
        The pixels of a batch (B, channels, height, width), and the height and width of each image, px.

    Raises:
        UnreadableImage: a file is missing or damaged.
        UsageError: an object is not an image.
    """
    arrays = (
        preprocessing.read_isolated(image)
        if isinstance(image, str | Path)
        else as_pixels(image, channels=preprocessing.channels, intensity=preprocessing.intensity)
        for image in images
    )
    yield from preprocess_arrays(arrays, preprocessing, batch_size)


def preprocess_arrays(
    arrays: Iterable[np.ndarray], preprocessing: Preprocessing, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[Tensor, list[tuple[int, ...]]]]:
    """Preprocess images (height, width, channels) as `Preprocessing.read` returns them; yields as
    `preprocess_batches`."""
    prepared = ((preprocessing(array), array.shape[:2]) for array in arrays)
    for batch in batched(prepared, batch_size, lambda image: image[0].shape):
        yield torch.stack([pixels for pixels, _ in batch]), [size for _, size in batch]


def stack_pixels(images: Sequence[LoadedImage]) -> Tensor:
    """Return the pixels of loaded images as one batch (B, channels, height, width).

    Raises:
        DinomedError: an image cannot be read. Results that left it out would be wrong without a trace.
    """
    for image in images:
        if image.error is not None:
            raise lost_image(image.error)
    return torch.stack([image.pixels for image in images if image.pixels is not None])
