"""Masks in all their guises are mapped; label maps are refused by name (reliability row 22)."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from dinomed.errors import DinomedError
from dinomed.images.binary import binarize, to_mask


def disc(height: int = 90, width: int = 120, radius: float = 30) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (np.hypot(y - height / 2, x - width / 2) < radius).astype(np.uint8)


def saved(image: Image.Image, format: str = "PNG", **options: object) -> Image.Image:
    file = io.BytesIO()
    image.save(file, format, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def color(mask: np.ndarray, rgb: tuple[int, int, int]) -> np.ndarray:
    return mask[..., None] * np.array(rgb, np.uint8)


EXACT = {
    "0 and 255": lambda m: Image.fromarray(m * 255),
    "0 and 1": lambda m: Image.fromarray(m),
    "1 bit": lambda m: Image.fromarray(m.astype(bool)),
    "16 bit, 0 and 65535": lambda m: Image.fromarray(m.astype(np.uint16) * 65535),
    "16 bit, 0 and 255": lambda m: Image.fromarray(m.astype(np.uint16) * 255),
    "16 bit, 0 and 1": lambda m: Image.fromarray(m.astype(np.uint16)),
    "RGB gray": lambda m: Image.fromarray(color(m, (255, 255, 255))),
    "RGB red": lambda m: Image.fromarray(color(m, (255, 0, 0))),
    "RGB yellow": lambda m: Image.fromarray(color(m, (255, 255, 0))),
    "palette, maroon": lambda m: Image.fromarray(color(m, (128, 0, 0))).quantize(4),
    "white on transparent": lambda m: Image.fromarray(np.dstack([color(m, (255, 255, 255)), m * 255])),
}


@pytest.mark.parametrize("guise", EXACT)
@pytest.mark.parametrize("content", ["disc", "empty", "full"])
def test_guises_of_one_mask(guise: str, content: str) -> None:
    mask = {"disc": disc(), "empty": disc(radius=0), "full": np.ones((90, 120), np.uint8)}[content]
    read = to_mask(saved(EXACT[guise](mask)))
    assert read.dtype == np.uint8
    assert np.array_equal(read, mask)


def test_float_masks_of_zero_and_one() -> None:
    mask = disc()
    assert np.array_equal(to_mask(saved(Image.fromarray(mask.astype(np.float32)), "TIFF")), mask)
    with pytest.raises(DinomedError, match="floating-point values"):
        to_mask(saved(Image.fromarray(mask * np.float32(0.5)), "TIFF"))


@pytest.mark.parametrize("quality", [40, 75, 95])
@pytest.mark.parametrize("rgb", [(255, 255, 255), (255, 0, 0)])
def test_jpeg_edges_are_cut_at_half(quality: int, rgb: tuple[int, int, int]) -> None:
    mask = disc()
    read = to_mask(saved(Image.fromarray(color(mask, rgb)), "JPEG", quality=quality))
    # halved chroma moves the border of a coloured mask by up to a pixel: at most its circumference, here 2%
    assert (read != mask).mean() < 0.02


def test_smooth_edges_are_cut_at_half() -> None:
    for smooth in (
        Image.fromarray(disc() * 255).filter(ImageFilter.GaussianBlur(1.5)),
        Image.fromarray(disc(360, 480, 120) * 255).resize((120, 90), Image.Resampling.BOX),
        Image.fromarray(disc(45, 60, 15) * 255).resize((120, 90), Image.Resampling.BICUBIC),
    ):
        assert (to_mask(smooth) != disc()).mean() < 0.02


def test_a_straight_edge_through_pixels_is_no_class() -> None:
    levels = np.zeros((60, 60), np.uint8)
    levels[:, 30], levels[:, 31:] = 128, 255
    assert binarize(levels).sum() == 30 * 60


def label_map(*values: int, size: int = 90) -> np.ndarray:
    """Vertical stripes, one a value."""
    return np.repeat(np.array(values, np.uint8), size // len(values))[None].repeat(size, axis=0)


@pytest.mark.parametrize(
    "levels",
    [
        label_map(0, 7, 80),
        label_map(0, 1, 2),
        label_map(0, 128, 255),
        label_map(0, 85, 170, 255),
        label_map(0, 1, 255),  # 255 means "ignore" in many label maps
        label_map(0, 7),
        label_map(40, 90),
        np.random.default_rng(0).choice(np.array([0, 7, 80], np.uint8), (40, 40)),
        np.random.default_rng(0).choice(np.array([0, 128, 255], np.uint8), (40, 40)),
        np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8),
        np.linspace(0, 255, 200).astype(np.uint8)[None].repeat(50, axis=0),  # a gradient, such as depth
    ],
    ids=lambda levels: "-".join(map(str, np.unique(levels)[:5])),
)
def test_label_maps_are_refused_by_their_values(levels: np.ndarray) -> None:
    with pytest.raises(DinomedError) as caught:
        binarize(levels)
    assert all(str(value) in str(caught.value) for value in np.unique(levels)[:3])


def test_two_colours_are_two_classes() -> None:
    two = color(disc(), (255, 0, 0))
    two[:20, :20] = (0, 255, 0)
    with pytest.raises(DinomedError, match="several colours"):
        to_mask(Image.fromarray(two))
    with pytest.raises(DinomedError, match=r"several colours|values"):
        to_mask(Image.fromarray(two).quantize(4))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_any_two_level_mask_is_taken_as_it_is(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).integers(0, 2, (height, width), dtype=np.uint8)
    assert np.array_equal(binarize(mask * 255), mask)
    assert np.array_equal(binarize(mask), mask)


def on_transparent(mask: np.ndarray, mode: str, background: int, shape: int) -> Image.Image:
    """Return a shape of one gray level on a transparent background of another."""
    if mode == "P":
        indexed = Image.fromarray(mask, "P")
        indexed.putpalette([background] * 3 + [shape] * 3)
        return saved(indexed, transparency=0)
    levels = np.where(mask > 0, shape, background).astype(np.uint8)
    return saved(Image.fromarray(np.dstack([levels, mask * 255]), "LA").convert(mode))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("background", [0, 255])
def test_a_black_shape_on_a_transparent_background_is_no_empty_mask(mode: str, background: int) -> None:
    with pytest.raises(DinomedError, match="the shape is only in the transparency"):
        to_mask(on_transparent(disc(), mode, background, 0))
    assert np.array_equal(to_mask(on_transparent(disc(), mode, background, 255)), disc())
    assert not to_mask(on_transparent(disc(radius=0), mode, background, 0)).any()
