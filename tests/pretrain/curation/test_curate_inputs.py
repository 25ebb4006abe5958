"""Curation of pools whose images all fail a filter, have other channels or ranges, or have features in tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinomed.datasets.manifest import Manifest
from dinomed.datasets.scan.scan import scan
from dinomed.errors import DinomedError
from dinomed.pretrain.curation.config import CurationConfig
from dinomed.pretrain.curation.pipeline import curate
from dinomed.pretrain.curation.pool import NamedManifest, build_pool


def folder_of(folder: Path, images: Sequence[np.ndarray]) -> Manifest:
    """Write images as PNG files and scan them."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.png")
    return scan(folder, make_split=False).manifest


def noise(count: int, side: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8))


@pytest.mark.parametrize("action", ["off", "drop", "blur"])
@pytest.mark.parametrize("excluded", [0, 8])
def test_a_pool_that_no_image_passes_is_refused_with_a_remedy(tmp_path: Path, action: str, excluded: int) -> None:
    pool = NamedManifest("pool", folder_of(tmp_path / "pool", noise(10, 28)))
    exclude = [NamedManifest("test", folder_of(tmp_path / "test", noise(excluded, 80, 1)))] if excluded else []
    settings: dict[str, Any] = {"faces": {"action": action}}
    with pytest.raises(DinomedError, match=r"^0 of 10 images are readable.* loosen quality\.\* or faces\.\*"):
        curate(build_pool(pool, [], exclude), tmp_path / "out.parquet", CurationConfig.model_validate(settings))
