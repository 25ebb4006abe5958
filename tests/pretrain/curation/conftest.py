"""Lesions on disk: a training set and a test set with planted leaks; a raw pool with everything to be found in it."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinomed.datasets.manifest import Manifest, build_manifest, write_manifest
from dinomed.datasets.scan.scan import scan
from dinomed.datasets.synthetic.scene import KINDS as LESIONS
from dinomed.datasets.synthetic.scene import draw_scene
from dinomed.datasets.synthetic.view import take_view
from dinomed.pretrain.curation.descriptors.synthetic_copies import make_copy

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
        sides.append(with_groups(manifest, [patients.get(name) for name in manifest.column("image")]))
    return Planted(*sides, {f"{kind}.png": f"{n:02d}.png" for n, kind in enumerate(PLANTED)})


LEAKS = {"copy_crop.png": "jpeg", "copy_flip.png": "flip", "copy_text.png": "logo"}


@dataclass(frozen=True)
class Raw:
    """The manifests, as files: 24 lesions and what is planted among them; 10 trusted lesions; 6 to keep out."""

    pool: Path
    trusted: Path
    exclude: Path

    settings = ("--set", "descriptor.fit_images=12", "--set", "shard_size=8", "--set", "memory_gib=0.5")

    @property
    def arguments(self) -> list[str]:
        return [
            "--pool",
            str(self.pool),
            "--trusted",
            str(self.trusted),
            "--exclude",
            str(self.exclude),
            *self.settings,
        ]


def write_raw(root: Path) -> Raw:
    """In the pool: lesions 0 to 23; `same.png` (the file of 03), `small_copy.png` (04, resized), `mirror.png` (05);
    `black.png`, `blank.png`, `tiny.png`, `gone.png` (a file that was cut off); `denied/x.png`; copies of excluded
    lesions (`LEAKS`, `leak.png` the same file); `sibling.png`, of the patient of an excluded lesion."""
    pool, trusted, out = root / "pool", root / "trusted", root / "out"
    for folder in (pool / "denied", trusted, out):
        folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for seed in range(24):
        Image.fromarray(draw_lesion(seed)).save(pool / f"{seed:02d}.png")
    shutil.copy(pool / "03.png", pool / "same.png")
    Image.fromarray(draw_lesion(4)).resize((160, 120)).save(pool / "small_copy.png")
    Image.fromarray(make_copy(draw_lesion(5), "flip", rng)).save(pool / "mirror.png")
    Image.fromarray(np.zeros((120, 160, 3), np.uint8)).save(pool / "black.png")
    Image.fromarray(np.full((120, 160, 3), 128, np.uint8)).save(pool / "blank.png")
    Image.fromarray(draw_lesion(60)[:40, :40]).save(pool / "tiny.png")
    Image.fromarray(draw_lesion(61)).save(pool / "gone.png")
    Image.fromarray(draw_lesion(62)).save(pool / "denied" / "x.png")
    Image.fromarray(draw_lesion(63)).save(pool / "sibling.png")
    for seed in range(100, 110):
        Image.fromarray(draw_lesion(seed)).save(trusted / f"t{seed}.png")
    for seed in range(200, 206):
        Image.fromarray(draw_lesion(seed)).save(out / f"e{seed}.png")
    for seed, (name, kind) in zip(range(200, 203), LEAKS.items(), strict=True):
        Image.fromarray(make_copy(draw_lesion(seed), kind, rng)).save(pool / name)
    shutil.copy(out / "e203.png", pool / "leak.png")
    raw = Raw(root / "pool.parquet", root / "lesions.parquet", root / "test.parquet")
    write_manifest(_with_some_groups(scan(pool, make_split=False).manifest, {"sibling.png": "patient 7"}), raw.pool)
    write_manifest(scan(trusted, make_split=False).manifest, raw.trusted)
    write_manifest(_with_some_groups(scan(out, make_split=False).manifest, {"e204.png": "patient 7"}), raw.exclude)
    whole = (pool / "gone.png").read_bytes()
    (pool / "gone.png").write_bytes(whole[: len(whole) // 2])
    return raw


def _with_some_groups(manifest: Manifest, groups: dict[str, str]) -> Manifest:
    return with_groups(manifest, [groups.get(image) for image in manifest.column("image")])


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Raw:
    return write_raw(tmp_path_factory.mktemp("raw"))
