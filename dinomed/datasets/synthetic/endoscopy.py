"""Synthetic endoscopy videos of a moving polyp with exact masks, generated from a seed.

They replace real videos in examples and tests. Results on them are not valid for patients. A video begins outside of
the body and in the dark, and has a blurred part, as recordings do.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from dinomed.datasets.synthetic.scene import noise
from dinomed.errors import UsageError
from dinomed.video.write import writing_video

INSIDE, OUTSIDE, DARK, BLURRED = "inside", "outside", "dark", "blurred"
_FAULTS = ((OUTSIDE, 0.0, 0.08), (DARK, 0.08, 0.14), (BLURRED, 0.55, 0.65))  # kind, first and last share of the frames
_MUCOSA = np.array([0.80, 0.42, 0.36], np.float32)
_POLYP = np.array([0.86, 0.50, 0.46], np.float32)
_RADIUS = 0.47  # of the round view, of the shorter side


@dataclass(frozen=True)
class EndoscopyFrame:
    """A frame: `pixels` uint8 RGB ``(H, W, 3)``, `mask` of the visible polyp uint8 ``(H, W)`` of 0 and 1, and `kind`:
    inside, outside, dark or blurred."""

    pixels: np.ndarray
    mask: np.ndarray
    kind: str


def draw_endoscopy(
    count: int, size: tuple[int, int] = (120, 160), seed: int = 0, faults: bool = True
) -> Iterator[EndoscopyFrame]:
    """Draw the frames of a video: a polyp moves over mucosa, while the camera moves; some frames show no polyp.

    Args:
        count: number of frames.
        size: (height, width) of the frames, px.
        seed: of the scene and the movement.
        faults: with frames outside of the body, dark and blurred frames.
    """
    height, width = size
    rng = np.random.default_rng([seed, 7])
    wall = _draw_wall(height * 2, width * 2, rng)
    room = _draw_room(height, width, rng)
    phase, swing = rng.uniform(0, 2 * math.pi, 4), rng.uniform(0.7, 1.3, 4)
    radius, shape = rng.uniform(0.11, 0.17), rng.uniform(0.75, 1.3)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    y, x = (y - height / 2) / min(size), (x - width / 2) / min(size)
    view = np.hypot(x, y) < _RADIUS
    for number in range(count):
        share = number / max(count, 1)
        kind = next((name for name, first, end in _FAULTS if faults and first <= share < end), INSIDE)
        turn = 2 * math.pi * share * 3
        shift = [round((0.5 + 0.45 * math.sin(turn * swing[i] / 3 + phase[i])) * side) for i, side in enumerate(size)]
        pixels = wall[shift[0] : shift[0] + height, shift[1] : shift[1] + width]
        hole = np.hypot(x - 0.15 * math.sin(turn + phase[2]), y - 0.12 * math.cos(turn * swing[2]))
        pixels = pixels * np.clip(0.15 + 2.2 * hole, 0, 1)[..., None]
        centre = 0.62 * math.sin(turn * 0.8 * swing[3] + phase[3]), 0.25 * math.cos(turn * 0.7 + phase[0])
        level = 1 - np.hypot((x - centre[0]) * shape, (y - centre[1]) / shape) / radius
        pixels = _add_polyp(pixels, level)
        pixels = np.where(view[..., None], pixels, 0.01)
        mask = ((level > 0) & view).astype(np.uint8)
        if kind == OUTSIDE:
            pixels, mask = np.roll(room, 2 * number, axis=1), np.zeros_like(mask)
        elif kind == DARK:
            pixels, mask = pixels * 0.02, np.zeros_like(mask)
        elif kind == BLURRED:
            pixels = np.where(view[..., None], cv2.GaussianBlur(pixels, (0, 0), min(size) / 14), 0.01)
        grain = rng.normal(0, 0.0 if kind == BLURRED else 0.004, pixels.shape)
        levels = np.clip(np.asarray(pixels + grain, np.float32), 0, 1) * np.float32(255) + np.float32(0.5)
        yield EndoscopyFrame(levels.astype(np.uint8), mask, kind)


def write_endoscopy(
    folder: str | Path, videos: int = 1, count: int = 100, size: tuple[int, int] = (120, 160), seed: int = 0,
    fps: float = 25.0, faults: bool = True,
) -> list[Path]:  # fmt: skip
    """Write videos ``SYN_0.avi``, ... and the mask of each frame, ``masks/SYN_0/000000.png``, ....

    Args:
        folder: new or empty folder.
        videos: number of videos.
        count, size, faults: of each video; see `draw_endoscopy`.
        seed: of the first video; the next have the next ones.
        fps: frames a second.

    Returns:
        The paths of the videos.

    Raises:
        UsageError: `folder` is not empty.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty; give a new folder for the synthetic videos")
    paths = []
    for video in range(videos):
        name = f"SYN_{video}"
        (folder / "masks" / name).mkdir(parents=True, exist_ok=True)
        with writing_video(folder / f"{name}.avi", size, fps) as append:
            for number, frame in enumerate(draw_endoscopy(count, size, seed + video, faults)):
                append(frame.pixels)
                Image.fromarray(frame.mask.astype(bool)).save(folder / "masks" / name / f"{number:06}.png")
        paths.append(folder / f"{name}.avi")
    return paths


def _draw_wall(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Draw mucosa ``(H, W, 3)`` in 0 to 1: pink, with folds and vessels."""
    short = min(height, width)
    folds = 0.06 * noise(height, width, short * 0.12, rng) + 0.03 * noise(height, width, short * 0.03, rng)
    vessels = np.exp(-((noise(height, width, short * 0.06, rng) / 0.09) ** 2))
    fine = 0.025 * noise(height, width, 2.0, rng)
    wall = _MUCOSA * (1 + folds + fine)[..., None] - vessels[..., None] * np.array([0.10, 0.16, 0.13], np.float32)
    return np.asarray(wall, np.float32)


def _draw_room(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Draw what a camera shows outside of the body: gray and blue areas with straight edges."""
    room = np.full((height, width, 3), 0.62, np.float32)
    for _ in range(14):
        top, left = rng.integers(0, height), rng.integers(0, width)
        colour = rng.uniform(0.25, 0.9) * np.array([0.85, 1.0, 1.08], np.float32)
        room[top : top + rng.integers(8, height), left : left + rng.integers(8, max(9, width // 2))] = colour
    return room + (0.03 * noise(height, width, 2.0, rng))[..., None]


def _add_polyp(pixels: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Add a dome where `level` ``(H, W)`` is above 0, with shade at its foot and a highlight."""
    inside = np.clip(level * 12 + 0.5, 0, 1)[..., None]  # half its opacity at level 0, so that the mask is exact
    height = np.sqrt(np.clip(level, 0, 1))[..., None]
    dome = _POLYP * (0.62 + 0.5 * height) + 0.35 * np.clip(level * 6 - 4.6, 0, 1)[..., None]
    return np.asarray(pixels + inside * (dome - pixels), np.float32)
