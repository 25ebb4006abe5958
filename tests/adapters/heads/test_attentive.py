"""Attentive pooling, compared with multi-head cross-attention with one query."""

import pytest
import torch
from torch import nn

from dinomed.adapters.heads.attentive import AttentiveClassifier, AttentiveConfig
from dinomed.features.compute import Features


def sample(batch: int = 3, channels: int = 8, rows: int = 4, columns: int = 5) -> Features:
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(batch, channels, rows, columns, generator=generator)
    return Features(torch.randn(batch, channels, generator=generator), patches.mean((2, 3)), patches)


@pytest.mark.parametrize("registers", [0, 3])
def test_attentive_pooling_equals_the_cross_attention_of_torch(registers: int) -> None:
    torch.manual_seed(1)
    width, heads = 8, 2
    config = AttentiveConfig(heads=heads, with_cls=False, registers=registers)
    adapter = AttentiveClassifier(config, width, 3).double()
    features = sample()
    features = Features(features.cls.double(), features.mean.double(), features.patches.double())
    oracle = nn.MultiheadAttention(width, heads, bias=False, batch_first=True, dtype=torch.float64)
    query = torch.randn(1, 1, width, dtype=torch.float64)
    with torch.no_grad():
        w_q, w_k, w_v = oracle.in_proj_weight.chunk(3)
        q = (query[0, 0] @ w_q.T).view(heads, -1) * (width // heads) ** -0.5
        adapter.query.copy_(torch.einsum("hd,hdc->ch", q, w_k.view(heads, -1, width)))
        adapter.value.copy_(w_v.view(heads, -1, width).transpose(1, 2))
        oracle.out_proj.weight.copy_(torch.eye(width))
        tokens = adapter._tokens(features)
        assert tokens.shape[1] == 4 * 5 + registers
        expected = adapter.linear(adapter.pooled_norm(oracle(query.expand(3, -1, -1), tokens, tokens)[0][:, 0]))
        torch.testing.assert_close(adapter(features), expected, atol=1e-10, rtol=1e-10)


def test_attention_sums_to_one_over_the_patches_of_the_grid() -> None:
    adapter = AttentiveClassifier(AttentiveConfig(heads=4), 8, 3)
    maps = adapter.attention(sample())
    assert maps.shape == (3, 4, 4, 5)
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(3, 4))


def test_registers_take_the_attention_that_no_patch_gets() -> None:
    adapter = AttentiveClassifier(AttentiveConfig(heads=4, registers=2), 8, 3)
    with torch.no_grad():
        adapter.registers.copy_(100 * adapter.query.T[:2])  # they match the first two queries better than any patch
    maps = adapter.attention(sample())
    assert maps.shape == (3, 4, 4, 5)
    assert (maps[:, :2].sum((2, 3)) < 0.01).all()
    loss = adapter(sample()).square().sum()
    loss.backward()
    assert adapter.registers.grad is not None


@pytest.mark.parametrize(("requested", "width", "used"), [(8, 12, 6), (8, 7, 7), (3, 8, 2)])
def test_the_number_of_heads_is_reduced_until_it_divides_the_channels(requested: int, width: int, used: int) -> None:
    assert AttentiveClassifier(AttentiveConfig(heads=requested), width, 2).query.shape == (width, used)


def test_training_finds_the_only_informative_patch() -> None:
    torch.manual_seed(0)
    adapter = AttentiveClassifier(AttentiveConfig(heads=2, with_cls=False), 8, 2)
    patches, y, place = torch.randn(800, 8, 6, 6), torch.arange(800) % 2, torch.randint(0, 36, (800,))
    patches.flatten(2)[torch.arange(800), :, place] = 0.0
    patches.flatten(2)[torch.arange(800), 0, place] = 8.0  # the sign beside it is the class
    patches.flatten(2)[torch.arange(800), 1, place] = 16.0 * y - 8
    features = Features(torch.zeros(800, 8), patches.mean((2, 3)), patches)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.02)
    for _ in range(100):
        loss = nn.functional.cross_entropy(adapter(features), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weight = adapter.attention(features).flatten(2)[torch.arange(800), :, place].max(1).values
    assert weight.mean() > 5 / 36  # a mean over the patches gives it 1 / 36
