"""Windows: which values of a volume become black and white.

The named windows are in Hounsfield units. Their widths and levels are the typical values of the article "Windowing
(CT)" of Radiopaedia; they differ between hospitals.
"""

from collections.abc import Sequence

import numpy as np

from dinomed.errors import UsageError, did_you_mean

Window = tuple[float, float]
"""The values of black and of white."""
_LEVELS = {  # name -> width and level
    "lung": (1500, -600),
    "mediastinum": (350, 50),
    "soft_tissue": (400, 50),
    "liver": (150, 30),
    "bone": (1800, 400),
    "brain": (80, 40),
    "stroke": (40, 40),
    "subdural": (200, 75),
}
WINDOWS: dict[str, Window] = {name: (level - width / 2, level + width / 2) for name, (width, level) in _LEVELS.items()}
"""Named windows in Hounsfield units."""
MAX_WINDOWS = 3
PERCENTILES = (0.5, 99.5)
"""Percentiles of a volume that are black and white without a window."""
_SAMPLE = 2_000_000
"""Voxels of which percentiles are computed, evenly spaced; all of a smaller volume."""


def parse_windows(texts: Sequence[str]) -> list[Window]:
    """Return windows, each given by its name or as ``LOW,HIGH``.

    Raises:
        UsageError: there are more than `MAX_WINDOWS`, or one is neither a name nor two numbers in order.
    """
    if len(texts) > MAX_WINDOWS:
        raise UsageError(f"`window`: {len(texts)} windows; a picture has at most {MAX_WINDOWS} channels")
    return [_parse(text) for text in texts]


def has_named(texts: Sequence[str]) -> bool:
    """Return whether a window is given by its name, so that it is in Hounsfield units."""
    return any(text in WINDOWS for text in texts)


def _parse(text: str) -> Window:
    if text in WINDOWS:
        return WINDOWS[text]
    try:
        low, high = (float(number) for number in text.split(","))
    except ValueError:
        raise UsageError(
            f"`window={text}`: give LOW,HIGH, such as -160,240, or a name{did_you_mean(text, WINDOWS)}"
        ) from None
    if not np.isfinite([low, high]).all() or not low < high:
        raise UsageError(f"`window={text}`: LOW must be below HIGH, such as -160,240")
    return low, high


def measured_window(values: np.ndarray) -> Window:
    """Return the window by the percentiles `PERCENTILES` of the finite values of a volume, (0, 1) if there are none."""
    flat = values.reshape(-1, order="A")
    sample = flat[:: max(1, len(flat) // _SAMPLE)]
    sample = sample[np.isfinite(sample)]
    if not len(sample):
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(sample, PERCENTILES))
    return low, high if high > low else low + 1


def apply_window(values: np.ndarray, window: Window) -> np.ndarray:
    """Return values as uint8: 0 up to the lower end of the window and for NaN, 255 from its upper end on."""
    low, high = window
    share = (values - np.float32(low)) * np.float32(255 / (high - low))
    return np.rint(np.clip(np.nan_to_num(share, nan=0.0), 0, 255)).astype(np.uint8)
