"""Stream of training batches. Any worker can compute the batch of any step from the seed alone.

Images come in a new order in every epoch; the stream is cut into batches without regard to epochs. The position in the
stream determines an image and its crops, the step determines the masks, so a resumed run continues exactly.
"""

import contextlib
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from dinomed.distributed import rank, world_size
from dinomed.errors import DinomedError, first_line
from dinomed.images.read import PLAIN, IntensityConfig, UnreadableImage, read_image
from dinomed.images.unchanged import check_unchanged
from dinomed.isolation.images import read_image_isolated
from dinomed.pretrain.data.config import CropConfig
from dinomed.pretrain.data.crops import MultiCrop
from dinomed.pretrain.data.masking import MaskConfig, sample_masks

_CROPS, _MASKS = 1, 2  # separate streams of random numbers
_MAX_TRIES = 10
_MAX_WORKERS = 256
LOADER_TIMEOUT_S = 300
_STOPPING = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Sample:
    """The crops of one image."""

    position: int
    globals: np.ndarray  # 2, s, s, channels; uint8, or float32 in 0 to 1
    locals: np.ndarray
    name: str
    skipped: list[str]  # unreadable images that this one replaces, with the reasons
    anchors: np.ndarray | None = None  # 2, 2s, 2s, channels: the global views at twice their size


