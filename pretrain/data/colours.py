"""What happens to a crop after it was cut: flips, colours, blur, solarisation (Caron et al. 2021; DINOv2 settings).

On NumPy arrays by OpenCV: torchvision's formulas and order of colours at random, for any number of channels, uint8 or
float32 in 0 to 1. By albumentations the same takes 1.2 to 1.6 times as long with all else alike, by torchvision on
tensors 5 to 10 times (`benchmarks/loading.py`), and neither jitters more than three channels.
"""

from typing import Any

import cv2
import numpy as np

cv2.setNumThreads(0)  # workers are the parallelism
RGB = 3
Range = tuple[float, float]
Jitter = tuple[float, float, float, float]


class Colours:
    """``colours(crop, rng)``: the changes of one kind of view; sizes in px, probabilities in [0, 1].

    Saturation, hue and gray mean something of RGB only: with another number of channels they are left out.
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
        """(H, W, channels) -> the same shape and type; `crop` may be written to."""
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
    """Every sample times `factor`, clipped."""
    return _linear(image, factor, 0.0)


def scale_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """The distance of every sample from the mean luma (of all channels where they are no colours) times `factor`."""
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.shape[2] == RGB else image
    mean = float(cv2.mean(luma)[0]) if luma.ndim == 2 else float(luma.mean())
    return _linear(image, factor, (1 - factor) * (round(mean) if image.dtype == np.uint8 else mean))


def scale_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """RGB: the distance of every pixel from its own luma times `factor`."""
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    mixed = cv2.addWeighted(image, factor, gray, 1 - factor, 0)
    return mixed if image.dtype == np.uint8 else np.clip(mixed, 0, 1, out=mixed)


def shift_hue(image: np.ndarray, turn: float) -> np.ndarray:
    """RGB: the hue turned by `turn` of a whole circle, -0.5 to 0.5."""
    if image.dtype == np.uint8:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
        hsv[..., 0] += np.uint8(round(turn * 256) % 256)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360 * turn) % 360
    return np.clip(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), 0, 1)


def solarize(image: np.ndarray) -> np.ndarray:
    """Samples from 128 of 255 on are inverted."""
    if image.dtype == np.uint8:
        return np.where(image < 128, image, 255 - image)
    return np.where(image < np.float32(128 / 255), image, 1 - image)


def with_channels(function: Any, image: np.ndarray, *arguments: Any, **named: Any) -> np.ndarray:
    """An OpenCV function on (H, W, any channels): it takes four at a time, and drops a single one."""
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
