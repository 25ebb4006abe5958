"""Prediction of images from files and from memory: every form of the same image has the same result."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinomed.adapters.fit import fit_head
from dinomed.adapters.fitting.config import FitConfig
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.adapters.tasks.classify.predict import ClassifyPredictor, ClassPrediction
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.adapters.tasks.segment.predict import MaskPrediction, SegmentPredictor
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import read_manifest
from dinomed.errors import UsageError
from dinomed.images.read import read_image

FIT = FitConfig(epochs=1, min_steps=0, batch_size=16)


@pytest.fixture(scope="module")
def adapters(lesion_manifest: Path, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, manifest = tmp_path_factory.mktemp("adapters"), read_manifest(lesion_manifest)
    backbone = load_backbone(tiny_backbone)
    fit_head(backbone, manifest, folder / "classify", ClassifyConfig(fit=FIT), cache=folder / "cache")
    config = SegmentConfig(fit=FIT, image_size=48)
    fit_head(backbone, manifest, folder / "segment", config, cache=folder / "cache")
    return folder


@pytest.mark.parametrize("task", ["classify", "segment"])
def test_every_form_of_an_image_has_the_same_result(task: str, adapters: Path, lesion_manifest: Path) -> None:
    predictor, path = load_adapter(adapters / task), read_manifest(lesion_manifest).path(3)
    pixels = read_image(path)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    first, *other_results = predictor.predict([path, str(path), Image.open(path), pixels, tensor])
    assert len(other_results) == 4
    if isinstance(predictor, ClassifyPredictor):
        assert isinstance(first, ClassPrediction)
        assert first.label == max(first.probabilities, key=lambda name: first.probabilities[name])
        assert first.probabilities == pytest.approx(predictor.probabilities(pixels), abs=1e-5)
        assert all(result.probabilities == first.probabilities for result in other_results)
    else:
        assert isinstance(predictor, SegmentPredictor)
        assert isinstance(first, MaskPrediction)
        assert first.mask.shape == pixels.shape[:2]
        assert (first.mask == (first.probabilities[0] >= predictor.threshold)).all()
        assert (first.masks["lesion"] == first.mask).all()
        assert np.allclose(first.probabilities, predictor.probabilities(pixels), atol=1e-5)
        assert all((result.mask == first.mask).all() for result in other_results)


def test_images_of_several_sizes_and_batches_keep_their_order(adapters: Path) -> None:
    predictor = load_adapter(adapters / "segment")
    sizes = [(20 + i, 40 - i) for i in range(predictor.batch_size + 3)]
    results = predictor.predict(np.full((*size, 3), 90, np.uint8) for size in sizes)
    assert [result.mask.shape for result in results] == sizes
    assert predictor.predict([]) == []


def test_an_object_that_is_no_image_is_refused(adapters: Path) -> None:
    with pytest.raises(UsageError, match="is no image"):
        load_adapter(adapters / "classify").predict([object()])
