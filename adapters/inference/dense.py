"""Predictors that say something of every pixel: of the whole image at once, of mirror images and other sizes of it
too, or of one window after another.

The whole image is squashed to the adapter's square, and what the head says is stretched back in one step. Mirror images
and other sizes are averaged after that (the paper's multi-scale protocol, section 7.4). With windows the image stays as
large as it is: squares of it go through the backbone one by one, and what overlaps is blended by MONAI's Gaussian
weights. A band of rows is finished as soon as no further window reaches it, so that beside the picture and the result
only one row of windows is in memory.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.inference.predictor import Predictor
from dinomed.adapters.record import AdapterRecord
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.images.intensity import match_channels

MAX_SCALED = 4096  # px: a larger side of the square would take attention maps of gigabytes


@dataclass(frozen=True)
class Views:
    """How an image is looked at: mirrored too, at which factors of the adapter's size, or, where a side is longer than
    `window` px, by windows of that size that overlap by the share `overlap` (0 to below 1)."""

    flips: bool = False
    scales: tuple[float, ...] = (1.0,)
    window: int | None = None
    overlap: float = 0.25

    @property
    def native(self) -> bool:
        """Whether the image itself is needed, and not only its square."""
        return self.window is not None or self.scales != (1.0,)


def views_of(usage: dict[str, Any]) -> Views:
    """How a bundle says that images are looked at."""
    found = usage.get("views")
    return Views(**{**found, "scales": tuple(found["scales"])}) if isinstance(found, dict) else Views()


class AsItIs(Preprocessing):
    """Reads as the adapter's preprocessing does, and leaves size and values alone: (channels, height, width)."""

    def __call__(self, image: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(match_channels(image, self.channels))).permute(2, 0, 1)


class DensePredictor(Predictor):
    """Maps (channels, H, W) at each image's own size."""

    def __init__(self, record: AdapterRecord, adapter: Adapter, backbone: FrozenBackbone, views: Views) -> None:
        super().__init__(record, adapter, backbone)
        self.views = views
        self.batch_size = 1 if views.native else Predictor.batch_size
        self._native = AsItIs(**backbone.preprocessing.model_dump())

    @property
    def preprocessing(self) -> Preprocessing:
        return self._native if self.views.native else self.backbone.preprocessing

    @abstractmethod
    def activate(self, logits: Tensor) -> Tensor:
        """What the head says, (B, C, H, W) at the image's size, as what a person reads: probabilities, depths."""

    def maps(self, image: np.ndarray) -> np.ndarray:
        """An image (H, W, channels) as it was read -> float32 (C, H, W)."""
        return self.batch_maps(self.preprocessing(image)[None], [image.shape[:2]])[0]

    @torch.inference_mode()
    def batch_maps(self, pixels: Tensor, sizes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """The same of a batch made ready by `preprocessing`, each image at its own (height, width)."""
        if self.views.window is not None:
            window = self.views.window
            return [
                self._whole(image, size) if max(size) <= window else self._by_windows(image, window)
                for image, size in zip(pixels, sizes, strict=True)
            ]
        return [self._whole(one, size) for one, size in zip(pixels, sizes, strict=True)] if self._several else [
            self.resized(one[None], size) for one, size in zip(self.logits(pixels), sizes, strict=True)
        ]  # fmt: skip

    def resized(self, logits: Tensor, size: tuple[int, ...]) -> np.ndarray:
        """Logits (1, C, rows, columns) -> float32 (C, height, width).

        Logits and not probabilities are interpolated, in one step: an edge between patches stays as steep as it was
        fitted.
        """
        return self.activate(interpolate(logits.float(), (size[0], size[1]), mode="bilinear"))[0].cpu().numpy()

    @property
    def _several(self) -> bool:
        return self.views.flips or self.views.scales != (1.0,)

    def _whole(self, image: Tensor, size: tuple[int, ...]) -> np.ndarray:
        """The mean over sizes and mirror images."""
        found: list[np.ndarray] = []
        for scale in self.views.scales:
            pixels = self._square(image, scale) if self.views.native else image[None]
            for mirrored in (False, True) if self.views.flips else (False,):
                logits = self.logits(pixels.flip(-1) if mirrored else pixels)
                found.append(self.resized(logits.flip(-1) if mirrored else logits, size))
        return np.stack(found).mean(axis=0, dtype=np.float32)

    def _square(self, image: Tensor, scale: float) -> Tensor:
        """Squashed to the adapter's square times `scale`, in whole patches, normalised: (1, C, side, side)."""
        ours, patch = self.backbone.preprocessing, self.backbone.patch_size
        side = min(max(round(ours.image_size * scale / patch), 1) * patch, MAX_SCALED // patch * patch)
        return ours.model_copy(update={"image_size": side})(image.permute(1, 2, 0).numpy())[None]

    def _by_windows(self, image: Tensor, window: int) -> np.ndarray:
        """float32 (C, H, W) from windows of `window` px, each squashed to the adapter's square."""
        height, width = image.shape[-2:]
        bands = self._bands(pad_to(image, window), window)
        return np.concatenate(list(bands), axis=1)[:, :height, :width]

    def _bands(self, image: Tensor, window: int) -> Iterator[np.ndarray]:
        """Finished rows of the result, from the top."""
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
        """(C, window, window), over mirror images too."""
        pixels = self._square(part, 1.0)
        logits = self.logits(pixels)
        if self.views.flips:
            logits = (logits + self.logits(pixels.flip(-1)).flip(-1)) / 2
        return interpolate(logits, part.shape[-2:], mode="bilinear")[0].cpu()


def pad_to(image: Tensor, side: int) -> Tensor:
    """(channels, H, W), black added at the right and at the bottom where a side is shorter than `side`."""
    height, width = image.shape[-2:]
    return torch.nn.functional.pad(image, (0, max(0, side - width), 0, max(0, side - height)))


def _starts(side: int, window: int, overlap: float) -> list[int]:
    """Where windows begin so that they cover `side` px, as evenly as whole pixels allow.

    >>> _starts(10, 4, 0.25), _starts(4, 4, 0.25)
    ([0, 3, 6], [0])
    """
    if side <= window:
        return [0]
    step = max(int(window * (1 - overlap)), 1)
    count = -(-(side - window) // step) + 1
    return [round(i * (side - window) / (count - 1)) for i in range(count)]