@dataclass(frozen=True)
class RawBatch:
    """A batch as `dinomed.pretrain.model.dinov2.ViewBatch` before normalisation: uint8 (a quarter of the bytes), or
    float32 in 0 to 1."""

    step: int
    globals: Tensor  # 2B, s, s, channels
    locals: Tensor
    masks: Tensor
    masked: Tensor
    mask_weights: Tensor
    names: list[str]
    skipped: list[str]
    anchors: Tensor | None = None  # 2B, 2s, 2s, channels

    def split(self, size: int | None) -> "list[RawBatch]":
        """Return slices of `size` images; the last one may be smaller. For None, the batch itself."""
        count = len(self.names)
        if size is None or size >= count:
            return [self]
        views = [self.globals, self.locals, self.masks, *([] if self.anchors is None else [self.anchors])]
        grids = [x.reshape(len(x) // count, count, *x.shape[1:]) for x in views]
        slices = []
        for start in range(0, count, size):
            part = slice(start, start + size)
            global_views, local_views, masks, *anchors = (grid[:, part].flatten(0, 1) for grid in grids)
            masked, weights = _masked_patches(masks)
            skipped = [] if start else self.skipped  # reported once, with the first slice
            names = self.names[part]
            slices.append(
                RawBatch(self.step, global_views, local_views, masks, masked, weights, names, skipped, *anchors)
            )
        return slices

    def pin_memory(self) -> "RawBatch":
        """Return the batch in page-locked memory; the DataLoader calls it."""
        tensors = {name: value.pin_memory() for name, value in vars(self).items() if isinstance(value, Tensor)}
        return RawBatch(**{**vars(self), **tensors})


class CropStream(Dataset[Sample]):
    """Dataset from a position in the stream to the crops of an image.

    Args:
        paths: of all training images, absolute.
        names: of the images, for messages.
        stamps: of the manifest (`Manifest.stamps`); a file that has changed since the scan is skipped.
        early_positions: number of first positions whose crops have the sizes of `crops.early`.
        isolated: decode in processes with limits (`dinomed.isolation`): for files that no scan has decoded.
        anchors_from: position from which on samples have the global views at twice their size too; None: never.
    """

    def __init__(
        self,
        paths: list[str],
        names: list[str],
        crops: CropConfig,
        channels: int,
        seed: int,
        stamps: list[tuple[int, str, int | None]] | None = None,
        intensity: IntensityConfig = PLAIN,
        early_positions: int = 0,
        isolated: bool = False,
        anchors_from: int | None = None,
    ) -> None:
        self.paths, self.names, self.stamps = paths, names, stamps
        self.seed, self.channels, self.intensity = seed, channels, intensity
        self.read_image = read_image_isolated if isolated else read_image
        self.multi_crop, self.early_multi_crop = MultiCrop(crops), MultiCrop(crops.early_crops())
        self.early_positions, self.anchors_from = early_positions, anchors_from
        self._epoch, self._order = -1, np.empty(0, int)
        # for each data worker, its process and the image that it reads; shared with the workers
        self._worker_pids = multiprocessing.RawArray("q", _MAX_WORKERS)
        self._worker_images = multiprocessing.RawArray("q", [-1] * _MAX_WORKERS)

    def image_index(self, position: int) -> int:
        """Return the index of the image at `position`; every epoch is a permutation of all images."""
        epoch, index_in_epoch = divmod(position, len(self.paths))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.paths))
        return int(self._order[index_in_epoch])

    def __getitem__(self, position: int) -> Sample:
        skipped: list[str] = []
        multi_crop = self.early_multi_crop if position < self.early_positions else self.multi_crop
        anchored = self.anchors_from is not None and position >= self.anchors_from
        for attempt in range(_MAX_TRIES):
            index = (self.image_index(position) + attempt) % len(self.paths)
            try:
                image = self._read(index, multi_crop.config, anchor_scale=2 if anchored else 1)
            except UnreadableImage as error:  # readable at the scan; a run of days continues without it
                skipped.append(f"{self.names[index]}: {error.reason}")
                continue
            seed = int(np.random.default_rng([self.seed, _CROPS, position]).integers(2**63))
            global_views, local_views = multi_crop(image, seed)
            anchors = multi_crop.anchors(image, seed) if anchored else None
            return Sample(position, global_views, local_views, self.names[index], skipped, anchors)
        raise DinomedError(
            f"{_MAX_TRIES} images in a row cannot be read, the last one {skipped[-1]}; scan the folder again"
        )

    def images_of_workers(self, pids: Collection[int] = ()) -> list[str]:
        """Return the names of the images that data workers are reading, or were reading when they died.

        Args:
            pids: only of these processes; of all if none of them is a worker.
        """
        reading = {
            pid: self.names[index]
            for pid, index in zip(self._worker_pids, self._worker_images, strict=True)
            if index >= 0
        }
        return [name for pid, name in reading.items() if pid in pids] or list(reading.values())

    def _read(self, index: int, crops: CropConfig, anchor_scale: int) -> np.ndarray:
        worker = get_worker_info()
        if worker is None or worker.id >= _MAX_WORKERS:
            return self._read_pixels(index, crops, anchor_scale)
        self._worker_pids[worker.id], self._worker_images[worker.id] = os.getpid(), index
        try:
            return self._read_pixels(index, crops, anchor_scale)
        finally:
            self._worker_images[worker.id] = -1

    def _read_pixels(self, index: int, crops: CropConfig, anchor_scale: int) -> np.ndarray:
        path = self.paths[index]
        if self.stamps is not None:
            check_unchanged(path, *self.stamps[index])
        min_area = crops.smallest_area(anchor_scale) if crops.reduced_decoding else None
        return self.read_image(path, channels=self.channels, intensity=self.intensity, at_least=min_area)


class Collate:
    """Function from the samples of this process at one step to a `RawBatch` with masks.

    Args:
        grid: rows and columns of patches of a global view.
        batch_size: images of all processes together; by default there is one process, and `samples` is the whole batch.
        early_steps: number of first steps whose global views have the grid `early_grid` (`CropConfig.early`).
    """

    def __init__(
        self,
        masks: MaskConfig,
        grid: tuple[int, int],
        seed: int,
        batch_size: int | None = None,
        early_steps: int = 0,
        early_grid: tuple[int, int] | None = None,
    ) -> None:
        self.masks, self.grid, self.seed, self.batch_size = masks, grid, seed, batch_size
        self.early_steps, self.early_grid = early_steps, early_grid or grid

    def __call__(self, samples: list[Sample]) -> RawBatch:
        batch_size = self.batch_size or len(samples)
        step, first = divmod(samples[0].position, batch_size)
        rows = [view * batch_size + first + image for view in range(2) for image in range(len(samples))]
        grid = self.early_grid if step < self.early_steps else self.grid
        masks = torch.from_numpy(sample_masks(2 * batch_size, grid, self.masks, (self.seed, _MASKS, step), rows))
        masked, weights = _masked_patches(masks)
        anchors = [s.anchors for s in samples if s.anchors is not None]
        return RawBatch(
            step=step,
            globals=_sort_by_view([s.globals for s in samples]),
            locals=_sort_by_view([s.locals for s in samples]),
            masks=masks,
            masked=masked,
            mask_weights=weights,
            names=[s.name for s in samples],
            skipped=[line for s in samples for line in s.skipped],
            anchors=_sort_by_view(anchors) if anchors else None,
        )


