"""Preprocessing of images for a backbone: channels, range, size, normalisation; and maps back to the image."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from dinomed.config import Config
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.pixels import read_row
from dinomed.images.intensity import IntensityConfig, match_channels
from dinomed.images.read import read_image
from dinomed.isolation.images import read_image_isolated

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ADDED_SETTINGS = ("intensity", "interpolation", "aspect", "patch_size")
"""Fields of `Preprocessing` that do not count for a fingerprint while they have their defaults."""

Aspect = Literal["square", "pad", "keep"]
MAX_RATIO = 2
"""Longest side of a rectangle (`aspect` keep), in image sizes."""
Size = Sequence[int]
"""Height and width, px."""


class ContentBox(NamedTuple):
    """The part of an input of the backbone that holds the image, px."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Its rows and columns in the input."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def content_box(size: Size, side: int, aspect: Aspect) -> ContentBox:
    """Return the part of a square of `side` px that holds an image of this height and width.

    With ``square`` it is the whole square. With ``pad`` the longer side of the image fills the square, and the shorter
    one is centred.

    >>> content_box((100, 200), 64, "pad")
    ContentBox(top=16, left=0, height=32, width=64)
    """
    if aspect == "square":
        return ContentBox(0, 0, side, side)
    height, width = (max(1, round(length * side / max(size))) for length in size)
    return ContentBox((side - height) // 2, (side - width) // 2, height, width)


def pad_to_input(content: np.ndarray, box: ContentBox, size: Size, outside: float) -> np.ndarray:
    """Put a map (..., height, width) of the size of `box` into an input of `size`; `outside` fills the rest."""
    below, right = size[0] - box.top - box.height, size[1] - box.left - box.width
    around = [(0, 0)] * (content.ndim - 2) + [(box.top, below), (box.left, right)]
    return np.pad(content, around, constant_values=outside)


def rectangle_size(size: Size, side: int, patch_size: int) -> tuple[int, int]:
    """Return the height and width, px, in whole patches, of a resized image that keeps its proportions.

    Its shorter side has `side` px. Where its longer side would have more than `MAX_RATIO` times as many, the longer
    side has so many, and the shorter one fewer than `side`. Each side has at least one patch.

    >>> rectangle_size((300, 400), 224, 14)
    (224, 294)
    >>> rectangle_size((100, 1000), 224, 14)
    (42, 448)
    """
    scale = min(side / min(size), MAX_RATIO * side / max(size))
    height, width = (max(1, round(length * scale / patch_size)) * patch_size for length in size)
    return height, width


class Preprocessing(Config):
    """Preprocessing that uses the whole image, so that nothing at the border is lost.

    With `aspect` ``square`` the image is resized to a square, which changes its proportions. With ``pad`` it keeps
    them: its longer side is resized to the side of the square, and the rest has the mean colour. The backbone computes
    patches of the padding like all others, and they count in means of patch tokens. With ``keep`` the image becomes a
    rectangle of whole patches (`rectangle_size`), so that inputs have different shapes; a batch has images of one.

    8-bit images are resized as such, antialiased, by torchvision. This is four times as fast as Pillow and
    differs from it by one grey level at most (two where it enlarges). Images of 16 bits are resized as floating-point
    numbers and clipped to their range.
    """

    image_size: int = Field(224, ge=1, description="side of the square, or shorter side of a rectangle, px")
    mean: tuple[float, ...] = Field(IMAGENET_MEAN, description="of each channel, in 0 to 1")
    std: tuple[float, ...] = Field(IMAGENET_STD, description="of each channel, in 0 to 1")
    channels: int = Field(3, ge=1)
    interpolation: Literal["bicubic", "bilinear"] = Field("bicubic", description="how images are resized, antialiased")
    intensity: IntensityConfig = Field(IntensityConfig(), description="how images are read: depth, window")
    aspect: Aspect = Field(
        "square",
        description="square: resize images to the square; pad: keep their proportions, pad with the mean; keep: resize "
        "to rectangles, with the shorter side of image_size",
    )
    patch_size: int | None = Field(
        None, ge=1, description="of the backbone, px, where aspect is keep: it divides the sides of rectangles"
    )

    @model_validator(mode="after")
    def _channels(self) -> "Preprocessing":
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"{self.channels} channels need as many values in mean and in std")
        if not all(1e-6 <= std <= 100 and abs(mean) <= 100 for mean, std in zip(self.mean, self.std, strict=True)):
            raise ValueError("mean and std are of values in 0 to 1: std must be positive, and both at most 100")
        return self

    def read(self, path: str | Path) -> NDArray[np.uint8] | NDArray[np.float32]:
        """Read an image file with these channels and this intensity; see `dinomed.images.read.read_image`.

        Returns:
            (height, width, channels).
        """
        return read_image(path, channels=self.channels, intensity=self.intensity)

    def read_row(self, manifest: Manifest, row: int) -> np.ndarray:
        """Read an image of a manifest like `read`; see `dinomed.datasets.pixels.read_row`."""
        return read_row(manifest, row, channels=self.channels, intensity=self.intensity)

    def read_isolated(self, path: str | Path) -> np.ndarray:
        """Read an image file from outside like `read`, in a process with limits on memory and time.

        Raises:
            UnreadableImage: as `read`, or the file exceeds a limit.
        """
        return read_image_isolated(path, channels=self.channels, intensity=self.intensity)

    def __call__(self, image: NDArray[np.uint8] | NDArray[np.float32]) -> "Tensor":
        """Preprocess an image: resize it for the backbone and normalise it.

        Args:
            image: (height, width, channels), uint8, or float32 in 0 to 1.

        Returns:
            float32 (channels, height, width), with the size of `input_size`.
        """
        return self.normalise(self.to_input(image))

    def stack(self, images: Sequence[np.ndarray]) -> "Tensor":
        """Preprocess images of any sizes into one batch (B, channels, image_size, image_size).

        With `aspect` ``keep`` they become squares too, since a batch has one shape.
        """
        import torch

        preprocess = self.squashed if self.aspect == "keep" else self
        return torch.stack([preprocess(image) for image in images])

    def input_size(self, size: Size) -> tuple[int, int]:
        """Return the height and width, px, of the input of the backbone for an image of this height and width."""
        if self.aspect != "keep":
            return self.image_size, self.image_size
        assert self.patch_size is not None, "FrozenBackbone sets the patch size"
        return rectangle_size(size, self.image_size, self.patch_size)

    def box(self, size: Size) -> ContentBox:
        """Return the part of the input that holds an image of this height and width; see `content_box`."""
        if self.aspect == "keep":
            return ContentBox(0, 0, *self.input_size(size))
        return content_box(size, self.image_size, self.aspect)

    def to_input(self, image: NDArray[np.uint8] | NDArray[np.float32]) -> "Tensor":
        """Resize an image, (height, width, channels) -> (channels, height, width) of `input_size`, in its type and
        range."""
        # Imported here: the settings of pretraining are read without torch.
        import torch
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2.functional import resize

        pixels = torch.from_numpy(np.array(match_channels(image, self.channels))).permute(2, 0, 1)
        side, box = self.image_size, self.box(image.shape[:2])
        size = [box.height, box.width]
        small = resize(pixels, size, interpolation=InterpolationMode(self.interpolation), antialias=True)
        small = small.clamp(0, 1) if small.is_floating_point() else small  # bicubic interpolation overshoots
        if tuple(size) == self.input_size(image.shape[:2]):
            return small
        colour = torch.tensor(self.mean).clamp(0, 1)  # about 0 after the normalisation
        colour = colour if small.is_floating_point() else (colour * 255).round()
        square = colour.to(small.dtype).view(-1, 1, 1).repeat(1, side, side)
        square[:, *box.slices] = small
        return square

    @property
    def squashed(self) -> "Preprocessing":
        """The same preprocessing with `aspect` ``square``, for pictures of patches, which divide the image evenly."""
        return self.model_copy(update={"aspect": "square"})

    def from_input(self, maps: "Tensor", size: Size) -> "Tensor":
        """Resize maps of the input to an image: the part that holds the image, interpolated bilinearly.

        Args:
            maps: (B, C, rows, columns) of any resolution, which cover the input.
            size: height and width of the image, px.

        Returns:
            (B, C, height, width). Its pixels have the same places as those of the image.
        """
        import torch
        from torch.nn.functional import grid_sample, interpolate

        side, box = self.image_size, self.box(size)
        height, width = size
        if (box.height, box.width) == self.input_size(size):
            return interpolate(maps, (height, width), mode="bilinear")

        def places(count: int, start: int, length: int) -> "Tensor":
            """Return the centres of `count` pixels, from -1 at one edge of the square to 1 at the other."""
            centres = (torch.arange(count, dtype=torch.float64) + 0.5) * length / count + start
            return (centres / side * 2 - 1).to(maps)

        y, x = places(height, box.top, box.height), places(width, box.left, box.width)
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
        return grid_sample(
            maps, grid.expand(len(maps), -1, -1, -1), mode="bilinear", padding_mode="border", align_corners=False
        )

    def normalise(self, image: "Tensor") -> "Tensor":
        """Normalise an image (channels, height, width), uint8 or float32 in 0 to 1, by `mean` and `std`, to float32."""
        import torch

        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        unit = image if image.is_floating_point() else image.float() / 255
        return ((unit - mean) / std).contiguous()
