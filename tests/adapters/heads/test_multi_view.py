"""The multi-view head: fusion by entropy against loops in NumPy, mirror images, training, prediction and refusals."""

from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dinomed.adapters.evaluation.evaluate import evaluate
from dinomed.adapters.evaluation.few_masks import few_shot_config, few_shot_masks
from dinomed.adapters.export.run import export
from dinomed.adapters.export.source import load_source
from dinomed.adapters.fit import fit_head
from dinomed.adapters.fitting.build import at_image_size, build_adapter
from dinomed.adapters.heads.multi_view import MultiViewSegmenter, fuse_by_entropy
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.inference.shared import predict_many
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.adapters.tasks.segment.fit import SegmenterFit
from dinomed.adapters.tasks.segment.predict import SegmentPredictor
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.config import build_config
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.features.compute import compute_features
from dinomed.images.read import read_image


def config_of(**settings: Any) -> SegmentConfig:
    fit = {"epochs": 3, "min_steps": 30, "batch_size": 8, "learning_rate": 1e-2}
    data = {"head": {"name": "multi_view", "hidden": 16}, "image_size": 64, "augment": "none", "fit": fit, **settings}
    return build_config(SegmentConfig, data, "test")


@pytest.fixture(scope="module")
def folder(backbone: FrozenBackbone, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("multi_view")
    return fit_head(backbone, manifest, place / "seg", config_of(), cache=place / "cache").folder


@pytest.fixture(scope="module")
def predictor(folder: Path) -> SegmentPredictor:
    loaded = load_adapter(folder)
    assert isinstance(loaded, SegmentPredictor)
    return loaded


def fused_by_loops(maps: np.ndarray, exclusive: bool) -> np.ndarray:
    views, classes, height, width = maps.shape
    fused = np.zeros((classes, height, width))
    for y in range(height):
        for x in range(width):
            for k in range(classes):
                top = bottom = 0.0
                for v in range(views):
                    row = maps[v, :, y, x].tolist() if exclusive else [float(maps[v, k, y, x])]
                    row = row if exclusive else [row[0], 1 - row[0]]
                    entropy = -sum(p * log(p) for p in row if p > 0) / log(len(row))
                    weight = max(1 - entropy, 1e-3)
                    top += weight * float(maps[v, k, y, x])
                    bottom += weight
                fused[k, y, x] = top / bottom
    return fused


@pytest.mark.parametrize(("classes", "exclusive"), [(1, False), (2, False), (2, True), (4, True)])
def test_the_fusion_is_the_mean_weighted_by_entropy(classes: int, exclusive: bool) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, classes, 4, 5)) * 3
    maps = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) if exclusive else 1 / (1 + np.exp(-logits))
    maps[0, :, 0, 0] = np.eye(classes)[0]  # certain: the entropy of 0 and 1 is 0
    maps[:, :, 1, 1] = 1 / classes if exclusive else 0.5  # no view is certain
    maps = maps.astype(np.float32)
    fused = fuse_by_entropy(maps, exclusive)
    assert fused.shape == (classes, 4, 5)
    np.testing.assert_allclose(fused, fused_by_loops(maps, exclusive), atol=1e-5)  # of float32
    np.testing.assert_allclose(fused[:, 1, 1], maps[0, :, 1, 1], atol=1e-6)
    if exclusive:
        np.testing.assert_allclose(fused.sum(axis=0), 1, atol=1e-5)


def test_a_certain_view_outweighs_several_uncertain_ones() -> None:
    maps = np.array([0.99, 0.45, 0.45, 0.45], np.float32).reshape(4, 1, 1, 1)
    assert fuse_by_entropy(maps, False).item() > 0.9
    assert maps.mean() < 0.6


def test_each_part_of_the_head_has_the_loss_of_its_own_output(backbone: FrozenBackbone, manifest: Manifest) -> None:
    fit = SegmenterFit(config_of())
    fit.splits = fit.select_rows(manifest)
    fit.backbone = at_image_size(backbone, 64)
    head = fit.build().train()
    assert isinstance(head, MultiViewSegmenter)
    for part in head.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0  # otherwise two passes differ
    pixels = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = compute_features(fit.backbone, pixels, head.feature_spec.blocks, patches=True)
    targets = fit.targets([0, 1, 2, 3])
    loss = fit.loss(head(features), targets)
    parts = torch.stack([fit.loss(logits, targets) for logits in head.probe_logits(features)])
    torch.testing.assert_close(loss, parts.mean())
    loss.backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_a_prediction_fuses_all_parts_sizes_and_mirror_images(predictor: SegmentPredictor, manifest: Manifest) -> None:
    image = read_image(manifest.path(0))
    maps = []
    for side in (64, 96):
        square = predictor.backbone.preprocessing.model_copy(update={"image_size": side})(image)[None]
        for mirrored in (False, True):
            features = compute_features(
                predictor.backbone, square.flip(-1) if mirrored else square, (-3, -2, -1), patches=True
            )
            assert features.patches is not None
            for block, probe in enumerate(predictor.adapter.probes):
                with torch.no_grad():
                    logits = probe(features.patches[:, 32 * block : 32 * block + 32])
                logits = logits.flip(-1) if mirrored else logits
                maps.append(torch.nn.functional.interpolate(logits, image.shape[:2], mode="bilinear")[0].sigmoid())
    assert len(maps) == 12
    expected = fused_by_loops(torch.stack(maps).numpy(), False)
    np.testing.assert_allclose(predictor.probabilities(image), expected, atol=1e-4)
    np.testing.assert_allclose(predictor.predict([image])[0].probabilities, expected, atol=1e-4)
    ((shared,),) = predict_many([predictor], [image])
    np.testing.assert_allclose(shared, expected, atol=1e-4)


