"""Adapters that share a backbone pass have the same outputs as alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dinomed.adapters.adapter import FeatureSpec
from dinomed.adapters.fit import fit_head
from dinomed.adapters.inference import shared as together
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.inference.shared import predict_many, shared_features
from dinomed.adapters.retrieval.build import build_index
from dinomed.adapters.retrieval.search import load_index
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import read_manifest
from dinomed.features.compute import compute_features
from dinomed.images.read import read_image


@pytest.mark.parametrize(
    "needs",
    [
        [FeatureSpec((-1,), False)],
        [FeatureSpec((0, -1), True), FeatureSpec((-1,), False), FeatureSpec((2, 0), True), FeatureSpec((-1,), False)],
    ],
)
def test_shared_features_are_those_of_separate_passes(tiny_backbone: Path, needs: list[FeatureSpec]) -> None:
    backbone = load_backbone(tiny_backbone)
    pixels = torch.randn(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    for need, features in zip(needs, shared_features(backbone, pixels, needs), strict=True):
        expected = compute_features(backbone, pixels, need.blocks, need.patches)
        assert torch.equal(features.cls, expected.cls)
        assert torch.allclose(features.mean, expected.mean, atol=1e-6)  # a mean by block, and one of all
        assert (features.patches is None) == (expected.patches is None)
        if features.patches is not None:
            assert torch.equal(features.patches, expected.patches)


def test_many_adapters_on_one_pass(
    tmp_path: Path, lesion_manifest: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, manifest = load_backbone(tiny_backbone), read_manifest(lesion_manifest)
    cache = tmp_path / "cache"
    fit_head(backbone, manifest, tmp_path / "cls", config=ClassifyConfig(), cache=cache)
    short = {"fit": {"epochs": 1, "min_steps": 0, "batch_size": 16}}
    for name, size in (("seg", 32), ("large", 48)):
        config = SegmentConfig.model_validate({**short, "image_size": size})
        fit_head(backbone, manifest, tmp_path / name, config=config, cache=cache)
    build_index(backbone, manifest, tmp_path / "idx", cache=cache)
    consumers = [*(load_adapter(tmp_path / name) for name in ("cls", "seg", "large")), load_index(tmp_path / "idx")]
    cls, seg, large, image_index = consumers
    images = [read_image(manifest.path(row)) for row in range(3)]
    passes = []
    real = type(backbone).forward
    monkeypatch.setattr(type(backbone), "forward", lambda self, *a, **k: passes.append(1) or real(self, *a, **k))
    predictions = predict_many(consumers, images)
    assert len(passes) == 2  # three of one size, and the segmenter of another
    for row, image in enumerate(images):
        assert predictions[0][row] == pytest.approx(cls.probabilities(image), abs=1e-5)
        for place, segmenter in ((1, seg), (2, large)):
            assert predictions[place][row].shape == (1, *image.shape[:2])
            assert np.abs(predictions[place][row][0] - segmenter.probability(image)).max() < 1e-5
        assert predictions[3][row] @ image_index.vector_index.vectors[row] == pytest.approx(1, abs=1e-5)


def test_a_shared_backbone_is_loaded_once(
    tmp_path: Path, lesion_manifest: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, manifest = load_backbone(tiny_backbone), read_manifest(lesion_manifest)
    cache = tmp_path / "cache"
    fit_head(backbone, manifest, tmp_path / "cls", config=ClassifyConfig(), cache=cache)
    short = {"fit": {"epochs": 1, "min_steps": 0, "batch_size": 16}, "image_size": 48}
    fit_head(backbone, manifest, tmp_path / "seg", config=SegmentConfig.model_validate(short), cache=cache)
    tuned = SegmentConfig.model_validate({**short, "tune": "last:1"})
    fit_head(backbone, manifest, tmp_path / "tuned", config=tuned, cache=cache)
    build_index(backbone, manifest, tmp_path / "idx", cache=cache)
    loaded = []
    monkeypatch.setattr(together, "load_backbone", lambda *a, **k: loaded.append(a) or load_backbone(*a, **k))
    load = together.Backbones()
    consumers = [load_adapter(tmp_path / name, load=load) for name in ("cls", "seg", "tuned")]
    consumers.append(load_index(tmp_path / "idx", load=load))
    assert len(loaded) == 1
    cls, seg, tuned_segmenter, image_index = consumers
    assert cls.backbone.vit is seg.backbone.vit is image_index.backbone.vit
    assert tuned_segmenter.backbone.vit is not cls.backbone.vit  # it has learned, and nobody else looks at it
    image = read_image(manifest.path(0))
    for (said,), consumer in zip(predict_many(consumers, [image]), consumers, strict=True):
        if consumer is image_index:
            assert said @ image_index.vector_index.vectors[0] == pytest.approx(1, abs=1e-5)
        elif consumer is cls:
            assert said == pytest.approx(load_adapter(tmp_path / "cls").probabilities(image), abs=1e-5)
        else:
            alone = load_adapter(tmp_path / ("seg" if consumer is seg else "tuned"))
            assert np.abs(said[0] - alone.probability(image)).max() < 1e-5
