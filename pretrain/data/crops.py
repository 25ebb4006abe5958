"""Multi-crop: two global views and several local views of an image (Caron et al. 2020; DINOv2 settings).

Crops are resized here (area averaging to shrink, bicubic to enlarge); flips and colours are in
`dinomed.pretrain.data.colours`. All random numbers of an image come from one seed, so its views do not depend on the
worker that computes them, and a resumed run is exact.
"""

import math

import numpy as np

from dinomed.pretrain.data.colours import Colours, with_channels
from dinomed.pretrain.data.config import CropConfig, Range


class MultiCrop:
    """Function from an image (H, W, channels), uint8 or float32, and a seed to its views of the same type:
    global views (2, s, s, channels) and local views (n, t, t, channels)."""

    def __init__(self, config: CropConfig) -> None:
        self.config = config
        first, second, local = config.blur_probabilities()
        solarize = config.solarize_probability
        self._globals = (_colours(config, first), _colours(config, second, solarize))
        self._anchors = (_colours(config, first, enlarged=2), _colours(config, second, solarize, enlarged=2))
        self._local = _colours(config, local)

    def __call__(self, image: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        c, channels = self.config, image.shape[2]
        views = [
            colours(random_resized_crop(image, c.global_size, c.global_scale, rng), rng) for colours in self._globals
        ]
        crops = np.empty((c.num_local, c.local_size, c.local_size, channels), image.dtype)
        for crop in crops:
            crop[:] = self._local(random_resized_crop(image, c.local_size, c.local_scale, rng), rng)
        return np.stack(views), crops

    def anchors(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Return the global views of the same seed at twice their size, (2, 2s, 2s, channels).

        Windows, flips and colours are the same: they depend on random numbers only, not on the size. The blur has twice
        the width in px.
        """
        rng, c = np.random.default_rng(seed), self.config
        return np.stack([
            colours(random_resized_crop(image, 2 * c.global_size, c.global_scale, rng), rng)
            for colours in self._anchors
        ])  # fmt: skip


def random_resized_crop(
    image: np.ndarray, size: int, scale: Range, rng: np.random.Generator, aspect: Range = (3 / 4, 4 / 3)
) -> np.ndarray:
    """Cut a random window and resize it to (size, size, channels).

    It does what torchvision's RandomResizedCrop does: ten tries, then the largest centred window of an allowed aspect.

    Args:
        scale: lowest and highest share of the image area.
        aspect: lowest and highest width / height, log-uniform.
    """
    import cv2

    top, left, rows, columns = _window(image.shape[0], image.shape[1], scale, aspect, rng)
    window = image[top : top + rows, left : left + columns]
    if rows >= size and columns >= size:
        return with_channels(cv2.resize, window, (size, size), interpolation=cv2.INTER_AREA)
    out = with_channels(cv2.resize, window, (size, size), interpolation=cv2.INTER_CUBIC)
    return out if out.dtype == np.uint8 else np.clip(out, 0, 1, out=out)  # bicubic interpolation overshoots


def _window(
    height: int, width: int, scale: Range, aspect: Range, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Sample top, left, rows and columns of a window."""
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(10):
        u = rng.random(4).tolist()
        area = height * width * (scale[0] + u[0] * (scale[1] - scale[0]))
        ratio = math.exp(low + u[1] * (high - low))
        columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            return int(u[2] * (height - rows + 1)), int(u[3] * (width - columns + 1)), rows, columns
    rows, columns = height, width
    if width / height < aspect[0]:
        rows = round(width / aspect[0])
    elif width / height > aspect[1]:
        columns = round(height * aspect[1])
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _colours(config: CropConfig, blur: float, solarize: float = 0.0, enlarged: int = 1) -> Colours:
    """Return the augmentation of a view; `enlarged` is the multiple of its size, for the width of the blur."""
    low, high = config.blur_sigma
    return Colours(
        flips=(config.horizontal_flip, config.vertical_flip),
        jitter=config.jitter,
        jitter_probability=config.jitter_probability,
        gray=config.gray_probability,
        blur=blur,
        blur_kernel=enlarged * (config.blur_kernel - 1) + 1,
        blur_sigma=(enlarged * low, enlarged * high),
        solarize=solarize,
    )
