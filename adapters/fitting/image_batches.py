"""Batches of training images, read for every batch and augmented together with their targets."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dinomed.adapters.fitting.augment import Augment
from dinomed.adapters.fitting.optimizers import BatchIndices
from dinomed.adapters.fitting.windows import RandomWindows
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.datasets.manifest import Manifest
from dinomed.features.compute import Features
from dinomed.images.read import UnreadableImage
from dinomed.images.unchanged import check_unchanged, lost_image
from dinomed.io.prefetch import prefetch

AHEAD = 2  # batches that are read in advance
TargetLookup = Callable[[Sequence[int]], Tensor]
"""Function from rows to their targets: a value for each row, or a map (planes, side, side) at the input size."""


class ImageBatches:
    """Batches of preprocessed images of a manifest, with their targets.

    Args:
        augment: None for no augmentation.
        windows: random windows of the images, with their own targets instead of `targets`.
    """

    def __init__(
        self,
        manifest: Manifest,
        preprocessing: Preprocessing,
        targets: TargetLookup,
        augment: Augment | None,
        seed: int,
        windows: RandomWindows | None = None,
    ) -> None:
        self.manifest, self.preprocessing, self.targets = manifest, preprocessing, targets
        self.augment, self.seed, self.windows = augment, seed, windows
        self._stamps = manifest.stamps()

    def batches(self, batches: Iterable[BatchIndices]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised images (B, channels, side, side) and targets of each batch; threads read ahead."""
        yield from prefetch(self.load, batches, min(8, os.cpu_count() or 1), AHEAD)

    def load(self, batch: BatchIndices) -> tuple[Tensor, Tensor]:
        """Return the normalised images and the targets of one batch.

        Raises:
            DinomedError: an image cannot be read, or differs from the image that the manifest describes.
        """
        rows = batch.indices.tolist()
        return self._load(rows, [batch.pass_index] * len(rows))

    def copies(
        self, batches: Iterable[tuple[list[int], list[int]]]
    ) -> Iterator[tuple[list[int], list[int], Tensor, Tensor]]:
        """Yield rows, copies, normalised images and targets of each batch of rows and copies; copy 0 is not augmented.
        Threads read ahead."""

        def load(batch: tuple[list[int], list[int]]) -> tuple[list[int], list[int], Tensor, Tensor]:
            rows, copies = batch
            return rows, copies, *self._load(rows, [copy or None for copy in copies])

        yield from prefetch(load, batches, min(8, os.cpu_count() or 1), AHEAD)

    def add_images(self, features: Features, rows: Sequence[int]) -> Features:
        """Return the features of some rows with their images, on the same device."""
        pixels, _ = self._load(rows, [None] * len(rows))
        return replace(features, images=pixels.to(features.cls.device))

    def _load(self, rows: Sequence[int], passes: Sequence[int | None]) -> tuple[Tensor, Tensor]:
        """Return images and targets of rows; those with the pass None are not augmented."""
        targets = self.targets(rows) if self.windows is None else torch.zeros(len(rows))
        images, image_targets = zip(*map(self._load_image, rows, targets, passes), strict=True)
        return torch.stack(images), torch.stack(image_targets)

    def _load_image(self, row: int, targets: Tensor, pass_index: int | None) -> tuple[Tensor, Tensor]:
        path = self.manifest.path(row)
        try:
            check_unchanged(path, *self._stamps[row])
            pixels = self.preprocessing.read(path)
            if self.windows is not None and pass_index is not None:
                pixels, window_targets = self.windows.draw(pixels, self.seed, pass_index, row)
                targets = torch.from_numpy(window_targets)
            image = self.preprocessing.to_input(pixels)
        except UnreadableImage as error:
            raise lost_image(error) from None
        if self.augment is not None and pass_index is not None:
            maps = targets.numpy() if targets.ndim == 3 else None
            augmented, augmented_maps = self.augment(
                np.ascontiguousarray(image.permute(1, 2, 0).numpy()), maps, self.seed, pass_index, row
            )
            image = torch.from_numpy(augmented).permute(2, 0, 1)
            targets = targets if augmented_maps is None else torch.from_numpy(augmented_maps)
        return self.preprocessing.normalise(image), targets
