"""The stream of training batches: any step's batch can be made from the seed alone, by any worker.

Images come in a new order every epoch; the stream is cut into batches without regard to epochs. Position p of the
stream decides the image and its crops, step s decides the masks: a run that resumes at step s continues exactly.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dinomed.distributed import rank, world_size
from dinomed.errors import DinomedError
from dinomed.images.read import PLAIN, IntensityConfig, UnreadableImage, read_image
from dinomed.images.unchanged import check_unchanged
from dinomed.pretrain.data.crops import CropConfig, MultiCrop
from dinomed.pretrain.data.masking import MaskConfig, sample_masks

_CROPS, _MASKS = 1, 2  # separate streams of random numbers
_TRIES = 10
LOADER_TIMEOUT_S = 300


@dataclass(frozen=True)
class Sample:
    position: int
    globals: np.ndarray  # 2, s, s, channels; uint8, or float32 in 0 to 1
    locals: np.ndarray
    name: str
    skipped: list[str]  # unreadable files passed over on the way, with their reasons


@dataclass(frozen=True)
class RawBatch:
    """As `dinomed.pretrain.model.dinov2.Batch`, as it was read: uint8 (a quarter of the bytes), or float32 in 0 to 1."""

    step: int
    globals: Tensor  # 2B, s, s, channels
    locals: Tensor
    masks: Tensor
    masked: Tensor
    mask_weights: Tensor
    names: list[str]
    skipped: list[str]

    def split(self, size: int | None) -> "list[RawBatch]":
        """Slices of `size` images, the last one of the rest; the batch itself if it is no larger, or for None."""
        count = len(self.names)
        if size is None or size >= count:
            return [self]
        grids = [x.reshape(len(x) // count, count, *x.shape[1:]) for x in (self.globals, self.locals, self.masks)]
        slices = []
        for start in range(0, count, size):
            part = slice(start, start + size)
            views, local, masks = (grid[:, part].flatten(0, 1) for grid in grids)
            masked, weights = _masked(masks)
            # what could not be read is told once, with the first slice
            skipped = [] if start else self.skipped
            slices.append(RawBatch(self.step, views, local, masks, masked, weights, self.names[part], skipped))
        return slices

    def pin_memory(self) -> "RawBatch":
        tensors = {name: value.pin_memory() for name, value in vars(self).items() if isinstance(value, Tensor)}
        return RawBatch(**{**vars(self), **tensors})


class CropStream(Dataset[Sample]):
    """Position in the stream -> the crops of an image. `paths` are absolute, `names` are for messages; `stamps` are the
    bytes and SHA-256 of each file when it was scanned: one that has changed is passed over."""

    def __init__(
        self,
        paths: list[str],
        names: list[str],
        crops: CropConfig,
        channels: int,
        seed: int,
        stamps: list[tuple[int, str]] | None = None,
        intensity: IntensityConfig = PLAIN,
    ) -> None:
        self.stamps = stamps
        self.paths, self.names, self.seed, self.channels, self.intensity = paths, names, seed, channels, intensity
        self.multi_crop = MultiCrop(crops)
        self.at_least = crops.smallest_area() if crops.reduced_decoding else None
        self._epoch, self._order = -1, np.empty(0, int)

    def image_index(self, position: int) -> int:
        """Which image stands at `position` of the stream: a permutation of all images in each epoch."""
        epoch, within = divmod(position, len(self.paths))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.paths))
        return int(self._order[within])

    def __getitem__(self, position: int) -> Sample:
        skipped: list[str] = []
        for attempt in range(_TRIES):
            index = (self.image_index(position) + attempt) % len(self.paths)
            try:
                if self.stamps is not None:
                    check_unchanged(self.paths[index], *self.stamps[index])
                image = read_image(
                    self.paths[index], channels=self.channels, intensity=self.intensity, at_least=self.at_least
                )
            except UnreadableImage as error:  # readable when scanned; a run of days goes on without it
                skipped.append(f"{self.names[index]}: {error.reason}")
                continue
            seed = int(np.random.default_rng([self.seed, _CROPS, position]).integers(2**63))
            views, local = self.multi_crop(image, seed)
            return Sample(position, views, local, self.names[index], skipped)
        raise DinomedError(
            f"{_TRIES} images in a row cannot be read, the last one {skipped[-1]}; scan the folder again"
        )


class Collate:
    """The samples of this process at one step to a `RawBatch`, masks included."""

    def __init__(self, masks: MaskConfig, grid: tuple[int, int], seed: int, batch_size: int | None = None) -> None:
        """`batch_size` is that of all processes together; by default there is one, and the samples are all."""
        self.masks, self.grid, self.seed, self.batch_size = masks, grid, seed, batch_size

    def __call__(self, samples: list[Sample]) -> RawBatch:
        whole = self.batch_size or len(samples)
        step, first = divmod(samples[0].position, whole)
        rows = [view * whole + first + image for view in range(2) for image in range(len(samples))]
        masks = torch.from_numpy(sample_masks(2 * whole, self.grid, self.masks, (self.seed, _MASKS, step), rows))
        masked, weights = _masked(masks)
        return RawBatch(
            step=step,
            globals=_view_major([s.globals for s in samples]),
            locals=_view_major([s.locals for s in samples]),
            masks=masks,
            masked=masked,
            mask_weights=weights,
            names=[s.name for s in samples],
            skipped=[line for s in samples for line in s.skipped],
        )


def _masked(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (views, patches) to the indices of masked patches (M,) and the weight of each, 1 / (those of its view)."""
    counts = masks.sum(1, keepdim=True).clamp_min(1)
    return masks.flatten().nonzero().flatten(), (1.0 / counts).expand_as(masks)[masks]