def _masked_patches(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices (M,) of the masked patches of masks (views, patches), and the weight of each:
    1 / (number of masked patches of its view)."""
    counts = masks.sum(1, keepdim=True).clamp_min(1)
    return masks.flatten().nonzero().flatten(), (1.0 / counts).expand_as(masks)[masks]


def _sort_by_view(crops: list[np.ndarray]) -> Tensor:
    """Stack B arrays (V, s, s, channels) to (V * B, s, s, channels), sorted by view."""
    return torch.from_numpy(np.stack(crops, axis=1).reshape(-1, *crops[0].shape[1:]))


def _leave_signals_to_the_trainer(_worker: int) -> None:
    """Protect a worker from Ctrl-C and SIGTERM, which a terminal or a scheduler may send to all processes of a job.

    They are for the trainer, which saves; a worker that died of one would break the step. Workers end by themselves
    when the trainer does.
    """
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error of a worker, but for the loss of a trainer that ended while it took over a tensor."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Block SIGINT and SIGTERM in this thread, and in processes that are started here until they unblock them.

    A worker would die of a signal that arrives before it ignores it.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class BatchPositions(Sampler[list[int]]):
    """Positions in the stream that this process takes of each batch: `count` of them, from `first` on.

    They are computed when needed, because a long run has a billion of them.
    """

    def __init__(self, steps: range, batch_size: int, first: int, count: int) -> None:
        self.steps, self.batch_size, self.first, self.count = steps, batch_size, first, count

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            begin = step * self.batch_size + self.first
            yield list(range(begin, begin + self.count))


def load_batches(
    stream: CropStream, collate: Collate, *, batch_size: int, first_step: int, last_step: int, workers: int, pin: bool
) -> Iterator[RawBatch]:
    """Yield the batches of steps `first_step` .. `last_step - 1`, in order.

    Each process gets an equal, contiguous part of every batch, so the order of the images does not depend on the number
    of processes.

    Args:
        batch_size: images of all processes together.
        workers: data-loading processes; 0 loads in this process.
        pin: load into page-locked memory, for a GPU.
    """
    steps, count = range(first_step, last_step), batch_size // world_size()
    loader = DataLoader(
        stream,
        batch_sampler=BatchPositions(steps, batch_size, rank() * count, count),
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin,
        timeout=LOADER_TIMEOUT_S if workers else 0,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_signals_to_the_trainer,
        # A loader without its own generator draws from the global one, and a resumed run would differ.
        generator=torch.Generator(),
    )
    with _blocked_signals():
        iterator = iter(loader)
    for _ in steps:
        try:
            yield next(iterator)
        except RuntimeError as error:
            failure = worker_failure(error, stream)
            if workers:
                _end_workers(iterator)
            raise failure or error from None


def _end_workers(iterator: Any) -> None:
    """End the workers of a loader. One that hangs ignores SIGTERM, and this process would wait for it when it exits."""
    with contextlib.suppress(RuntimeError):  # torch reports a worker that dies meanwhile
        iterator._shutdown_workers()  # torch then no longer takes their end for an error
    for worker in iterator._workers:
        worker.kill()


def worker_failure(error: RuntimeError, stream: CropStream | None) -> DinomedError | None:
    """Return the error of a data worker that died or hung, with the images that it read; None for another error.

    torch raises the error at the next batch, or at any time while the training step runs.
    """
    if stream is None or "DataLoader" not in str(error):
        return None
    names = stream.images_of_workers({int(number) for number in re.findall(r"\d+", str(error))})
    while_reading = f" while it read {' or '.join(names[:3])}" if names else ""
    return DinomedError(
        f"a data worker died or hung{while_reading} ({first_line(error)}); use `resume=True`, without a damaged image"
    )
