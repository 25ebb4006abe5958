"""Scenes of skin with one lesion, larger than the image that is taken of them.

H, W are the size of the scene in pixels. Lengths are shares of its shorter side, so that a scene looks the same at any
size. Colours are RGB in 0 to 1, float32. The lesion is where the field `level` ``(H, W)`` is above 0; the drawn border
has half its opacity at level 0, so the masks are exact.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

KINDS = ("regular", "irregular", "vascular")

_SKIN = np.array([[0.95, 0.80, 0.73], [0.90, 0.70, 0.62], [0.82, 0.62, 0.50], [0.66, 0.47, 0.36]], np.float32)
_BROWNS = np.array([[0.66, 0.44, 0.30], [0.50, 0.31, 0.20], [0.36, 0.21, 0.14]], np.float32)
_ODD = np.array(  # colours of melanoma besides brown: black, blue-grey veil, red, white regression
    [[0.16, 0.11, 0.10], [0.42, 0.43, 0.50], [0.70, 0.36, 0.32], [0.88, 0.76, 0.72]], np.float32
)
_BLOOD = np.array([[0.78, 0.24, 0.24], [0.62, 0.16, 0.22], [0.46, 0.16, 0.30], [0.30, 0.14, 0.24]], np.float32)


@dataclass(frozen=True)
class Scene:
    """`pixels` ``(H, W, 3)`` in 0 to 1, and `level` ``(H, W)``, which is above 0 in the lesion."""

    pixels: np.ndarray
    level: np.ndarray


def draw_scene(kind: str, height: int, width: int, rng: np.random.Generator) -> Scene:
    """Draw skin of a random tone with a lesion of `kind` (one of `KINDS`) near the centre; both are independent."""
    skin = draw_skin(height, width, rng)
    draw = {"regular": _draw_regular, "irregular": _draw_irregular, "vascular": _draw_vascular}[kind]
    level, color, opacity = draw(skin, rng)
    # Some lesions have low contrast; without them a threshold would segment all.
    if rng.random() < 0.5:
        opacity = opacity * rng.uniform(0.45, 0.95)
    pixels = skin + opacity[..., None] * (color - skin)
    return Scene(np.clip(pixels, 0, 1).astype(np.float32), level)


def draw_skin(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Draw skin ``(H, W, 3)``: a tone between light and brown, red blotches, fine furrows, pores."""
    short = min(height, width)
    place = rng.beta(1.2, 2.0) * (len(_SKIN) - 1)
    below = min(int(place), len(_SKIN) - 2)
    tone = _SKIN[below] + (place - below) * (_SKIN[below + 1] - _SKIN[below])
    tone = (tone + rng.normal(0, 0.02, 3)).astype(np.float32)
    redness = noise(height, width, short * 0.35, rng) * 0.6 + noise(height, width, short * 0.12, rng) * 0.4
    furrows = -np.abs(noise(height, width, short * 0.022, rng)) - 0.5 * np.abs(noise(height, width, short * 0.05, rng))
    shade = 0.022 * (furrows + 1.0) + 0.012 * noise(height, width, 2.0, rng)
    flush = rng.uniform(0.005, 0.035) * np.array([0.5, -1.0, -0.8])
    return tone + redness[..., None] * flush.astype(np.float32) + shade[..., None]


