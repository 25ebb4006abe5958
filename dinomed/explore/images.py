"""Images with their patch features, the input of the pictures of this folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dinomed.backbones.frozen import FrozenBackbone
from dinomed.burned_in_text.mask import TextMask
from dinomed.features.compute import compute_features
from dinomed.features.finite import naming
from dinomed.features.loading import BATCH_SIZE
from dinomed.images.in_memory import ImageSource, as_pixels
from dinomed.images.read import MAX_PIXELS
from dinomed.io.prefetch import batched
from dinomed.isolation.images import read_shown_isolated

SHOWN_PX = 1024  # of the longer side of an image for display


@dataclass(frozen=True)
class PatchImage:
    """An image with the patch tokens of the last block of a backbone.

    Attributes:
        name: for captions; not the name of the file, which may identify a patient.
        shown: the image for display, uint8 (H, W, 3), reduced to `SHOWN_PX`.
        size: (height, width) of the image, px.
        tokens: float32 (rows, columns, C), after the final norm.
    """

    name: str
    shown: np.ndarray
    size: tuple[int, int]
    tokens: np.ndarray

    def patch_at(self, x: float, y: float) -> tuple[int, int]:
        """Return the (row, column) of the patch at a place of the image, px; a place outside takes the nearest."""
        rows, columns = self.tokens.shape[:2]
        row, column = int(y * rows / self.size[0]), int(x * columns / self.size[1])
        return min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)


def patch_tokens(backbone: FrozenBackbone, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Compute the patch tokens of images, each float32 (rows, columns, C), of the last block after the final norm.

    Args:
        images: each (H, W, channels), as ``backbone.preprocessing.read`` returns them.

    Raises:
        NotFiniteError: the features of an image are not finite.
    """
    tokens: list[np.ndarray] = []
    for batch in batched(images, BATCH_SIZE):
        with torch.inference_mode(), naming([f"image {number + 1}" for number in range(len(images))], len(tokens)):
            features = compute_features(backbone, backbone.preprocessing.squashed.stack(batch), (-1,), True)
        assert features.patches is not None
        tokens += list(features.patches.permute(0, 2, 3, 1).float().cpu().numpy())
    return tokens


def read_sources(
    backbone: FrozenBackbone, sources: Sequence[ImageSource], mask: TextMask | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Read images from files or from memory: each as the backbone takes it, and for display, uint8 (H, W, 3).

    `mask` masks burned-in text in the images for display.

    Raises:
        UnreadableImage: a file is missing or damaged.
        UsageError: an object is not an image.
    """
    preprocessing = backbone.preprocessing
    images = []
    for source in sources:
        if isinstance(source, str | Path):
            pixels = preprocessing.read_isolated(source)
            shown = read_shown_isolated(source, preprocessing.channels, preprocessing.intensity, MAX_PIXELS)
        else:
            pixels = as_pixels(source, channels=preprocessing.channels, intensity=preprocessing.intensity)
            shown = to_rgb(pixels)
        images.append((pixels, shown if mask is None else mask(shown)))
    return images


def embed_images(
    backbone: FrozenBackbone, sources: Sequence[ImageSource], mask: TextMask | None = None
) -> list[PatchImage]:
    """Read images and compute their patch tokens.

    Args:
        backbone: its preprocessing decides how the images are read, and the number of patches.
        sources: paths, PIL images, arrays or tensors; see `dinomed.images.in_memory.as_pixels`.
        mask: masks burned-in text in the images for display.

    Raises:
        UnreadableImage: a file is missing or damaged.
        UsageError: an object is not an image.
        NotFiniteError: the features of an image are not finite.
    """
    images = read_sources(backbone, sources, mask)
    tokens = patch_tokens(backbone, [pixels for pixels, _ in images])
    return [
        PatchImage(f"image {number}", reduce_shown(shown), pixels.shape[:2], patches)
        for number, ((pixels, shown), patches) in enumerate(zip(images, tokens, strict=True), 1)
    ]


def to_rgb(pixels: np.ndarray) -> np.ndarray:
    """Convert (H, W, channels), uint8 or float32 in 0 to 1, to uint8 RGB. If there are not 3 channels, the first is
    shown in gray."""
    rgb = pixels if pixels.shape[2] == 3 else np.repeat(pixels[..., :1], 3, axis=2)
    return rgb if rgb.dtype == np.uint8 else (rgb * 255).round().astype(np.uint8)


def reduce_shown(shown: np.ndarray, side: int = SHOWN_PX) -> np.ndarray:
    """Return an image, uint8 (H, W, 3), with at most `side` pixels on the longer side."""
    image = Image.fromarray(shown)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)
