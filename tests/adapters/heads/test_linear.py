"""Linear heads, compared with their formulas."""

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss

from dinomed.adapters.adapter import HeadConfig
from dinomed.adapters.heads.linear import LinearClassifier, LinearClassifierConfig, LinearSegmenter
from dinomed.adapters.tasks.segment.mask_schema import BINARY
from dinomed.adapters.tasks.segment.masks import Masks, dice, shrink_mask
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.datasets.manifest import read_manifest
from dinomed.features.compute import Features
from dinomed.metrics.segmentation import overlap


def features(n: int = 5, width: int = 8) -> Features:
    generator = torch.Generator().manual_seed(0)
    cls, mean = torch.randn(2, n, width, generator=generator)
    return Features(cls * 3 + 1, mean, torch.randn(n, width, 3, 4, generator=generator))


@pytest.mark.parametrize("tokens", ["cls", "mean", "cls+mean"])
def test_a_classifier_is_one_linear_layer_on_standardised_tokens(tokens: str) -> None:
    config = LinearClassifierConfig(tokens=tokens, blocks=(0, -1))
    head = LinearClassifier(config, embed_dim=4, num_classes=3).eval()
    x = features()
    head.calibrate(x.cls.numpy(), x.mean.numpy())
    pooled = torch.cat({"cls": [x.cls], "mean": [x.mean], "cls+mean": [x.cls, x.mean]}[tokens], 1).double()
    standard = (pooled - pooled.mean(0)) / pooled.std(0, correction=0)
    expected = standard @ head.linear.weight.double().T + head.linear.bias
    torch.testing.assert_close(head(x).double(), expected, atol=1e-5, rtol=0)  # float32 sums of 16 products
    assert head.feature_spec.blocks == (0, -1)
    assert not head.feature_spec.patches


def test_a_constant_channel_has_no_effect() -> None:
    head = LinearClassifier(LinearClassifierConfig(), 8, 2)
    head.calibrate(np.ones((4, 8), np.float32), np.ones((4, 8), np.float32))
    assert torch.isfinite(head(Features(torch.ones(1, 8), torch.ones(1, 8)))).all()


def test_a_linear_segmenter_is_batch_norm_and_a_product_for_each_patch() -> None:
    head = LinearSegmenter(HeadConfig(), embed_dim=8, num_classes=1)
    x = features()
    logits = head.train()(x)
    assert logits.shape == (5, 1, 3, 4)
    patches = x.patches.double()
    mean, variance = patches.mean((0, 2, 3), keepdim=True), patches.var((0, 2, 3), keepdim=True, correction=0)
    standard = (patches - mean) / (variance + 1e-5).sqrt()
    weight = head.linear.weight[0, :, 0, 0].double()
    expected = torch.einsum("bcij,c->bij", standard, weight) + head.linear.bias.double()
    torch.testing.assert_close(logits[:, 0].double(), expected, atol=1e-5, rtol=0)
    assert head.feature_spec.patches


def test_the_loss_is_dice_plus_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 1, 6, 7, generator=generator)
    targets = (torch.rand(3, 1, 6, 7, generator=generator) > 0.6).float()
    p, t = logits.double().sigmoid(), targets.double()
    cross_entropy = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
    hit, total = (p * t).sum((1, 2, 3)), p.sum((1, 2, 3)) + t.sum((1, 2, 3))
    expected = cross_entropy + (1 - (2 * hit + 1e-5) / (total + 1e-5)).mean()
    torch.testing.assert_close(DiceCELoss(sigmoid=True)(logits, targets).double(), expected, atol=1e-6, rtol=0)


def test_dice_of_a_batch_is_the_metric() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 4, 1, 6, 6, generator=generator) > 0.5).float()
    a[0] = b[0] = 0
    expected = [overlap(b[i, 0].numpy(), a[i, 0].numpy()).dice for i in range(4)]
    assert dice(a, b).tolist() == pytest.approx(expected, abs=1e-6)


def test_masks_are_resized_by_area_and_survive_packing(lesion_manifest: Path) -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[:4, :3] = 1  # in 4x4 squares: 3/4 and none
    assert shrink_mask(mask, Preprocessing(image_size=2)).tolist() == [[1, 0], [0, 0]]
    manifest = read_manifest(lesion_manifest).take([0, 1, 2])
    masks = Masks(manifest, Preprocessing(image_size=20), "train", BINARY)  # 20 is no multiple of 8 bits
    taken = masks.take([2, 0])
    assert taken.shape == (2, 1, 20, 20)
    assert (taken[0, 0].numpy() == shrink_mask(BINARY.read(manifest, 2)[0], Preprocessing(image_size=20))).all()
