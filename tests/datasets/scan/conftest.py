"""Fixtures of the scan tests: a folder of ten images with masks and a CSV, and functions that change it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinomed.datasets.scan.scan import ScanResult
from dinomed.images.read import write_mask


def _paint(path: Path, seed: int = 0, size: tuple[int, int] = (12, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    return path


@pytest.fixture
def paint() -> Callable[..., Path]:
    """Write a random PNG."""
    return _paint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images of five lesions with masks, and a CSV."""
    root = tmp_path / "data"
    rows = ["image,mask,label,lesion_id,age"]
    for i in range(10):
        _paint(root / f"images/{i}.png", i)
        mask = np.zeros((12, 16), np.uint8)
        mask[:i] = 1
        write_mask(root / f"masks/{i}.png", mask)
        rows.append(f"images/{i}.png,masks/{i}.png,{'nv' if i % 4 < 2 else 'mel'},L{i // 2},0{i}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def cells() -> Callable[[ScanResult, str], dict[str, object]]:
    """Return a column by image."""

    def read(result: ScanResult, column: str) -> dict[str, object]:
        return dict(zip(result.manifest.column("image"), result.manifest.column(column), strict=True))

    return read


def _edit(folder: Path, old: str, new: str) -> None:
    path = folder / "labels.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture
def edit() -> Callable[[Path, str, str], None]:
    """Replace a text in the CSV of `folder`."""
    return _edit


@pytest.fixture
def with_splits() -> Callable[[Path, list[str]], None]:
    """Add a column `split` to the CSV of `folder`."""

    def add(folder: Path, splits: list[str]) -> None:
        lines = (folder / "labels.csv").read_text().splitlines()
        new = [f"{line},{split}" for line, split in zip(lines, ["split", *splits], strict=True)]
        (folder / "labels.csv").write_text("\n".join(new))

    return add
