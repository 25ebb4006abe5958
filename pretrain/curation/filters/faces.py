"""Detection and blurring of frontal faces.

The detector is the cascade of local binary patterns in scikit-image (OpenCV's `lbpcascade_frontalface`), trained on
photographs of people. It misses faces that are in profile, rotated, covered or small, and it sometimes detects a face
in a lesion; docs/curation.md gives its hit rates. A person must check the images before they are given to others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from dinomed.errors import UsageError
from dinomed.images.read import UnreadableImage, read_image
from dinomed.io.prefetch import prefetch
from dinomed.pretrain.curation.filters.config import FacesConfig
from dinomed.pretrain.curation.runtime.images import reread_image

Box = tuple[int, int, int, int]  # left, top, right, bottom in px of the image; right and bottom are exclusive
_SIDE = 240  # px of the short side at which faces are detected
_WINDOW = 24  # px, the cascade's own window
_BOXES = pa.list_(pa.list_(pa.int64(), 4))


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
    """Raise `UsageError` if the detector is not installed, before any work is done."""
    _cascade()


def find_faces(image: np.ndarray, config: FacesConfig) -> list[Box]:
    """Return the boxes of the faces in an image, uint8 RGB ``(H, W, 3)``."""
    height, width = image.shape[:2]
    scale = min(_SIDE / min(height, width), 1.0)
    size = (max(round(width * scale), _WINDOW), max(round(height * scale), _WINDOW))
    small = np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    short = min(size)
    least = max(round(config.min_share * short), _WINDOW)
    detections = _cascade().detect_multi_scale(
        img=small, scale_factor=1.1, step_ratio=1, min_size=(least, least), max_size=(short, short),
        min_neighbor_number=config.min_neighbors, intersection_score_threshold=0.5,
    )  # fmt: skip
    boxes = []
    for detection in detections:
        left, top = detection["c"] / scale, detection["r"] / scale
        right, bottom = left + detection["width"] / scale, top + detection["height"] / scale
        boxes.append((max(int(left), 0), max(int(top), 0), min(round(right), width), min(round(bottom), height)))
    return sorted(boxes)


def blur_faces(image: np.ndarray, boxes: list[Box]) -> np.ndarray:
    """Return a copy of an image in which the boxes, enlarged by a fifth at each side, are averaged to 6 x 6 fields and
    interpolated, so that the faces cannot be recognised."""
    out = image.copy()
    for left, top, right, bottom in boxes:
        margin_x, margin_y = (right - left) // 5, (bottom - top) // 5
        rows = slice(max(top - margin_y, 0), min(bottom + margin_y, image.shape[0]))
        columns = slice(max(left - margin_x, 0), min(right + margin_x, image.shape[1]))
        part = out[rows, columns]
        coarse = cv2.resize(part, (6, 6), interpolation=cv2.INTER_AREA)
        size = (part.shape[1], part.shape[0])
        out[rows, columns] = cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR)
    return out


def blurred_name(sha256: str) -> str:
    """Return the relative path of a blurred copy, from the content of the original, so that equal images share one."""
    return str(Path(sha256[:2]) / f"{sha256[:32]}.png")


@dataclass(frozen=True)
class FindFaces:
    """Work of the stage "faces": paths to a table with the column `boxes`, the faces of each image."""

    config: FacesConfig
    workers: int | None = None

    def __call__(self, paths: Sequence[str]) -> pa.Table:
        faces = prefetch(self._find, paths, self.workers)
        return pa.table({"boxes": pa.array([[list(box) for box in boxes] for boxes in faces], _BOXES)})

    def _find(self, path: str) -> list[Box]:
        try:
            image = read_image(path)
        except UnreadableImage:
            reread_image(path)  # an image with other channels, or values without a range, is no photograph
            return []
        return find_faces(image, self.config)
