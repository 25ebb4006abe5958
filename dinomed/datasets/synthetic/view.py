"""Images of a scene: position of the dermatoscope, hair, gel bubbles, ruler, light and camera."""

import cv2
import numpy as np

from dinomed.datasets.synthetic.scene import Scene, noise


def take_view(scene: Scene, height: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return one image, uint8 ``(height, width, 3)``, and its mask, uint8 of 0 and 1."""
    pixels, level = _frame(scene, height, width, rng)
    if rng.random() < 0.55:
        pixels = _add_hair(pixels, int(rng.gamma(1.5, 7)) + 1, rng)
    if rng.random() < 0.2:
        pixels = _add_bubbles(pixels, rng)
    if rng.random() < 0.12:
        _add_ruler(pixels, rng)
    pixels = _light(pixels, rng)
    pixels = _expose(pixels, rng)
    return (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8), (level > 0).astype(np.uint8)


def _frame(scene: Scene, height: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Crop the image from the scene with random shift, rotation and zoom."""
    tall, wide = scene.level.shape
    zoom = rng.uniform(0.85, 1.25)
    matrix = cv2.getRotationMatrix2D((wide / 2, tall / 2), rng.uniform(-20, 20), zoom)
    shift = np.array([width - wide, height - tall]) / 2 + rng.uniform(-0.09, 0.09, 2) * min(height, width)
    matrix = matrix + np.pad(shift[:, None], ((0, 0), (2, 0)))
    pixels, level = (
        np.asarray(cv2.warpAffine(whole, matrix, (width, height), borderMode=cv2.BORDER_REFLECT))
        for whole in (scene.pixels, scene.level)
    )
    return pixels, level


def _add_hair(pixels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Add dark or light hairs: arcs with similar directions, thinner than a hundredth of the image."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    layer = np.zeros((height, width), np.uint8)
    way = rng.uniform(0, np.pi)
    t = np.linspace(0, 1, 14)[:, None]
    for _ in range(count):
        middle = rng.uniform(-0.1, 1.1, 2) * (width, height)
        turn = way + rng.normal(0, 0.5)
        reach = rng.uniform(0.15, 0.7) * short * np.array([np.cos(turn), np.sin(turn)])
        bend = rng.normal(0, 0.12) * short * np.array([-np.sin(turn), np.cos(turn)])
        curve = (1 - t) ** 2 * (middle - reach) + 2 * t * (1 - t) * (middle + 2 * bend) + t**2 * (middle + reach)
        thick = max(1, round(rng.uniform(0.5, 1.6) * short / 150))
        points = np.round(curve * 16).astype(np.int32)
        cv2.polylines(layer, [points], False, int(rng.uniform(120, 255)), thick, cv2.LINE_AA, 4)
    color = np.array([0.16, 0.11, 0.09]) if rng.random() < 0.8 else np.array([0.72, 0.58, 0.40])
    return pixels + (layer[..., None] / np.float32(255)) * (color.astype(np.float32) - pixels)


def _add_bubbles(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add air bubbles in the gel: thin bright rings with a highlight."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    layer = np.zeros((height, width), np.uint8)
    for _ in range(rng.integers(2, 9)):
        x, y = (rng.random(2) * (width, height) * 16).astype(int).tolist()
        radius = rng.uniform(0.01, 0.05) * short
        cv2.circle(layer, (x, y), int(radius * 16), int(rng.uniform(60, 150)), 1, cv2.LINE_AA, 4)
        glint = int(radius * 8)
        cv2.circle(layer, (x - glint, y - glint), max(8, int(radius * 3)), 210, -1, cv2.LINE_AA, 4)
    return pixels + (layer[..., None] / np.float32(255)) * (1 - pixels)


def _add_ruler(pixels: np.ndarray, rng: np.random.Generator) -> None:
    """Draw black marks along one side in place; every fifth is longer."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    step, offset = rng.uniform(0.035, 0.06) * short, rng.uniform(0, 1)
    top = bool(rng.integers(2))
    thick = max(1, round(short / 150))
    for i in range(int(width / step) + 1):
        x = int((i + offset) * step)
        length = int(short * (0.07 if i % 5 == 0 else 0.035))
        start, end = (0, length) if top else (height - 1, height - 1 - length)
        cv2.line(pixels, (x, start), (x, end), (0.08, 0.08, 0.1), thick, cv2.LINE_AA)


def _light(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply light that falls off from a point near the centre, and in some images the black rim of the lens."""
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    cy, cx = height * rng.uniform(0.42, 0.58), width * rng.uniform(0.42, 0.58)
    radius = np.hypot(y - cy, x - cx) / (0.5 * np.hypot(height, width))
    pixels = pixels * (1 - rng.uniform(0.05, 0.45) * radius**2)[..., None]
    if rng.random() < 0.2:
        rim = rng.uniform(0.78, 0.98)
        pixels = pixels * np.clip((rim - radius) / 0.04 + 0.5, 0.03, 1)[..., None]
    return pixels


def _expose(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply the camera: colour cast, exposure, contrast, slight blur, sensor noise."""
    height, width = pixels.shape[:2]
    cast = rng.normal(0, 0.04, 3) + 1
    pixels = pixels * (cast * rng.uniform(0.82, 1.12)).astype(np.float32)
    pixels = (pixels - 0.6) * np.float32(rng.uniform(0.85, 1.15)) + np.float32(0.6)
    if rng.random() < 0.4:
        pixels = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.4, 1.1) * min(height, width) / 150)
    grain = noise(height, width, 1.0, rng) * np.float32(rng.uniform(0.002, 0.012))
    return pixels + grain[..., None]
