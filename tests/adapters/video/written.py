"""Reading of what `predict` wrote for videos, for the tests of this folder."""

import csv
from pathlib import Path

import numpy as np

from dinomed.video.video import Video


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def masks_in(path: Path) -> list[np.ndarray]:
    """The values of a mask video; all channels of a gray video are equal."""
    frames = [frame.pixels for frame in Video(path).stream()]
    assert all((frame == frame[..., :1]).all() for frame in frames)
    return [frame[..., 0] for frame in frames]


def only(out: Path) -> Path:
    """The folder of the only video of a result."""
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    return folder
