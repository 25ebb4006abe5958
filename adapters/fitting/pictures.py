"""Training images read anew for each batch, augmented together with what is known of them."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dinomed.adapters.fitting.augment import Augment
from dinomed.adapters.fitting.loop import Draw
from dinomed.adapters.fitting.windows import RandomWindows
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.datasets.manifest import Manifest
from dinomed.errors import DinomedError
from dinomed.images.read import UnreadableImage
from dinomed.images.unchanged import check_unchanged
from dinomed.io.prefetch import prefetch

AHEAD = 2  # batches that are ready before they are asked for
Take = Callable[[Sequence[int]], Tensor]


class Pictures:
    """Images of a manifest as the backbone takes them; what is known of them comes along.

    Args:
        targets: rows -> a value for each, or its map (planes, side, side) at the size that the backbone sees.
        augment: None leaves images as they are.
        windows: draws a window of each image, and knows what there is to know of it, in place of `targets`.
    """

    def __init__(
        self,
        manifest: Manifest,
        preprocessing: Preprocessing,
        targets: Take,
        augment: Augment | None,
        seed: int,
        windows: RandomWindows | None = None,
    ) -> None:
        self.manifest, self.preprocessing, self.targets = manifest, preprocessing, targets
        self.augment, self.seed, self.windows = augment, seed, windows
        self._stamps = list(zip(manifest.column("bytes"), manifest.column("sha256"), strict=True))

    def batches(self, draws: Iterable[Draw]) -> Iterator[tuple[Tensor, Tensor]]:
        """(B, channels, side, side), normalised, and the targets of each batch; read ahead in threads."""
        yield from prefetch(self.load, draws, min(8, os.cpu_count() or 1), AHEAD)

    def load(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """One batch.

        Raises:
            DinomedError: an image cannot be read, or is another one than the manifest says.
        """
        rows = draw.indices.tolist()
        targets = self.targets(rows) if self.windows is None else torch.zeros(len(rows))
        read = map(partial(self._one, turn=draw.turn), rows, targets)
        pixels, known = zip(*read, strict=True)
        return torch.stack(pixels), torch.stack(known)

    def _one(self, row: int, targets: Tensor, turn: int) -> tuple[Tensor, Tensor]:
        path = self.manifest.path(row)
        try:
            check_unchanged(path, *self._stamps[row])
            pixels = self.preprocessing.read(path)
            if self.windows is not None:
                pixels, known = self.windows.draw(pixels, self.seed, turn, row)
                targets = torch.from_numpy(known)
            image = self.preprocessing.squash(pixels)
        except UnreadableImage as error:
            raise DinomedError(f"{error}; it could be read when the manifest was made: scan the folder again") from None
        if self.augment is not None:
            maps = targets.numpy() if targets.ndim == 3 else None
            changed, moved = self.augment(
                np.ascontiguousarray(image.permute(1, 2, 0).numpy()), maps, self.seed, turn, row
            )
            image = torch.from_numpy(changed).permute(2, 0, 1)
            targets = targets if moved is None else torch.from_numpy(moved)
        return self.preprocessing.normalise(image), targets
