"""Faces in pictures: frontal ones, by the cascade of local binary patterns that comes with scikit-image.

It was trained for photographs of people (OpenCV's `lbpcascade_frontalface`). It misses faces from the side, turned,
covered or small, and now and then sees one in a lesion: docs/curation.md says what it finds and misses. A person has to
look before pictures are given away.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dinomed.errors import UsageError
from dinomed.pretrain.curation.config import FacesConfig

_SIDE = 240  # px of the short side at which is looked


@lru_cache
def _cascade() -> Any:
    try:
        from skimage.data import lbp_frontal_face_cascade_filename
        from skimage.feature import Cascade
    except ImportError:
        raise UsageError(
            "faces.action needs scikit-image, whose detector it uses: pip install 'dinomed[faces]'"
        ) from None
    return Cascade(lbp_frontal_face_cascade_filename())


def check_detector() -> None:
    """Raises `UsageError` if it is not installed: before the work, not in the midst of it."""
    _cascade()


def find_faces(image: np.ndarray, config: FacesConfig) -> list[tuple[int, int, int, int]]:
    """The faces in a picture, uint8 RGB ``(H, W, 3)``: (left, top, right, bottom) in px of it, right and bottom
    exclusive."""
    height, width = image.shape[:2]
    scale = min(_SIDE / min(height, width), 1.0)
    size = (max(round(width * scale), 24), max(round(height * scale), 24))
    small = np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    short = min(size)
    least = max(round(config.min_share * short), 24)  # the cascade's own window
    found = _cascade().detect_multi_scale(
        img=small, scale_factor=1.1, step_ratio=1, min_size=(least, least), max_size=(short, short),
        min_neighbor_number=config.min_neighbors, intersection_score_threshold=0.5,
    )  # fmt: skip
    boxes = []
    for box in found:
        left, top = box["c"] / scale, box["r"] / scale
        right, bottom = left + box["width"] / scale, top + box["height"] / scale
        boxes.append((max(int(left), 0), max(int(top), 0), min(round(right), width), min(round(bottom), height)))
    return sorted(boxes)


def blur_faces(image: np.ndarray, boxes: list[tuple[int, int, int, int]]) -> np.ndarray:
    """The picture with every box, a fifth wider at each side, made unrecognisable: averaged to 6 x 6 fields, and
    blurred."""
    out = image.copy()
    for left, top, right, bottom in boxes:
        wide, tall = (right - left) // 5, (bottom - top) // 5
        rows = slice(max(top - tall, 0), min(bottom + tall, image.shape[0]))
        columns = slice(max(left - wide, 0), min(right + wide, image.shape[1]))
        part = out[rows, columns]
        coarse = cv2.resize(part, (6, 6), interpolation=cv2.INTER_AREA)
        size = (part.shape[1], part.shape[0])
        out[rows, columns] = cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR)
    return out


def blurred_name(sha256: str) -> str:
    """Of a blurred copy: by the content of its original, so that the same picture is blurred once."""
    return str(Path(sha256[:2]) / f"{sha256[:32]}.png")
