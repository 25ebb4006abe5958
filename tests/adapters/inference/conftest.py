"""Pictures with round spots, tall and wide."""

import numpy as np
import pytest
from PIL import Image

from dinomed.datasets.manifest import Manifest
from dinomed.datasets.scan.scan import scan


@pytest.fixture(scope="module")
def spots(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """24 pictures, tall or wide, each with a red spot that is round in the image."""
    folder, rng = tmp_path_factory.mktemp("spots"), np.random.default_rng(0)
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    rows = ["image,split"]
    for i in range(24):
        shape = (120, 40) if i % 2 else (48, 128)
        pixels = rng.integers(90, 130, (*shape, 3)).astype(np.uint8)
        y, x = (rng.uniform(14, length - 14) for length in shape)
        down, right = np.mgrid[: shape[0], : shape[1]]
        spot = (down - y) ** 2 + (right - x) ** 2 < 14**2
        pixels[spot] = [220, 30, 30]
        Image.fromarray(pixels).save(folder / "images" / f"{i:02}.png")
        Image.fromarray(spot).save(folder / "masks" / f"{i:02}.png")
        rows.append(f"images/{i:02}.png,{('train', 'train', 'train', 'val')[i // 6]}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return scan(folder, labels="labels.csv").manifest
