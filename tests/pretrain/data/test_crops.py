"""Crops and colours: torchvision's formulas and distributions, any channels and depth, presets."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as F

from dinomed.images.read import read_image
from dinomed.modalities import CROP_PRESETS
from dinomed.pretrain.data import colours
from dinomed.pretrain.data.colours import Colours
from dinomed.pretrain.data.config import CropConfig
from dinomed.pretrain.data.crops import MultiCrop, _window, random_resized_crop


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """A smooth image of many colours: uint8 (48, 64, 3)."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    return np.asarray(small.resize((64, 48), Image.Resampling.BICUBIC))


def unit(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) / 255


CHANGES = [
    ("scale_brightness", F.adjust_brightness, (0.6, 1.4)),
    ("scale_contrast", F.adjust_contrast, (0.6, 1.4)),
    ("scale_saturation", F.adjust_saturation, (0.8, 1.2)),
    ("shift_hue", F.adjust_hue, (-0.1, 0.05)),
]


@pytest.mark.parametrize(("name", "theirs", "amounts"), CHANGES)
def test_colour_changes_equal_those_of_torchvision(
    name: str, theirs: object, amounts: tuple[float, ...], picture: np.ndarray
) -> None:
    tensor = torch.from_numpy(unit(picture)).permute(2, 0, 1)
    for amount in amounts:
        wanted = theirs(tensor, amount).permute(1, 2, 0).numpy()  # type: ignore[operator]
        exact = getattr(colours, name)(unit(picture), amount)
        assert exact.dtype == np.float32
        assert np.abs(exact - wanted).max() < 2e-3  # luma: 0.2989 there, 0.299 here
        coarse = getattr(colours, name)(picture.copy(), amount).astype(int)
        # a step of an 8-bit hue is 6 levels of a pure colour; turn and hue are both rounded to one, as in PIL
        assert np.abs(coarse - wanted * 255).max() < (12 if name == "shift_hue" else 1.6)
        assert np.abs(coarse - wanted * 255).mean() < 1.5


def test_blur_gray_and_solarisation_equal_those_of_torchvision(picture: np.ndarray) -> None:
    def only(**on: float) -> Colours:
        off = {"gray": 0.0, "blur": 0.0, "solarize": 0.0} | on
        return Colours(
            flips=(0, 0), jitter=(0, 0, 0, 0), jitter_probability=0, blur_kernel=9, blur_sigma=(1.3, 1.3), **off
        )

    tensor, rng = torch.from_numpy(picture.copy()).permute(2, 0, 1), np.random.default_rng(0)
    for changes, wanted in (
        ({"blur": 1.0}, F.gaussian_blur(tensor, [9, 9], [1.3, 1.3])),
        ({"gray": 1.0}, F.rgb_to_grayscale(tensor, 3)),
        ({"solarize": 1.0}, F.solarize(tensor, 128)),
    ):
        augmented = only(**changes)(picture.copy(), rng)
        assert np.abs(augmented.astype(int) - wanted.permute(1, 2, 0).numpy()).max() <= 1  # rounding


def test_windows_have_the_distribution_of_torchvision() -> None:
    for (height, width), scale in (((75, 100), (0.05, 0.32)), ((40, 160), (0.32, 1.0))):
        rng, blank = np.random.default_rng(0), torch.empty(1, height, width)
        torch.manual_seed(0)
        ours = np.array([_window(height, width, scale, (3 / 4, 4 / 3), rng) for _ in range(2000)], float)
        theirs = np.array(
            [RandomResizedCrop.get_params(blank, list(scale), [3 / 4, 4 / 3]) for _ in range(2000)], float
        )
        for figure in (lambda w: w[:, 2] * w[:, 3], lambda w: w[:, 3] / w[:, 2], lambda w: w[:, 0], lambda w: w[:, 1]):
            assert (
                ks_2samp(figure(ours), figure(theirs), method="asymp").statistic < 0.052
            )  # p = 0.01 at 2,000 draws each


@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, np.uint8), (5, np.uint8), (1, np.float32), (3, np.float32), (7, np.float32)]
)
def test_any_channels_and_either_depth(channels: int, dtype: type) -> None:
    rng = np.random.default_rng(0)
    image = rng.random((70, 90, channels), np.float32)
    image = image if dtype is np.float32 else (image * 255).astype(np.uint8)
    crops = MultiCrop(CropConfig(global_size=32, local_size=16, num_local=3, blur_kernel=3, vertical_flip=0.5))
    before = image.copy()
    for seed in range(8):
        views, local = crops(image, seed)
        assert (views.shape, local.shape) == ((2, 32, 32, channels), (3, 16, 16, channels))
        assert views.dtype == local.dtype == dtype
        assert views.min() >= 0
        assert views.max() <= (1 if dtype is np.float32 else 255)
        again = crops(image, seed)
        assert np.array_equal(views, again[0])
        assert np.array_equal(local, again[1])
    assert np.array_equal(image, before)


