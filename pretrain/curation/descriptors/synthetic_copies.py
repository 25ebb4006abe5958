"""Synthetic copies of an image: edits that are common when images move between collections, from a seed.

They measure copy detection without labelled copies, and the descriptor (`descriptors.descriptor`) learns from them
which changes to ignore. Images are uint8 RGB ``(H, W, 3)`` in and out; the size may change.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dinomed.errors import UsageError, did_you_mean

_WORDS = ("PATIENT", "L", "R", "12.03.2019 10:44", "COMMENT:", "ID 004711", "CVP A3/5", "x40", "Dr.", "No. 17", "cm")
Edit = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def make_copy(image: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Return an edited copy of an image, uint8 RGB ``(H, W, 3)``; `kind` is one of `KINDS`, `rng` draws the amount.

    Raises:
        UsageError: the kind is unknown.
    """
    if kind not in _EDITS:
        raise UsageError(f"no copy of kind {kind!r}{did_you_mean(kind, _EDITS)}")
    assert image.dtype == np.uint8, image.dtype
    assert image.ndim == 3, image.shape
    assert image.shape[2] == 3, image.shape
    return np.ascontiguousarray(_EDITS[kind](image, rng))


def add_copies(image: np.ndarray, seed: int, index: int) -> list[np.ndarray]:
    """Return an image, uint8 RGB ``(H, W, 3)``, and a copy of each of `KINDS`, as descriptors are fitted to them.

    Args:
        seed, index: of the fit, and of the image in it; they draw the copies.
    """
    streams = [np.random.default_rng([seed, index, kind]) for kind in range(len(KINDS))]
    return [image, *(make_copy(image, kind, stream) for kind, stream in zip(KINDS, streams, strict=True))]


def _crop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Crop 50 to 90% of the area at a random place; the aspect ratio changes by up to a sixth."""
    height, width = image.shape[:2]
    side, aspect = math.sqrt(rng.uniform(0.5, 0.9)), math.exp(rng.uniform(-0.15, 0.15))
    tall = min(height, max(1, round(height * side / math.sqrt(aspect))))
    wide = min(width, max(1, round(width * side * math.sqrt(aspect))))
    top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
    return image[top : top + tall, left : left + wide]


def _rotation(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rotate by 5 to 45 degrees in either direction around the centre; the corners are black."""
    height, width = image.shape[:2]
    angle = rng.uniform(5, 45) * rng.choice([-1, 1])
    matrix = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), angle, 1.0)
    return np.asarray(cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR))


def _turn(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rotate by 90, 180 or 270 degrees."""
    return np.rot90(image, int(rng.integers(1, 4)))


def _flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flip horizontally or vertically."""
    return np.flip(image, int(rng.integers(2)))


def _blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur by a Gaussian with a standard deviation of 0.5 to 2% of the short side."""
    sigma = rng.uniform(0.005, 0.02) * min(image.shape[:2])
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma))


def _jpeg(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Compress as JPEG with quality 10 to 50."""
    quality = int(rng.integers(10, 51))
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[..., ::-1]


def _text(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one to four lines of text at a side, with letters of 5 to 10% of the height, white, yellow or black."""
    lines = [str(rng.choice(_WORDS)) for _ in range(rng.integers(1, 5))]
    color = tuple(int(c) for c in rng.choice(np.array([[255, 255, 255], [255, 230, 60], [0, 0, 0]])))
    left, top = rng.uniform(0.02, 0.5), rng.uniform(0.02, 0.55)
    return draw_text(image, lines, rng.uniform(0.05, 0.1), (left, top), color)


def draw_text(
    image: np.ndarray, lines: list[str], size: float, at: tuple[float, float], color: tuple[int, ...] = (255, 255, 255)
) -> np.ndarray:
    """Draw lines of text into a copy of an image; letter height and place (left, top) are shares of the sides."""
    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    letter = max(6, round(size * height))
    font = ImageFont.load_default(letter)  # the one that Pillow carries with it: the same everywhere
    ImageDraw.Draw(picture).multiline_text((at[0] * width, at[1] * height), "\n".join(lines), fill=color, font=font)
    return np.asarray(picture)


def _logo(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a filled shape with a letter, 15 to 30% of the short side, in a corner."""
    height, width = image.shape[:2]
    size = max(4, round(rng.uniform(0.15, 0.3) * min(height, width)))
    left = int(rng.choice([0.02, 0.98]) * (width - size))
    top = int(rng.choice([0.02, 0.98]) * (height - size))
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    color = tuple(int(c) for c in rng.integers(0, 256, 3))
    shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
    shape((left, top, left + size, top + size), fill=color)
    ink = (0, 0, 0) if sum(color) > 380 else (255, 255, 255)
    letter = str(rng.choice(list("ABDHKMX")))
    middle = (left + size / 2, top + size / 2)
    draw.text(middle, letter, fill=ink, font=ImageFont.load_default(max(6, size // 2)), anchor="mm")
    return np.asarray(picture)


def _color(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scale each channel by 0.75 to 1.3 (white balance); a fifth of the copies is grey."""
    if rng.random() < 0.2:
        return np.repeat(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[..., None], 3, axis=2)
    return _to_uint8(image * rng.uniform(0.75, 1.3, 3))


def _brightness(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply gamma 0.6 to 1.6 and contrast 0.7 to 1.3 around the mean."""
    values = 255 * (image / 255.0) ** math.exp(rng.uniform(math.log(0.6), math.log(1.6)))
    return _to_uint8((values - values.mean()) * rng.uniform(0.7, 1.3) + values.mean())


def _rescale(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Resize to 30 to 80%; half of the copies become square."""
    height, width = image.shape[:2]
    scale = rng.uniform(0.3, 0.8)
    tall, wide = max(8, round(height * scale)), max(8, round(width * scale))
    if rng.random() < 0.5:
        tall = wide = min(tall, wide)
    return np.asarray(cv2.resize(image, (wide, tall), interpolation=cv2.INTER_AREA))


def _border(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add a black, white or grey frame of 3 to 15% of the side at each side."""
    height, width = image.shape[:2]
    above, below = (rng.uniform(0.03, 0.15, 2) * height).round().astype(int).tolist()
    left, right = (rng.uniform(0.03, 0.15, 2) * width).round().astype(int).tolist()
    level = int(rng.choice([0, 255, 128]))
    frame = ((above, below), (left, right), (0, 0))
    return np.pad(image, frame, constant_values=level)


def _mixed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply two or three of the other edits in sequence."""
    kinds = [kind for kind in KINDS if kind != "mixed"]
    for kind in rng.choice(kinds, size=int(rng.integers(2, 4)), replace=False):
        image = make_copy(image, str(kind), rng)
    return image


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return (np.clip(values, 0, 255) + 0.5).astype(np.uint8)


_EDITS: dict[str, Edit] = {
    "crop": _crop, "rotation": _rotation, "turn": _turn, "flip": _flip, "blur": _blur, "jpeg": _jpeg, "text": _text,
    "logo": _logo, "colour": _color, "brightness": _brightness, "rescale": _rescale, "border": _border,
    "mixed": _mixed,
}  # fmt: skip
KINDS = tuple(_EDITS)
