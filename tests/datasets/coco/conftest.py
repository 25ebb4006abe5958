"""A folder of four images, and an annotation file in the COCO format with polygons and run lengths."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

WIDTH, HEIGHT = 40, 30


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """FOLDER/images/0.png to 3.png, of 40 x 30 px."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{i}.png")
    return folder


@pytest.fixture
def content() -> dict[str, Any]:
    """Two categories that do not overlap; image 3 has no object."""
    coco_mask = pytest.importorskip("pycocotools.mask")
    square = np.zeros((HEIGHT, WIDTH), np.uint8)
    square[20:28, 3:9] = 1
    packed = coco_mask.encode(np.asfortranarray(square))
    crowd = [0, 2, HEIGHT * WIDTH - 5, 3]  # the first two pixels of the first column, the last three of the last

    def entry(number: int, image: int, category: int, segmentation: Any, iscrowd: int = 0) -> dict[str, Any]:
        named = {"id": number, "image_id": image, "category_id": category}
        return named | {"segmentation": segmentation, "iscrowd": iscrowd}

    return {
        "images": [
            {"id": 10 + i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(4)
        ],
        "categories": [{"id": 2, "name": "polyp"}, {"id": 7, "name": "tool"}, {"id": 9, "name": "unused"}],
        "annotations": [
            entry(1, 10, 2, [[2.5, 2, 12, 3, 9, 14.2], [20, 5, 30, 5, 30, 12, 20, 12]]),
            entry(2, 10, 7, {"size": [HEIGHT, WIDTH], "counts": packed["counts"].decode()}),
            entry(3, 11, 7, {"size": [HEIGHT, WIDTH], "counts": crowd}, iscrowd=1),
            entry(4, 12, 2, [[-6, -3, 15, 4, 8, 20]]),
        ],
    }  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    """Write an annotation file."""

    def write_file(data: Any) -> Path:
        path = tmp_path / "annotations.json"
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        return path

    return write_file
