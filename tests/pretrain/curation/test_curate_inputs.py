"""Curation of pools whose images all fail a filter, have other channels or ranges, or have features in tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dinomed.backbones.config import ViTConfig
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone, save_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.datasets.manifest import Manifest, build_manifest
from dinomed.datasets.pixels import read_picture
from dinomed.datasets.scan.scan import scan
from dinomed.errors import DinomedError, UsageError
from dinomed.features.table import write_feature_table
from dinomed.images.read import IntensityConfig
from dinomed.pretrain.curation.audit.audit import AuditConfig, audit_training_index
from dinomed.pretrain.curation.audit.training_index import read_training_index, write_training_index
from dinomed.pretrain.curation.config import CurationConfig
from dinomed.pretrain.curation.descriptors.config import BackboneConfig
from dinomed.pretrain.curation.descriptors.sources import check_source
from dinomed.pretrain.curation.filters.config import FacesConfig
from dinomed.pretrain.curation.filters.faces import FindFaces
from dinomed.pretrain.curation.output.read import CurationResult
from dinomed.pretrain.curation.pipeline import curate
from dinomed.pretrain.curation.pool import NamedManifest, build_pool
from dinomed.pretrain.curation.runtime.cache import column_to_vectors
from dinomed.pretrain.curation.selection.embedding import Embed, Embedder


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


def save_vit(folder: Path, **settings: Any) -> FrozenBackbone:
    """Save a random ViT whose preprocessing has these settings, and load it."""
    channels = settings.setdefault("channels", 3)
    config = ViTConfig(
        embed_dim=32, depth=1, num_heads=2, patch_size=8, image_size=32, layerscale=None, in_channels=channels
    )
    settings |= {"mean": (0.5,) * channels, "std": (0.2,) * channels}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_backbone(folder, VisionTransformer(config), Preprocessing(image_size=32, **settings))
    return load_backbone(folder)


SETTINGS: dict[str, Any] = {
    "retrieval": {"mode": "all"}, "descriptor": {"fit_images": 8},
    "quality": {
        "min_short_side_px": 16, "min_luminance_mean": None, "min_luminance_spread": None, "min_sharpness": None,
        "max_overexposed_share": None, "max_text_share": None,
    },
}  # fmt: skip


def run(pool: Manifest, output: Path, backbone: Path | None = None, tables: Sequence[Path] = ()) -> CurationResult:
    embedder = Embedder(None if backbone is None else str(backbone), tables=tables)
    joined = build_pool(NamedManifest("pool", pool), [], [])
    return curate(joined, output, CurationConfig.model_validate(SETTINGS), embedder=embedder)


def test_embeddings_read_images_as_the_backbone_does(tmp_path: Path) -> None:
    window = IntensityConfig(bits=16, window=(1000, 1400))
    backbone = save_vit(tmp_path / "vit", channels=1, intensity=window)
    values = np.random.default_rng(0).integers(1000, 1400, (3, 40, 40)).astype(np.uint16)
    manifest = folder_of(tmp_path / "images", list(values))
    paths = [str(manifest.path(row)) for row in range(3)]
    table = Embed(str(tmp_path / "vit"), None, backbone.fingerprint)(paths)
    expected = [backbone.preprocessing((image[..., None].astype(np.float32) - 1000) / 400) for image in values]
    tokens = torch.nn.functional.normalize(backbone(torch.stack(expected))[0].cls, dim=1).numpy()
    assert np.allclose(column_to_vectors(table["vector"]), tokens, atol=1e-5)


def test_images_of_other_channels_than_the_backbone_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_vit(tmp_path / "vit", channels=5)
    folder_of(tmp_path / "images", noise(1, 40))
    for number, pages in enumerate(np.random.default_rng(0).integers(0, 256, (9, 5, 40, 40), np.uint8)):
        first, *others = map(Image.fromarray, pages)
        first.save(tmp_path / "images" / f"{number}.tif", save_all=True, append_images=others)
    result = run(scan(tmp_path / "images", make_split=False).manifest, tmp_path / "out.parquet", tmp_path / "vit")
    assert dict(zip(result.manifest.column("image"), result.manifest.column("reason"), strict=True)) == {
        "0.png": "unreadable", **{f"{number}.tif": None for number in range(9)}
    }  # fmt: skip
    assert "images without the channels that `backbone` takes: 1 are left out" in result.summary["notes"]
    monkeypatch.setattr("dinomed.pretrain.curation.pipeline.locked", None)  # nothing is read or written
    colour = folder_of(tmp_path / "colour", noise(10, 40))
    with pytest.raises(UsageError, match=r"no image fits `backbone`, which takes 5 channels; 0\.png has 3"):
        run(colour, tmp_path / "new.parquet", tmp_path / "vit")


@pytest.mark.parametrize(
    "reading", [{"channels": 5}, {"intensity": IntensityConfig(window=(0, 9))}], ids=["channels", "window"]
)
def test_a_descriptor_refuses_a_backbone_that_reads_no_pictures(tmp_path: Path, reading: dict[str, Any]) -> None:
    save_vit(tmp_path / "vit", **reading)
    with pytest.raises(UsageError, match=r"descriptors compare pictures of 8 bits; leave descriptor\.source out"):
        check_source(BackboneConfig(backbone=str(tmp_path / "vit")))


def rewrite(table: Path, place: int) -> None:
    """Make all vectors of a table of features the unit vector along one axis."""
    with pq.ParquetFile(table) as file:
        rows = file.read()
    features = np.zeros((len(rows), 32), np.float32)
    features[:, place] = 1
    column = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), 32)
    pq.write_table(rows.set_column(rows.column_names.index("feature"), rows.schema.field("feature"), column), table)


def test_embeddings_of_a_table_are_those_of_the_same_contents(tmp_path: Path) -> None:
    backbone, images = save_vit(tmp_path / "vit"), noise(10, 40)
    table, output = tmp_path / "features.parquet", tmp_path / "out.parquet"
    write_feature_table(backbone, folder_of(tmp_path / "first", images), table)
    images[3] = 255 - images[3]  # under the name of an image of the table
    pool = folder_of(tmp_path / "second", images)
    for place in (0, 1):  # the same file with other vectors
        rewrite(table, place)
        run(pool, output, tmp_path / "vit", [table])
        vectors = np.load(tmp_path / "out.stages" / "embed" / "vectors.npy")
        assert np.flatnonzero(vectors[:, place] == 1).tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    with pytest.raises(UsageError, match="no image of the pool has the content of an image of the tables"):
        run(folder_of(tmp_path / "third", noise(10, 40, 7)), output, tmp_path / "vit", [table])


def test_paths_of_all_columns_follow_the_root_of_blurred_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = noise(10, 40)
    pool = folder_of(tmp_path / "data" / "pool", [*images, images[1]])  # 10.png is 1.png, or the other way
    depth = [None, *[f"{number}.png" for number in range(10)]]
    columns = {name: pool.column(name) for name in pool.columns}
    pool = build_manifest(columns | {"depth": depth, "site": ["arm"] * 11}, pool.root)
    monkeypatch.setattr(
        "dinomed.pretrain.curation.filters.faces.find_faces",
        lambda image, config: [(2, 2, 20, 20)] if (image == images[0]).all() else [],
    )
    joined = build_pool(NamedManifest("pool", pool), [], [])
    config = CurationConfig.model_validate(SETTINGS | {"faces": {"action": "blur"}})
    made = curate(joined, tmp_path / "results" / "out.parquet", config).manifest
    for name in ("image", "depth", "duplicate_of", "original"):
        paths = [path for path in made.column(name) if path is not None]
        assert paths, name
        assert all((made.root / path).is_file() for path in paths), name
    assert made.column("image")[0].startswith("results/out.faces/")
    assert set(made.column("site")) == {"arm"}


def arrays_of(folder: Path, channels: int) -> Manifest:
    """Write ten arrays of Hounsfield units, smooth enough for all filters, and scan them."""
    folder.mkdir()
    for number, small in enumerate(np.random.default_rng(0).integers(-1000, 400, (10, 5, 6, channels))):
        np.save(folder / f"{number}.npy", np.kron(small, np.ones((16, 16, 1))).astype(np.int16))
    return scan(folder, make_split=False).manifest


@pytest.mark.parametrize("channels", [1, 5])
def test_arrays_that_pretraining_reads_are_curated_and_hashed(
    tmp_path: Path, channels: int, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = arrays_of(tmp_path / "pool", channels)
    made = run(pool, tmp_path / "plain.parquet")
    assert made.counts == {"kept": 10}
    save_vit(tmp_path / "vit", channels=channels, intensity=IntensityConfig(window=(-1000, 400)))
    made = run(pool, tmp_path / "embedded.parquet", tmp_path / "vit")
    assert made.counts == {"kept": 10}
    write_training_index(tmp_path, pool)
    assert read_training_index(tmp_path).readable.all()
    found = audit_training_index(read_training_index(tmp_path), pool, AuditConfig(near=True))
    assert (found.unreadable, found.counts["exact"]) == (0, 10)
    assert "cannot be read" not in capsys.readouterr().err


def test_arrays_that_the_backbone_cannot_read_are_refused_as_such(tmp_path: Path) -> None:
    pool = arrays_of(tmp_path / "pool", 1)
    save_vit(tmp_path / "vit")
    with pytest.raises(DinomedError, match=r"none of 10 images can be read as `backbone` reads them \(values from -"):
        run(pool, tmp_path / "out.parquet", tmp_path / "vit")


def test_no_faces_are_looked_for_in_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blurred copy would have other channels and values."""
    pool = arrays_of(tmp_path / "pool", 1)
    monkeypatch.setattr("dinomed.pretrain.curation.filters.faces.find_faces", lambda image, config: [(2, 2, 20, 20)])
    assert FindFaces(FacesConfig(action="blur"))([str(pool.path(0))])["boxes"].to_pylist() == [[]]
    (tmp_path / "pool" / "0.npy").unlink()
    with pytest.raises(DinomedError, match="an earlier stage could read it"):
        FindFaces(FacesConfig(action="blur"))([str(pool.path(0))])


def test_a_picture_is_in_colour_or_else_the_first_channel_in_gray(tmp_path: Path) -> None:
    pool = arrays_of(tmp_path / "pool", 5)
    first = np.load(pool.path(0))[..., 0].astype(np.float64)
    low, high = np.percentile(first, (0.5, 99.5))
    expected = (np.clip((first - low) / (high - low), 0, 1) * 255).round()
    for isolated in (False, True):
        picture = read_picture(pool.path(0), isolated=isolated)
        assert picture.shape == (*first.shape, 3)
        assert np.abs(picture - expected[..., None]).max() <= 1
    colour = noise(1, 40)[0]
    assert (read_picture(folder_of(tmp_path / "colour", [colour]).path(0)) == colour).all()
