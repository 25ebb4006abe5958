"""Preprocessing: resizing compared with Pillow, normalisation, conversion of channels."""

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from dinomed.backbones.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, match_channels
from dinomed.errors import UsageError


def picture(height: int = 300, width: int = 451) -> np.ndarray:
    """Smooth shapes and noise, seeded."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 17) * np.cos(y / length) for length in (5, 11, 23)]
    base = 127 + 100 * np.stack(waves, axis=-1)
    return np.clip(base + rng.normal(0, 12, base.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("size", "levels_apart"), [(224, 1), (64, 1), (518, 2)])
def test_resizing_equals_pillow_within_a_grey_level(size: int, levels_apart: int) -> None:
    image = picture()
    pillow = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
    pixels = Preprocessing(image_size=size)(image)
    assert (pixels.shape, pixels.dtype) == ((3, size, size), torch.float32)
    mean, std = (np.array(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    levels = (pixels.numpy() * std + mean) * 255
    apart = np.abs(levels - pillow.transpose(2, 0, 1))
    assert apart.max() <= levels_apart + 0.01  # two passes, each rounded to 8 bits; overshoots are larger in enlarging
    assert apart.mean() < 0.1


def test_normalisation_follows_the_definition() -> None:
    image = np.full((10, 12, 3), (255, 0, 128), dtype=np.uint8)
    pixels = Preprocessing(image_size=8, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))(image)
    assert torch.allclose(pixels[:, 3, 4], torch.tensor([1.0, -1.0, 128 / 255 / 2]), atol=1e-6)


def test_read_only_and_sliced_images_work() -> None:
    image = picture()
    image.setflags(write=False)
    preprocessing = Preprocessing(image_size=32)
    flipped = preprocessing(image[:, ::-1])
    assert torch.equal(flipped, preprocessing(np.ascontiguousarray(image[:, ::-1])))


def test_channels_are_converted_by_the_stated_rule() -> None:
    image = picture(20, 30)
    grey = Preprocessing(image_size=20, channels=1, mean=(0.5,), std=(0.5,))
    assert grey(image).shape == (1, 20, 20)
    luma = np.asarray(Image.fromarray(image).convert("L")).astype(int)
    assert np.abs(match_channels(image, 1)[..., 0] - luma).max() <= 1  # Pillow's is in fixed point
    assert np.array_equal(match_channels(image[..., :1], 3)[..., 2], image[..., 0])
    with pytest.raises(UsageError, match="an image of 4 channels does not fit a backbone that takes 3"):
        match_channels(np.zeros((4, 4, 4), np.uint8), 3)


@pytest.mark.parametrize(
    "wrong", [{"mean": (0.5,)}, {"std": (0.5, 0.0, 0.5)}, {"channels": 1}, {"image_size": 0}, {"crop": 224}]
)
def test_invalid_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        Preprocessing(**wrong)