def test_a_mirrored_image_has_the_mirrored_mask(predictor: SegmentPredictor, manifest: Manifest) -> None:
    image = read_image(manifest.path(1))
    mirrored = np.ascontiguousarray(image[:, ::-1])
    forth, back = predictor.probabilities(image), predictor.probabilities(mirrored)[:, :, ::-1]
    np.testing.assert_allclose(forth, back, atol=2e-3)  # resized pixels are rounded to one grey level
    # one pass of one part is not symmetric: the tokens have positions
    one, two = (predictor.backbone.preprocessing(pixels)[None] for pixels in (image, mirrored))
    assert (predictor.logits(one) - predictor.logits(two).flip(-1)).abs().max() > 0.01


def test_the_fit_learns_and_its_bundle_is_evaluated(folder: Path, manifest: Manifest) -> None:
    report = evaluate(folder, manifest, "val", resamples=10)
    record = load_adapter(folder).metadata
    # the threshold was chosen on the same fused maps; only its Dice over all pixels of a threshold grid is compared
    assert report["metrics"]["dice"] == pytest.approx(record["validation"]["dice"], abs=1e-4)
    assert report["metrics"]["dice"] > 0.5  # an empty mask has 0; a full one about 0.3
    assert record["usage"]["views"]["scales"] == [1.0, 1.5]
    assert record["usage"]["views"]["flips"] is True


def test_exclusive_classes_are_fused_to_probabilities(
    backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path
) -> None:
    settings = {"kind": "multiclass", "classes": {"lesion": 1}, "fit": {"epochs": 1, "min_steps": 0, "batch_size": 8}}
    folder = fit_head(backbone, manifest, tmp_path / "seg", config_of(**settings), cache=tmp_path / "cache").folder
    predictor = load_adapter(folder)
    assert isinstance(predictor, SegmentPredictor)
    maps = predictor.probabilities(read_image(manifest.path(0)))
    np.testing.assert_allclose(maps.sum(axis=0), 1, atol=1e-5)


def test_a_single_view_is_still_fused_over_the_blocks(
    backbone: FrozenBackbone, manifest: Manifest, folder: Path
) -> None:
    predictor = load_adapter(folder)
    assert isinstance(predictor, SegmentPredictor)
    predictor.views = type(predictor.views)()
    image = read_image(manifest.path(2))
    features = compute_features(
        predictor.backbone, predictor.backbone.preprocessing(image)[None], (-3, -2, -1), patches=True
    )
    with torch.no_grad():
        maps = [predictor.resized(logits, image.shape[:2]) for logits in predictor.adapter.probe_logits(features)]
    np.testing.assert_allclose(predictor.probabilities(image), fused_by_loops(np.stack(maps), False), atol=1e-4)
    assert not predictor.shares_pass


def test_what_cannot_fuse_views_is_refused_by_name(
    folder: Path, backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path
) -> None:
    for kind in ("onnx", "monai"):
        with pytest.raises(UsageError, match="head multi_view fuses passes over several sizes"):
            export(load_source(str(folder)), kind, tmp_path / kind)
        assert not (tmp_path / kind).exists()
    with pytest.raises(UsageError, match="window: head multi_view fuses views of the whole image"):
        config_of(window=64)
    with pytest.raises(UsageError, match="head multi_view reads several passes of each image"):
        few_shot_masks(backbone, manifest, few_shot_config({"head": {"name": "multi_view"}}), cache=tmp_path)


def test_a_backbone_with_fewer_blocks_is_refused(backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path) -> None:
    config = config_of(head={"name": "multi_view", "blocks": [-5, -1]})
    assert len(build_adapter(config, backbone, 1).probes) == 2
    with pytest.raises(UsageError, match="the backbone has blocks 0 to 2"):
        fit_head(backbone, manifest, tmp_path / "no", config, cache=tmp_path / "cache")
