"""Attention of the last block: equal to direct computations, and its masks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from dinomed.backbones.config import ViTConfig
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.errors import UsageError
from dinomed.explore.attention import last_attention, mass_mask
from dinomed.layers import packed_attention


@pytest.fixture(params=["learned", "rope"])
def backbone(request: pytest.FixtureRequest) -> FrozenBackbone:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = ViTConfig(
            embed_dim=32, depth=3, num_heads=4, patch_size=8, image_size=32, num_registers=2, position=request.param
        )
        vit = VisionTransformer(config)
        for block in vit.blocks:
            nn.init.normal_(block.attn.qkv.weight, std=0.3)  # so that attention is far from uniform
        for token in (vit.cls_token, vit.register_tokens):
            nn.init.normal_(token)  # they are nearly 0 at first, and so are their queries without learned positions
    return FrozenBackbone(vit, Preprocessing(image_size=32), "tiny")


def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def test_rows_sum_to_one_and_equal_a_direct_computation(
    backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = last_attention(backbone, images())
    assert attention.weights.shape == (2, 4, 3, 3 + 24)
    assert np.allclose(attention.weights.sum(axis=-1), 1, atol=1e-5)  # rounding of float32
    # Directly: the queries and keys that the block itself passes to torch's attention, which returns the weights if
    # the values are the identity.
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def record(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        calls.append((q, k))
        return scaled_dot_product_attention(q, k, v)

    monkeypatch.setattr(packed_attention, "scaled_dot_product_attention", record)
    backbone(images())
    expected = scaled_dot_product_attention(*calls[-1], torch.eye(27).expand(2, 4, 27, 27))
    assert np.abs(attention.weights - expected[:, :, :3].numpy()).max() < 1e-5
    assert expected[:, :, 0].max() > 0.2  # a uniform attention would be 1 / 27


def test_maps_of_class_token_and_registers_are_told_apart(backbone: FrozenBackbone) -> None:
    attention = last_attention(backbone, images())
    assert attention.num_registers == 2
    for query in range(3):
        assert np.array_equal(attention.maps(query)[1, 2].ravel(), attention.weights[1, 2, query, 3:])
        assert attention.maps(query).shape == (2, 4, 4, 6)
        shares = attention.shares(query)
        assert shares.shape == (2, 4, 4)
        assert np.allclose(shares.sum(axis=-1), 1, atol=1e-5)
        assert np.allclose(shares[..., 1], attention.weights[:, :, query, 1])


def test_a_backbone_without_registers_has_one_query(tiny_backbone: Path) -> None:
    attention = last_attention(load_backbone(tiny_backbone), torch.zeros(1, 3, 32, 32))
    assert attention.weights.shape == (1, 2, 1, 17)
    assert attention.num_registers == 0


def test_a_family_with_another_attention_is_refused_by_name(backbone: FrozenBackbone) -> None:
    class Turned(nn.Module):
        """An attention on other values than its projections get."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.qkv, self.proj, self.num_heads = inner, inner.qkv, inner.proj, inner.num_heads

        def forward(self, x: torch.Tensor, groups: list[tuple[int, int]], rotations: None) -> torch.Tensor:
            return self.inner(x.flip(-1), groups, rotations)

    backbone.vit.blocks[-1].attn = Turned(backbone.vit.blocks[-1].attn)
    with pytest.raises(UsageError, match="backbone tiny does not compute its attention from queries and keys alone"):
        last_attention(backbone, images())
    backbone.model = nn.Identity()
    backbone.model.family = "siglip"
    with pytest.raises(UsageError, match="backbone tiny is a siglip model, whose attention is not known"):
        last_attention(backbone, images())


@pytest.mark.parametrize("mass", [0.1, 0.6, 0.9, 1.0])
def test_a_mask_holds_its_mass_with_the_fewest_patches(mass: float) -> None:
    maps = np.random.default_rng(0).exponential(size=(2, 3, 6, 7)) ** 2
    masks = mass_mask(maps, mass)
    for values, mask in zip(maps.reshape(6, -1), masks.reshape(6, -1), strict=True):
        falling = np.sort(values)[::-1]
        fewest = int(np.searchsorted(np.cumsum(falling) / falling.sum(), mass - 1e-9)) + 1
        assert mask.sum() == min(fewest, len(values))
        assert values[mask].sum() >= mass * values.sum() - 1e-9
        assert mask.all() or values[mask].min() >= values[~mask].max()