def noise(height: int, width: int, cell: float, rng: np.random.Generator) -> np.ndarray:
    """Return smooth noise ``(H, W)`` of about unit variance with blobs of about `cell` pixels."""
    cell = max(cell, 1.0)
    grid = rng.standard_normal((int(height / cell) + 3, int(width / cell) + 3), dtype=np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * np.float32(1.3)


def _draw_regular(skin: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a nevus: round or oval, one brown, a fine regular network, a border of uniform softness."""
    height, width = skin.shape[:2]
    short = min(height, width)
    radius, angle = _polar(height, width, rng, stretch=rng.uniform(1.0, 1.45))
    outline = rng.uniform(0.14, 0.30) * (1 + _ripple(angle, range(2, 5), rng.uniform(0.02, 0.07), rng))
    level = (1 - radius / outline + 0.02 * noise(height, width, short * 0.05, rng)).astype(np.float32)
    brown = _brown(rng)
    network = _network(height, width, rng.uniform(0.025, 0.04) * short, rng)
    mottle = 0.05 * noise(height, width, short / 8, rng) + 0.05 * noise(height, width, short / 40, rng)
    depth = np.clip(level, 0, 1) * rng.uniform(-0.15, 0.45) + rng.uniform(0.01, 0.06) * network + mottle
    return level, brown * (1 - depth[..., None]), _edge(level, rng.uniform(0.15, 0.6))


def _draw_irregular(skin: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a melanoma: notched, asymmetric, several colours, streaks, a border that is sharp in parts."""
    height, width = skin.shape[:2]
    short = min(height, width)
    radius, angle = _polar(height, width, rng, stretch=rng.uniform(1.0, 1.7))
    outline = rng.uniform(0.16, 0.30) * (1 + _ripple(angle, range(1, 9), rng.uniform(0.05, 0.17), rng))
    roughness = rng.uniform(0.04, 0.12)
    level = (1 - radius / outline + roughness * noise(height, width, short * 0.09, rng)).astype(np.float32)
    streaks = np.maximum(np.cos(angle * int(rng.integers(22, 40)) + 2 * noise(height, width, short * 0.2, rng)), 0)
    level += 0.12 * rng.random() * streaks * (np.cos(angle - rng.uniform(0, 2 * math.pi)) > 0.2)
    color = np.broadcast_to(_brown(rng), skin.shape)
    for zone in (_brown(rng), *_ODD[rng.permutation(len(_ODD))[: rng.integers(1, 4)]]):
        patch = noise(height, width, short * rng.uniform(0.10, 0.28), rng) + 0.25 * noise(
            height, width, short / 25, rng
        )
        where = rng.uniform(0.3, 0.85) * _edge(patch - rng.uniform(0.2, 0.9), rng.uniform(0.6, 2.0))
        color = color + where[..., None] * (zone - color)
    network = _network(height, width, rng.uniform(0.03, 0.06) * short, rng) * noise(height, width, short * 0.15, rng)
    globules = _edge(noise(height, width, short * 0.02, rng) - rng.uniform(1.3, 2.4), 0.6)
    shade = 0.05 * network + 0.35 * globules + 0.05 * noise(height, width, short / 40, rng)
    color = color * (1 - shade[..., None])
    softness = 0.08 + 0.4 * rng.random() * (0.5 + 0.5 * np.cos(angle - rng.uniform(0, 2 * math.pi)))
    return level, color, _edge(level, softness)


def _draw_vascular(skin: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw an angioma: dense round lacunae from red to purple, pale septa between them, a rather sharp border."""
    height, width = skin.shape[:2]
    short = min(height, width)
    radius, angle = _polar(height, width, rng, stretch=rng.uniform(1.0, 1.5))
    extent = rng.uniform(0.10, 0.26)
    outline = extent * (1 + _ripple(angle, range(2, 7), rng.uniform(0.04, 0.12), rng))
    level = (1 - radius / outline + 0.03 * noise(height, width, short * 0.06, rng)).astype(np.float32)
    red = _between(_BLOOD, rng)
    ground = red + rng.uniform(0.2, 0.6) * (skin - red)
    lacunae = np.zeros((height, width), np.float32)
    darkness = np.zeros((height, width), np.float32)
    ys, xs = np.nonzero(level > 0.08)
    for _ in range(rng.integers(8, 26)):
        at = rng.integers(len(ys))
        size = rng.uniform(0.12, 0.34) * extent * short
        axes = (int(size * 16), int(size * rng.uniform(0.7, 1.0) * 16))
        center = (int(xs[at]) * 16, int(ys[at]) * 16)
        blob = np.zeros((height, width), np.float32)
        cv2.ellipse(blob, center, axes, rng.uniform(0, 180), 0, 360, 1.0, -1, cv2.LINE_8, 4)
        lacunae = np.maximum(lacunae, blob)
        darkness = np.maximum(darkness, blob * rng.uniform(0, 0.5))
    drops = cv2.GaussianBlur(np.dstack([lacunae, darkness]), (0, 0), short * 0.007)
    color = ground + drops[..., :1] * (red * (1 - drops[..., 1:]) - ground)
    return level, color, _edge(level, rng.uniform(0.06, 0.2))


def _brown(rng: np.random.Generator) -> np.ndarray:
    """Return a brown between tan and dark with a random colour cast."""
    return (_between(_BROWNS, rng) + rng.normal(0, [0.03, 0.02, 0.02])).astype(np.float32)


def _between(colours: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random colour on the path through some colours."""
    place = rng.uniform(0, len(colours) - 1.001)
    return colours[int(place)] + (place % 1) * (colours[int(place) + 1] - colours[int(place)])


def _polar(height: int, width: int, rng: np.random.Generator, stretch: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance from the centre of the lesion (shares of the shorter side, stretched axes) and the angle."""
    short = min(height, width)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    y = (y - height * (0.5 + rng.uniform(-0.05, 0.05))) / short
    x = (x - width * (0.5 + rng.uniform(-0.05, 0.05))) / short
    turn = rng.uniform(0, math.pi)
    along = (x * math.cos(turn) + y * math.sin(turn)) / math.sqrt(stretch)
    across = (y * math.cos(turn) - x * math.sin(turn)) * math.sqrt(stretch)
    return np.hypot(along, across), np.arctan2(across, along)


def _ripple(angle: np.ndarray, waves: range, amplitude: float, rng: np.random.Generator) -> np.ndarray:
    """Return a periodic function of the angle: a sum of `waves`, whose amplitude falls with the frequency."""
    steps = np.linspace(-math.pi, math.pi, 721)
    curve = sum(rng.normal(0, amplitude / np.sqrt(k)) * np.cos(k * steps + rng.uniform(0, 2 * math.pi)) for k in waves)
    curve = np.clip(curve, -0.6, 0.6).astype(np.float32)
    return curve[((angle + math.pi) * (720 / (2 * math.pi))).astype(np.int32)]


def _network(height: int, width: int, period: float, rng: np.random.Generator) -> np.ndarray:
    """Return a pigment network ``(H, W)`` in about -1 to 1: a slightly distorted hexagonal mesh."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x = x + period * noise(height, width, 6 * period, rng)
    y = y + period * noise(height, width, 6 * period, rng)
    turn = rng.uniform(0, math.pi)
    wave = 2 * math.pi / period
    mesh = np.zeros_like(x)
    for angle in (turn, turn + math.pi / 3, turn + 2 * math.pi / 3):
        mesh -= np.cos(wave * math.cos(angle) * x + wave * math.sin(angle) * y)
    return mesh / 2


def _edge(level: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """Return a smooth step from 0 to 1 over `width` around level 0, where it is 0.5."""
    t = np.clip(level / width + 0.5, 0, 1)
    return t * t * (3 - 2 * t)
