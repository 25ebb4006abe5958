"""Predictors of maps: on the whole image, on mirror images and other sizes of it, or by windows.

The whole image is brought into the adapter's square, and the logits are resized back in one step. The head then fuses
the maps of mirror images and other sizes, by default to their mean (the multi-scale protocol of DINOv2, section 7.4).
With windows the image keeps its size: square windows pass through the backbone one by one, and overlaps are blended
with MONAI's Gaussian weights. A band of rows is complete when no further window reaches it; therefore only one row of
windows is in memory beside the image and the result.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.fitting.build import scaled_size
from dinomed.adapters.inference.native_size import NativeSizePredictor, resize_to_input
from dinomed.adapters.predictor import Size
from dinomed.adapters.record import AdapterRecord, parse_usage
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.config import Config
from dinomed.datasets.manifest import Manifest
from dinomed.features.compute import Features
from dinomed.features.finite import NotFiniteError, check_finite


class Views(Config):
    """The views of an image over which a prediction is made.

    Attributes:
        flips: average over the mirror image too.
        scales: average over these factors of the adapter's image size.
        window: predict an image with a longer side than this, px, by windows of this size.
        overlap: share by which windows overlap, from 0 to below 1.
    """

    flips: bool = False
    scales: tuple[Annotated[float, Field(ge=0.25, le=4)], ...] = Field((1.0,), min_length=1, max_length=16)
    window: int | None = Field(None, ge=8)
    overlap: float = Field(0.25, ge=0, le=0.9)

    @property
    def native(self) -> bool:
        """Whether the image is needed at its own size, not only as a square."""
        return self.window is not None or self.scales != (1.0,)


def views_of(usage: dict[str, Any]) -> Views:
    """Return the views that a bundle records.

    Raises:
        DinomedError: a setting is out of its range, in a record that was changed.
    """
    return parse_usage(Views, usage.get("views") or {}, "views")


class DensePredictor(NativeSizePredictor):
    """Predicts maps (channels, H, W) at the size of each image."""

    exclusive: bool = False
    """Whether every pixel has exactly one class, whose probabilities sum to 1."""
    export_note = "one pass over the whole image; test-time flips and windows of dinomed are not included"

    def __init__(self, record: AdapterRecord, adapter: Adapter, backbone: FrozenBackbone, views: Views) -> None:
        super().__init__(record, adapter, backbone, native=views.native)
        self.views = views

    @property
    def shares_pass(self) -> bool:
        return super().shares_pass and not self.views.flips and self.adapter.one_pass

    @property
    def export_refusal(self) -> str:
        name = self.adapter.config.name
        return "" if self.adapter.one_pass else f"head {name} fuses passes over several sizes and mirror images"

    def output_of_image(self, image: np.ndarray) -> np.ndarray:
        return self.maps(image)

    @abstractmethod
    def activate(self, logits: Tensor) -> Tensor:
        """Return probabilities or depths of logits (B, C, H, W) at the size of the image."""

    def maps(self, image: np.ndarray) -> np.ndarray:
        """Return the maps, float32 (C, H, W), of an image (H, W, channels)."""
        return self.batch_maps(self.preprocessing(image)[None], [image.shape[:2]])[0]

    @torch.inference_mode()
    def batch_maps(self, pixels: Tensor, sizes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """Return the maps of a batch that `preprocessing` prepared, each at the (height, width) of its image.

        Raises:
            NotFiniteError: the model gives no finite values for an image.
        """
        if self.views.window is not None or self._several:
            return _one_by_one(lambda image, size: self.finish(self._by_views(image, size)), pixels, sizes)
        return self._finish_all(self.logits(pixels), sizes)

    def manifest_maps(self, manifest: Manifest) -> Iterator[np.ndarray]:
        """Yield the maps of each image of a manifest; see `batches`."""
        return chain.from_iterable(self.batches(manifest, self.batch_maps))

    def finish(self, maps: np.ndarray) -> np.ndarray:
        """Return the final maps of an image, after its views are fused; by default they do not change."""
        return maps

    def _finish_all(self, logits: Tensor, sizes: Sequence[Size]) -> list[np.ndarray]:
        return [self.finish(self.resized(image[None], size)) for image, size in zip(logits, sizes, strict=True)]

    def resized(self, logits: Tensor, size: tuple[int, ...], side: int | None = None) -> np.ndarray:
        """Return maps, float32 (C, height, width), of logits (1, C, rows, columns) at an image size of
        `side` px.

        Logits are interpolated, not probabilities, as in the fit: edges between patches stay equally steep. Without
        `side` it is the image size of the adapter.
        """
        preprocessing = self.backbone.preprocessing
        if side is not None:
            preprocessing = preprocessing.model_copy(update={"image_size": side})
        return self.activate(preprocessing.from_input(logits.float(), size))[0].cpu().numpy()

    def outputs(self, adapter: nn.Module, features: Features, size: Size) -> Tensor:
        return self.activate(interpolate(adapter(features).float(), size=size, mode="bilinear"))

    def outputs_of_features(self, features: Features, sizes: Sequence[Size]) -> list[np.ndarray]:
        return self._finish_all(self.logits_of_features(features), sizes)

    def reference_outputs(self, pixels: Tensor) -> Tensor:
        return self.activate(interpolate(self.logits(pixels), pixels.shape[-2:], mode="bilinear")).cpu()

    @property
    def _several(self) -> bool:
        return self.views.flips or self.views.scales != (1.0,) or not self.adapter.one_pass

    def _by_views(self, image: Tensor, size: Size) -> np.ndarray:
        window = self.views.window
        return self._whole(image, size) if window is None or max(size) <= window else self._by_windows(image, window)

    def _whole(self, image: Tensor, size: tuple[int, ...]) -> np.ndarray:
        """Return the maps of all sizes and mirror images, fused by the head (`Adapter.fuse`)."""
        maps: list[np.ndarray] = []
        for scale in self.views.scales:
            pixels = resize_to_input(self.backbone, image, scale) if self.native else image[None]
            side = scaled_size(self.backbone, scale)
            for mirrored in (False, True) if self.views.flips else (False,):
                parts = self._probe_logits(pixels.flip(-1) if mirrored else pixels)
                maps += [self.resized(logits.flip(-1) if mirrored else logits, size, side) for logits in parts]
        return self.adapter.fuse(np.stack(maps), self.exclusive)

    def _probe_logits(self, pixels: Tensor) -> Tensor:
        """Return the logits of each part of the head, (parts, 1, C, rows, columns), for one image."""
        logits = self.adapter.probe_logits(self._features(pixels)).float()
        check_finite("outputs", logits.transpose(0, 1))
        return logits

    def _by_windows(self, image: Tensor, window: int) -> np.ndarray:
        """Return maps, float32 (C, H, W), from windows of `window` px, each resized to the adapter's square."""
        height, width = image.shape[-2:]
        bands = self._bands(pad_to(image, window), window)
        return np.concatenate(list(bands), axis=1)[:, :height, :width]

    def _bands(self, image: Tensor, window: int) -> Iterator[np.ndarray]:
        """Yield the complete rows of the result, from the top."""
        from monai.data.utils import compute_importance_map

        height, width = image.shape[-2:]
        weight = compute_importance_map((window, window), mode="gaussian", sigma_scale=0.125).clamp_min(1e-3)
        tops, lefts = (_starts(side, window, self.views.overlap) for side in (height, width))
        total: Tensor | None = None  # of logits times weight, of the rows from `top` on
        count = torch.zeros(window, width)
        for top, below in zip(tops, [*tops[1:], height], strict=True):
            for left in lefts:
                part = image[:, top : top + window, left : left + window]
                mean = self._window_logits(part)
                total = torch.zeros(len(mean), window, width) if total is None else total
                total[:, :, left : left + window] += mean * weight
                count[:, left : left + window] += weight
            assert total is not None
            done = below - top
            yield self.activate((total[:, :done] / count[:done])[None])[0].numpy()
            total = torch.cat([total[:, done:], torch.zeros_like(total[:, :done])], dim=1)
            count = torch.cat([count[done:], torch.zeros_like(count[:done])])

    def _window_logits(self, part: Tensor) -> Tensor:
        """Return the logits of a window, (C, window, window), averaged over the mirror image if set."""
        pixels = resize_to_input(self.backbone, part, 1.0)
        logits = self.logits(pixels)
        if self.views.flips:
            logits = (logits + self.logits(pixels.flip(-1)).flip(-1)) / 2
        return interpolate(logits, part.shape[-2:], mode="bilinear")[0].cpu()


