"""Heads on the patch tokens of rectangles (`aspect` keep): batches, cached patches, training, places of masks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dinomed.adapters.bundle import read_record
from dinomed.adapters.evaluation.evaluate import evaluate
from dinomed.adapters.evaluation.few_masks import open_pool
from dinomed.adapters.export.run import export
from dinomed.adapters.export.source import load_source
from dinomed.adapters.fit import fit_head
from dinomed.adapters.fitting.build import at_image_size
from dinomed.adapters.fitting.config import FitConfig
from dinomed.adapters.fitting.optimizers import BatchedAdamW, ParameterGroup
from dinomed.adapters.inference.dense import Views
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.inference.shared import predict_many
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.adapters.tasks.depth.config import DepthConfig
from dinomed.adapters.tasks.depth.maps import DepthSource, shrink_depth
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.adapters.tasks.segment.mask_schema import BINARY
from dinomed.adapters.tasks.segment.predict import SegmentPredictor
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.config import build_config
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.features.compute import Features, compute_features
from dinomed.features.extract import extract
from dinomed.images.read import read_image

PATCH, SIDE = 8, 32
SHORT = {"epochs": 2, "patience": 2, "batch_size": 5, "min_steps": 0}


@pytest.fixture(scope="module")
def keeping(backbone: FrozenBackbone) -> FrozenBackbone:
    return at_image_size(backbone, None, "keep")


@pytest.fixture(scope="module")
def segmenter(spots: Manifest, keeping: FrozenBackbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fits")
    fit = FitConfig(epochs=20, patience=20, batch_size=6, learning_rate=0.02, min_steps=0)
    config = SegmentConfig(fit=fit, image_size=SIDE, aspect="keep", augment="none")
    square = at_image_size(keeping, None, "square")
    result = fit_head(square, spots, folder / "seg", config, cache=folder / "cache")
    assert result.validation["dice"] > 0.6  # at the size of the images; 0 with targets at other places than the images
    return result.folder


def test_a_batch_has_one_grid_and_a_pass_has_every_example() -> None:
    grids = np.array([(4, 6), (6, 4), (4, 6), (4, 4), (6, 4), (4, 6), (6, 4), (6, 4), (4, 6)])
    weight = torch.nn.Parameter(torch.zeros(1))
    config = FitConfig(epochs=2, batch_size=2, min_steps=0)
    adamw = BatchedAdamW([ParameterGroup([weight], 1.0)], config, len(grids), 0, grids)
    passes = [[batch.indices.tolist() for batch in adamw.batch_indices(epoch)] for epoch in (1, 2)]
    for batches in passes:
        assert len(batches) == adamw.steps == 5
        assert all(len({tuple(grids[row]) for row in rows}) == 1 and len(rows) == 2 for rows in batches)
        assert {row for rows in batches for row in rows} == set(range(len(grids)))
    assert passes[0] != passes[1]


def test_cached_patch_tokens_of_mixed_grids_are_those_of_each_image(
    keeping: FrozenBackbone, spots: Manifest, tmp_path: Path
) -> None:
    cache = extract(keeping, spots, cache=tmp_path, patches=True, batch_size=3, shard_size=7)
    assert cache.grids is not None
    for row in range(len(spots)):
        pixels = keeping.preprocessing(read_image(spots.path(row)))[None]
        alone = compute_features(keeping, pixels, (-1,), True).patches
        assert alone is not None
        (tokens,) = cache.patches([row])
        assert tokens.shape == alone.shape[1:]
        assert tuple(cache.grids[row]) == tokens.shape[1:]
        assert np.abs(tokens - alone[0].numpy()).max() < 4e-3  # kept in float16: 5e-4 of values up to 4


@pytest.mark.parametrize("views", [Views(), Views(flips=True), Views(flips=True, scales=(1.0, 2.0))])
def test_predicted_masks_have_the_place_and_shape_of_the_spots(
    segmenter: Path, spots: Manifest, views: Views, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, record = load_adapter(segmenter), read_record(segmenter)
    changed = record.model_copy(update={"usage": record.usage | {"views": vars(views)}})
    predictor = SegmentPredictor(changed, trained.adapter, trained.backbone)

    def redness(features: Features) -> torch.Tensor:
        """The mask that the pixels of the input show: the red of the spots is far above the grey of the background."""
        assert features.images is not None
        return 20 * (features.images[:, :1] - features.images[:, 1:2] - 1.5)

    monkeypatch.setattr(predictor.adapter, "forward", redness)
    results = predictor.predict([spots.path(row) for row in range(6)])
    for row, result in enumerate(results):
        known = BINARY.read(spots, row)[0].astype(bool)
        assert result.mask.shape == known.shape
        # a pixel of the input has up to 2.7x2.7 px of the image, so the outline of a disk of radius 14 is off by half
        # of that at most: less than a tenth of its area; a shift or another shape changes much more
        assert (result.mask.astype(bool) != known).sum() < 0.1 * known.sum(), row


def test_a_segmenter_predicts_mixed_shapes_as_each_image_alone(segmenter: Path, spots: Manifest) -> None:
    predictor = load_adapter(segmenter)
    assert read_record(segmenter).preprocessing.aspect == predictor.backbone.preprocessing.aspect == "keep"
    images = [read_image(spots.path(row)) for row in (0, 2, 1, 3, 4)]
    together = predictor.predict(images)
    shared = predict_many([predictor], images)[0]
    for image, mask, maps in zip(images, together, shared, strict=True):
        (alone,) = predictor.predict([image])
        assert maps.shape == (1, *image.shape[:2])
        assert np.abs(mask.probabilities - alone.probabilities).max() < 1e-5  # float32 sums in another order
        assert np.abs(maps - alone.probabilities).max() < 1e-5
    report = evaluate(segmenter, spots, "val", resamples=10)
    assert report["aspect"] == "keep"
    assert report["metrics"]["dice"] > 0.6


@pytest.mark.parametrize(
    "settings",
    [
        {"augment": "light", "augment_copies": 2},
        {"augment": "light", "augment_copies": 0},
        {"augment": "none", "tune": "last:1"},
        {"augment": "none", "head": {"name": "unet", "detail": True}},
    ],
    ids=["copies", "augmented anew", "tuned backbone", "head that reads images"],
)
def test_every_source_of_features_trains_on_mixed_shapes(
    settings: dict[str, Any], keeping: FrozenBackbone, spots: Manifest, tmp_path: Path
) -> None:
    config = build_config(SegmentConfig, {"aspect": "keep", "image_size": SIDE, "fit": SHORT} | settings, "test")
    result = fit_head(keeping, spots, tmp_path / "seg", config, cache=tmp_path / "cache")
    masks = load_adapter(result.folder).predict([spots.path(0), spots.path(1)])
    assert [mask.mask.shape for mask in masks] == [(48, 128), (120, 40)]
    assert 0 <= result.validation["dice"] <= 1


def test_an_attentive_classifier_is_trained_on_mixed_shapes(
    keeping: FrozenBackbone, spots: Manifest, tmp_path: Path
) -> None:
    labels = ["wide", "tall"] * (len(spots) // 2)
    labelled = Manifest(spots.table.append_column("label", [labels]), spots.root)
    fit = {"epochs": 8, "patience": 8, "batch_size": 4, "min_steps": 0}
    config = build_config(ClassifyConfig, {"aspect": "keep", "head": {"name": "attentive"}, "fit": fit}, "test")
    result = fit_head(keeping, labelled, tmp_path / "cls", config, cache=tmp_path / "cache")
    predictor = load_adapter(result.folder)
    together = predictor.predict([spots.path(row) for row in range(18, 24)])
    for row, answer in zip(range(18, 24), together, strict=True):
        assert answer.probabilities == pytest.approx(predictor.predict([spots.path(row)])[0].probabilities, abs=1e-5)


def test_a_depth_estimator_is_trained_on_mixed_shapes(keeping: FrozenBackbone, spots: Manifest, tmp_path: Path) -> None:
    rows, names = [0, 1, 2, 3, 18, 19], []
    for row in rows:
        names.append(f"depth_{row}.png")
        values = np.full(BINARY.read(spots, row)[0].shape, 1000, np.uint16)
        values[len(values) // 2 :] = 3000  # the lower half is farther
        Image.fromarray(values).save(spots.root / names[-1])
    table = spots.take(rows).table.append_column("depth", [names])
    config = build_config(
        DepthConfig, {"aspect": "keep", "image_size": SIDE, "scale": 0.001, "augment": "none", "fit": SHORT}, "test"
    )
    result = fit_head(keeping, Manifest(table, spots.root), tmp_path / "depth", config, cache=tmp_path / "cache")
    depths = load_adapter(result.folder).predict([spots.path(row) for row in rows])
    assert [depth.depth.shape for depth in depths] == [(48, 128), (120, 40)] * 3
    (wide, tall) = (DepthSource(scale=0.001).read(Manifest(table, spots.root), row) for row in (0, 1))
    for depth, size in ((wide, (24, 64)), (tall, (64, 24))):
        small = shrink_depth(depth, keeping.preprocessing)
        assert small.shape == size
        assert np.abs(small[: size[0] // 2] - 1).max() < 1e-5  # means of float32 numbers
        assert np.abs(small[size[0] // 2 :] - 3).max() < 1e-5


@pytest.mark.long
def test_a_segmenter_on_rectangles_is_exported_to_onnx_for_any_size(segmenter: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    report = export(load_source(str(segmenter)), "onnx", tmp_path / "out", dynamic_size=True)  # compares rectangles
    assert report["format"] == "onnx"


def test_what_needs_squares_refuses_rectangles(keeping: FrozenBackbone, spots: Manifest, tmp_path: Path) -> None:
    for settings, message in (
        ({"window": 64, "crop": 0.5}, "windows are squares, and `aspect=keep` is for whole images; use"),
        ({"fit": {"optimizer": "lbfgs"}, "augment": "none"}, "lbfgs uses the patches of all images.*set adamw"),
    ):
        config = build_config(SegmentConfig, settings, "test")
        with pytest.raises(UsageError, match=message):
            fit_head(keeping, spots, tmp_path / "out", config, cache=tmp_path)
    with pytest.raises(UsageError, match=r"heads on few masks take squares; leave `aspect=keep` out, or give pad"):
        open_pool(keeping, BINARY, spots, spots, SegmentConfig(augment="none"), tmp_path)
    assert not (tmp_path / "out").exists()
