"""Augmentation of a crop: flips, colour jitter, gray, blur, solarisation (Caron et al. 2021; DINOv2 settings).

It works on NumPy arrays with OpenCV: torchvision's formulas and random order of colour changes, for any number of
channels, uint8 or float32 in 0 to 1. Under the same conditions albumentations takes 1.2 to 1.6 times as long, and
torchvision on tensors 5 to 10 times (`benchmarks/pretrain/loading.py`); neither jitters more than three channels.
"""

from typing import Any

import cv2
import numpy as np

from dinomed.pretrain.data.config import Range

cv2.setNumThreads(0)  # the data workers run in parallel
RGB = 3
Jitter = tuple[float, float, float, float]


class Colours:
    """Augmentation of one kind of view, as a function of a crop and a random generator.

    Saturation, hue and gray are applied to RGB only, not to another number of channels.

    Args:
        flips: probabilities of a horizontal and a vertical flip.
        jitter: strengths of brightness, contrast, saturation and hue; `jitter_probability` is for all of them.
        gray: probability.
        blur: probability; `blur_kernel` and the range `blur_sigma` are in px.
        solarize: probability.
    """

    def __init__(
        self,
        *,
        flips: tuple[float, float],
        jitter: Jitter,
        jitter_probability: float,
        gray: float,
        blur: float,
        blur_kernel: int,
        blur_sigma: Range,
        solarize: float,
    ) -> None:
        self.horizontal, self.vertical = flips
        self.jitter, self.jitter_probability = jitter, jitter_probability
        self.gray, self.blur, self.blur_kernel, self.blur_sigma = gray, blur, blur_kernel, blur_sigma
        self.solarize = solarize

    def __call__(self, crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the augmented crop, of the same shape (H, W, channels) and type; `crop` may be changed."""
        chance = rng.random(6)
        rgb = crop.shape[2] == RGB
        axes = (chance[0] < self.horizontal, chance[1] < self.vertical)
        if any(axes):
            crop = cv2.flip(crop, {(True, False): 1, (False, True): 0}.get(axes, -1)).reshape(crop.shape)
        if chance[2] < self.jitter_probability:
            crop = self._jitter(crop, rng)
        if rgb and chance[3] < self.gray:
            crop = cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        if chance[4] < self.blur:
            side = (self.blur_kernel, self.blur_kernel)
            crop = with_channels(cv2.GaussianBlur, crop, side, rng.uniform(*self.blur_sigma))
        if chance[5] < self.solarize:
            crop = solarize(crop)
        return crop

    def _jitter(self, crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        order, amounts = rng.permutation(4), rng.random(4)
        for which in order.tolist():
            strength = self.jitter[which]
            if not strength or (which > 1 and crop.shape[2] != RGB):
                continue
            signed = (2 * amounts[which] - 1) * strength
            if which == 3:
                crop = shift_hue(crop, signed)
            else:
                low = max(0.0, 1 - strength)
                crop = (scale_brightness, scale_contrast, scale_saturation)[which](
                    crop, low + amounts[which] * (1 + strength - low)
                )
        return crop


def scale_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply every value by `factor`, and clip."""
    return _linear(image, factor, 0.0)


def scale_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply the distance of every value from the mean luma (for other than RGB: from the mean) by `factor`."""
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.shape[2] == RGB else image
    mean = float(cv2.mean(luma)[0]) if luma.ndim == 2 else float(luma.mean())
    return _linear(image, factor, (1 - factor) * (round(mean) if image.dtype == np.uint8 else mean))


def scale_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply the distance of every RGB pixel from its own luma by `factor`."""
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    mixed = cv2.addWeighted(image, factor, gray, 1 - factor, 0)
    return mixed if image.dtype == np.uint8 else np.clip(mixed, 0, 1, out=mixed)


def shift_hue(image: np.ndarray, turn: float) -> np.ndarray:
    """Turn the hue of RGB by a fraction of the colour circle, -0.5 to 0.5."""
    if image.dtype == np.uint8:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
        hsv[..., 0] += np.uint8(round(turn * 256) % 256)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360 * turn) % 360
    return np.clip(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), 0, 1)


def solarize(image: np.ndarray) -> np.ndarray:
    """Invert the values from 128 of 255 on."""
    if image.dtype == np.uint8:
        return np.where(image < 128, image, 255 - image)
    return np.where(image < np.float32(128 / 255), image, 1 - image)


def with_channels(function: Any, image: np.ndarray, *arguments: Any, **named: Any) -> np.ndarray:
    """Apply an OpenCV function to (H, W, any channels).

    OpenCV takes at most four channels, and removes the axis of a single one.
    """
    channels = image.shape[2]
    if channels <= 4:
        out = function(image, *arguments, **named)
        return out if out.ndim == 3 else out[..., None]
    parts = [
        with_channels(function, np.ascontiguousarray(image[..., i : i + 4]), *arguments, **named)
        for i in range(0, channels, 4)
    ]
    return np.concatenate(parts, axis=2)


_LEVELS = np.arange(256, dtype=np.float32)


def _linear(image: np.ndarray, factor: float, offset: float) -> np.ndarray:
    if image.dtype == np.uint8:
        table = np.rint(_LEVELS * factor + offset).clip(0, 255).astype(np.uint8)
        return np.take(table, image) if image.shape[2] > 4 else cv2.LUT(image, table).reshape(image.shape)
    return np.clip(image * np.float32(factor) + np.float32(offset), 0, 1)