def _one_by_one(
    compute: Callable[[Tensor, Size], np.ndarray], pixels: Tensor, sizes: Sequence[Size]
) -> list[np.ndarray]:
    """Return the maps of each image; a `NotFiniteError` names all images of the batch for which there are none."""
    maps: list[np.ndarray] = []
    errors: dict[int, NotFiniteError] = {}
    for row, (image, size) in enumerate(zip(pixels, sizes, strict=True)):
        try:
            maps.append(compute(image, size))
        except NotFiniteError as error:
            errors[row] = error
    if errors:
        raise NotFiniteError(list(errors), next(iter(errors.values())).kind)
    return maps


def pad_to(image: Tensor, side: int) -> Tensor:
    """Pad an image (channels, H, W) with black at the right and at the bottom to sides of at least `side`."""
    height, width = image.shape[-2:]
    return torch.nn.functional.pad(image, (0, max(0, side - width), 0, max(0, side - height)))


def _starts(side: int, window: int, overlap: float) -> list[int]:
    """Return the starts of windows that cover `side` px, as evenly as whole pixels allow.

    >>> _starts(10, 4, 0.25), _starts(4, 4, 0.25)
    ([0, 3, 6], [0])
    """
    if side <= window:
        return [0]
    step = max(int(window * (1 - overlap)), 1)
    count = -(-(side - window) // step) + 1
    return [round(i * (side - window) / (count - 1)) for i in range(count)]