def test_channels_other_than_rgb_are_not_mixed() -> None:
    """Hue, saturation and gray would mix the channels."""
    image = np.zeros((40, 40, 5), np.float32)
    image[..., 2] = np.random.default_rng(0).random((40, 40))
    crops = MultiCrop(
        CropConfig(
            global_size=16, num_local=0, jitter=(0.4, 0.0, 0.5, 0.5), gray_probability=1.0, solarize_probability=0
        )
    )
    for seed in range(5):
        views, _ = crops(image, seed)
        assert not views[..., [0, 1, 3, 4]].any()
        assert views[..., 2].any()


def test_shrinking_and_enlarging_keep_the_mean(picture: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    for channels in (1, 3, 6):
        image = np.repeat(picture[..., :1], channels, axis=2)
        small = random_resized_crop(image, 24, (1.0, 1.0), rng)
        large = random_resized_crop(image, 96, (1.0, 1.0), rng)
        assert (small.shape, large.shape) == ((24, 24, channels), (96, 96, channels))
        assert abs(small.mean() - large.mean()) < 3  # of 255; the window's aspect differs


OFF = {
    "natural": set(),
    "dermoscopy": {"gray", "solarize"},
    "endoscopy": {"gray", "solarize"},
    "xray": {"gray", "solarize", "saturation", "hue", "flip"},
    "ultrasound": {"gray", "solarize", "saturation", "hue"},
    "fundus": {"gray", "solarize"},
}


@pytest.mark.parametrize("modality", OFF)
def test_presets_switch_off_augmentation_that_changes_a_finding(modality: str, picture: np.ndarray) -> None:
    assert OFF.keys() == CROP_PRESETS.keys()
    config = CropConfig.model_validate({"modality": modality})
    on = {
        "gray": config.gray_probability, "solarize": config.solarize_probability, "saturation": config.jitter[2],
        "hue": config.jitter[3], "flip": config.horizontal_flip,
    }  # fmt: skip
    assert {name for name, value in on.items() if not value} == OFF[modality]
    assert (config.vertical_flip > 0) == (modality in ("dermoscopy", "endoscopy"))  # any way up
    if modality not in ("natural",):
        assert config.jitter[3] <= 0.03  # red stays red
    # what is given besides stays
    assert CropConfig.model_validate({"modality": modality, "gray_probability": 0.3}).gray_probability == 0.3
    # and the views show it: a gray picture stays gray, a dark left half stays on the left where flips are off
    halves = np.zeros((64, 64, 3), np.uint8)
    halves[:, 32:] = 200
    whole = {"global_scale": (0.95, 1.0), "global_size": 32, "num_local": 0, "modality": modality}
    crops = MultiCrop(CropConfig.model_validate(whole))
    mirrored = {bool(view[:, :8].mean() > view[:, -8:].mean()) for seed in range(40) for view in crops(halves, seed)[0]}
    assert mirrored == ({False} if modality == "xray" else {False, True})


def test_blur_follows_the_paper_or_the_released_code_in_each_view() -> None:
    """The released code inverts the probabilities (defect 1). The test counts the blurred views."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    plain = {
        "global_size": 32, "global_scale": (1.0, 1.0), "local_size": 32, "local_scale": (1.0, 1.0), "num_local": 1,
        "jitter_probability": 0.0, "gray_probability": 0.0, "solarize_probability": 0.0, "horizontal_flip": 0.0,
        "blur_sigma": (1.0, 2.0),
    }  # fmt: skip
    for blur, wanted in (("paper", (1.0, 0.1, 0.5)), ("released", (0.0, 0.9, 0.5))):
        crops = MultiCrop(CropConfig.model_validate({**plain, "blur": blur}))
        made = [np.concatenate(crops(noise, seed)) for seed in range(400)]
        shares = np.mean([[(view != noise).any() for view in views] for views in made], axis=0)
        assert np.abs(shares - wanted).max() < 0.08  # three deviations of 400 draws
        assert CropConfig(blur=blur).blur_probabilities() == wanted


def test_large_jpegs_are_decoded_smaller_but_no_crop_is_enlarged(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize((1024, 768), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "a.jpg", quality=95)
    least = CropConfig().smallest_area()
    assert least == 192_080  # 98^2 / 0.05
    whole, half = read_image(tmp_path / "a.jpg"), read_image(tmp_path / "a.jpg", at_least=least)
    assert half.shape == (384, 512, 3)
    means = whole.reshape(384, 2, 512, 2, 3).mean((1, 3))
    assert np.abs(half - means).mean() < 1.5  # of 255: libjpeg scales in the frequencies
    assert read_image(tmp_path / "a.jpg", at_least=least + 5000).shape == whole.shape
    smooth.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", at_least=least).shape == whole.shape
