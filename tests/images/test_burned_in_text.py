"""Masking of burned-in text: planted text disappears, and pictures without text stay as they are."""

import cv2
import numpy as np
import pytest

from dinomed.burned_in_text import mask as mask_module
from dinomed.burned_in_text.find import find_text
from dinomed.burned_in_text.mask import TextMask, mask_text
from dinomed.pretrain.curation.descriptors.synthetic_copies import draw_text

LINES = ["PATIENT 4711", "12.03.1962"]


def smooth_picture(seed: int = 0) -> np.ndarray:
    y, x = np.mgrid[:240, :320]
    levels = 110 + 40 * np.sin(x / 50 + seed) + 20 * np.cos(y / 40)
    return np.stack([levels + 30, levels, levels - 20], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("ink", [(255, 255, 255), (0, 0, 0)])
def test_planted_text_is_replaced_by_the_colour_around_it(ink: tuple[int, int, int]) -> None:
    plain = smooth_picture()
    written = draw_text(plain, LINES, 0.06, (0.2, 0.4), ink)
    drawn = (written != plain).any(axis=2)
    masked, regions = mask_text(written)
    assert regions >= 1
    assert np.abs(masked.astype(int) - plain).max() < 90  # of 115 or more between ink and picture
    assert np.abs(masked[drawn].astype(int) - plain[drawn]).mean() < 25
    far = np.ones(drawn.shape, bool)
    far[70:150, 40:250] = False
    assert (masked[far] == written[far]).all()


def test_a_picture_without_text_is_the_same_object() -> None:
    plain = smooth_picture(1)
    masked, regions = mask_text(plain)
    assert masked is plain
    assert regions == 0


def test_gray_pictures_and_separate_channels_are_searched() -> None:
    gray = smooth_picture()[..., 0]
    written = draw_text(np.repeat(gray[..., None], 3, axis=2), LINES, 0.06, (0.2, 0.4))[..., 0]
    assert mask_text(written)[1] >= 1
    assert mask_text(written[..., None])[0].shape == (240, 320, 1)
    channels = np.stack([gray, gray, gray], axis=-1)
    channels[..., 2] = gray // 8 + written // 4  # too faint in the mean of the channels
    last = (written // 2 + 100).astype(np.uint8)
    channels = np.stack([np.full_like(gray, 120), np.full_like(gray, 120), last], axis=-1)
    assert mask_text(channels, separate=True)[1] >= 1
    assert mask_text(channels)[1] == 0


def test_the_counts_are_those_of_all_pictures() -> None:
    mask = TextMask()
    mask(smooth_picture())
    mask(draw_text(smooth_picture(), LINES, 0.06, (0.2, 0.4)))
    assert mask.record()["images"] == 2
    assert mask.record()["images_with_text"] == 1
    assert mask.regions >= 1


def test_a_picture_that_is_all_text_becomes_black(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_module, "text_region", lambda pixels, separate: np.ones(pixels.shape[:2], bool))
    masked, regions = mask_text(smooth_picture())
    assert (masked == 0).all()
    assert regions == 1


def test_a_long_strip_is_enlarged_to_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels: list[float] = []

    def resize(image: np.ndarray, size: None, fx: float, fy: float, interpolation: int) -> np.ndarray:
        pixels.append(image.shape[0] * fy * image.shape[1] * fx)
        return image[:64]

    monkeypatch.setattr(cv2, "resize", resize)
    for shape in ((20000, 50), (50, 20000, 3), (480, 640, 3)):
        find_text(np.zeros(shape, np.uint8), 900)
    assert pixels[:2] == pytest.approx([16e6, 16e6])
    assert pixels[2] == pytest.approx(900 * 1200)
