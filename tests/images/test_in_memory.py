"""Images in memory have the same pixels as the file that they were read from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinomed.errors import UsageError
from dinomed.images.in_memory import as_pixels, list_images
from dinomed.images.intensity import IntensityConfig
from dinomed.images.read import read_image


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A PNG with noise, 5x7 px."""
    path = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_path_a_pil_image_an_array_and_a_tensor_give_the_same_pixels(file: Path, channels: int, bits: int) -> None:
    intensity = IntensityConfig(bits=bits)  # type: ignore[arg-type]
    expected = read_image(file, channels=channels, intensity=intensity)
    array = np.asarray(Image.open(file))
    sources = [str(file), file, Image.open(file), array, torch.from_numpy(array.copy()).permute(2, 0, 1)]
    for source in sources:
        pixels = as_pixels(source, channels=channels, intensity=intensity)
        assert pixels.dtype == expected.dtype
        # luma of an array is rounded, that of Pillow is computed in integers: one gray level of 255
        np.testing.assert_allclose(pixels.astype(float), expected.astype(float), atol=1 if bits == 8 else 1 / 255)


def test_the_exif_orientation_of_a_pil_image_is_applied() -> None:
    image = Image.new("RGB", (6, 4))
    image.getexif()[0x0112] = 6  # turned by a quarter
    assert as_pixels(image).shape == (6, 4, 3)


def test_gray_is_repeated_and_floats_are_scaled() -> None:
    assert as_pixels(np.full((2, 2), 0.5, np.float32)).tolist() == [[[128] * 3] * 2] * 2
    assert as_pixels(torch.zeros(4, 5)).shape == (4, 5, 3)


@pytest.mark.parametrize(
    "wrong", [None, {}, np.zeros((2, 2, 2, 3)), np.zeros((0, 3)), np.array([["a"]]), np.zeros((4, 4, 2), np.uint8)]
)
def test_anything_else_is_refused_with_a_reason(wrong: object) -> None:
    with pytest.raises(UsageError, match="image in memory"):
        as_pixels(wrong)


def test_tensors_and_pil_images_that_cannot_be_read_are_refused_with_a_reason(file: Path) -> None:
    assert as_pixels(torch.full((3, 4, 4), 0.5, dtype=torch.bfloat16)).tolist() == [[[128] * 3] * 4] * 4
    closed = Image.open(file)
    closed.close()
    cut = file.with_name("cut.png")
    cut.write_bytes(file.read_bytes()[:-60])
    for wrong, reason in (
        (torch.zeros(3, 4, 4).to_sparse(), "a tensor that cannot be read"),
        (torch.zeros(3, 4, 4, device="meta"), "a tensor that cannot be read"),
        (closed, "a PIL image that cannot be read"),
        (Image.open(cut), "a PIL image that cannot be read"),
        (Image.new("RGB", (0, 5)), "a PIL image of 0x5 px has no pixels"),
    ):
        with pytest.raises(UsageError, match=f"^image in memory: {reason}"):
            as_pixels(wrong)


def test_one_image_is_not_taken_for_a_list(file: Path) -> None:
    array = np.zeros((4, 5, 3), np.uint8)
    for one in (array, array[..., 0], torch.zeros(3, 4, 5), torch.zeros(4, 5), Image.open(file), file, str(file)):
        with pytest.raises(UsageError, match=r"^`images` is one \w+; give a list of images, such as \[image\]"):
            list_images(one)
    for wrong in (None, 3, {"a": array}):
        with pytest.raises(UsageError, match=r"^`images` is of type \w+; give a list of "):
            list_images(wrong)
    assert len(list_images(np.zeros((2, 4, 5, 3)))) == len(list_images(torch.zeros(2, 3, 4, 5))) == 2
    assert list_images(path for path in [file]) == list_images(np.array([file])) == [file]
