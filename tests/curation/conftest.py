"""Lesions on disk: a training set, and a test set with planted leaks of every kind."""

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from dinomed.datasets.manifest import Manifest, build_manifest
from dinomed.datasets.scan import scan
from dinomed.datasets.synthetic_scene import KINDS as LESIONS
from dinomed.datasets.synthetic_scene import draw_scene
from dinomed.datasets.synthetic_view import take_view
from dinomed.pretrain.curation.copies import make_copy

PLANTED = ("crop", "rotation", "turn", "flip", "jpeg", "text", "logo", "colour", "brightness", "rescale", "border")


@dataclass(frozen=True)
class Planted:
    """Two manifests, and which test image is a copy of which training image."""

    train: Manifest
    test: Manifest
    near: dict[str, str]


def draw_lesion(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return take_view(draw_scene(LESIONS[seed % 3], 200, 270, rng), 150, 200, rng)[0]


def with_groups(manifest: Manifest, groups: list[str | None]) -> Manifest:
    columns = {name: manifest.column(name) for name in manifest.columns} | {"group": groups}
    return build_manifest(columns, manifest.root)


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """24 training images; 8 other test images, a copy of each kind in `PLANTED`, an exact copy (exact.png of 20.png),
    and a picture of a patient of whom train has another (group.png, with 21.png)."""
    root = tmp_path_factory.mktemp("planted")
    train, test = root / "train", root / "test"
    train.mkdir()
    test.mkdir()
    for seed in range(24):
        Image.fromarray(draw_lesion(seed)).save(train / f"{seed:02d}.png")
    for seed in range(100, 108):
        Image.fromarray(draw_lesion(seed)).save(test / f"other_{seed}.png")
    for n, kind in enumerate(PLANTED):
        copy = make_copy(draw_lesion(n), kind, np.random.default_rng(n))
        Image.fromarray(copy).save(test / f"{kind}.png")
    (test / "exact.png").write_bytes((train / "20.png").read_bytes())
    Image.fromarray(draw_lesion(200)).save(test / "group.png")
    patients = {"21.png": "patient 7", "22.png": "patient 7", "group.png": "patient 7"}
    sides = []
    for folder in (train, test):
        manifest = scan(folder, make_split=False).manifest
        sides.append(with_groups(manifest, [patients.get(name, name) for name in manifest.column("image")]))
    return Planted(*sides, {f"{kind}.png": f"{n:02d}.png" for n, kind in enumerate(PLANTED)})