def _view_major(crops: list[np.ndarray]) -> Tensor:
    """B arrays (V, s, s, channels) -> (V * B, s, s, channels), view by view."""
    return torch.from_numpy(np.stack(crops, axis=1).reshape(-1, *crops[0].shape[1:]))


def _leave_group(_worker: int) -> None:
    """Ctrl-C, and a SIGTERM to the process group, are for the trainer, which saves; a worker that died of one would
    break the step. The trainer's own death is noticed by the workers themselves."""
    if hasattr(os, "setsid"):  # not on Windows
        os.setsid()


class Positions(Sampler[list[int]]):
    """What a process takes of each batch: `own` positions from `first` on. Made when they are asked for, since those of
    a long run are a thousand million."""

    def __init__(self, steps: range, batch_size: int, first: int, own: int) -> None:
        self.steps, self.batch_size, self.first, self.own = steps, batch_size, first, own

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            begin = step * self.batch_size + self.first
            yield list(range(begin, begin + self.own))


def batches(
    stream: CropStream, collate: Collate, *, batch_size: int, first_step: int, last_step: int, workers: int, pin: bool
) -> Iterator[RawBatch]:
    """The batches of steps `first_step` .. `last_step - 1`, in order.

    `batch_size` is that of all processes together; each gets an equal, contiguous part of every batch, so that the
    order of the images does not depend on how many processes there are.
    """
    steps, own = range(first_step, last_step), batch_size // world_size()
    loader = DataLoader(
        stream,
        batch_sampler=Positions(steps, batch_size, rank() * own, own),
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin,
        timeout=LOADER_TIMEOUT_S if workers else 0,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_group,
        # its own, or each new loader draws from the global one and a resumed run is no longer the same
        generator=torch.Generator(),
    )
    iterator = iter(loader)
    for _ in steps:
        try:
            yield next(iterator)
        except RuntimeError as error:
            if "DataLoader" not in str(error):
                raise
            raise DinomedError(
                f"a data worker died or hung ({str(error).splitlines()[0]}); resume with --resume"
            ) from None
