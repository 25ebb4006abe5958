"""Stochastic depth by slicing: number of kept images, scale, and unchanged other images."""

import pytest
import torch
from torch import Tensor

from dinomed.layers.block import Block
from dinomed.layers.stochastic_depth import add_residual, num_kept


@pytest.mark.parametrize(
    ("batch", "rate", "kept"), [(10, 0.3, 7), (2, 0.3, 1), (1, 0.9, 1), (3, 0.4, 1), (64, 0.4, 38), (5, 0.0, 5)]
)
def test_the_number_of_kept_images_is_rounded_down_and_never_zero(batch: int, rate: float, kept: int) -> None:
    assert num_kept(batch, rate) == kept


def block(drop_path: float) -> Block:
    torch.manual_seed(1)
    return Block(16, 2, feed_forward="mlp", hidden=32, layerscale=0.7, drop_path=drop_path)


def test_slicing_equals_masking_of_the_same_images() -> None:
    """The oracle computes the branch for all images, and multiplies the dropped ones by zero."""
    xs = [torch.randn(10, 5, 16), torch.randn(4, 3, 16)]
    layer = block(0.3)
    out = add_residual(xs, layer._attention, 0.3)
    for x, y, kept in zip(xs, out, (7, 2), strict=True):
        mask = (y != x).flatten(1).any(1)
        assert mask.sum() == kept
        full = layer._attention(x.flatten(0, 1), [tuple(x.shape[:2])]).view_as(x)
        expected = x + mask[:, None, None] * full * len(x) / kept
        assert torch.allclose(y, expected, atol=1e-5)  # float32 rounding, values of order 1


def test_the_expectation_equals_that_without_dropping() -> None:
    ones = torch.ones(10, 1, 1)

    def branch(x: Tensor, groups: object) -> Tensor:
        return x

    torch.manual_seed(0)
    trials = 4000
    mean = sum(add_residual([ones], branch, 0.3)[0] for _ in range(trials)) / trials
    # An image's residual is 10/7 with probability 7/10, else 0: variance 3/7. Five standard errors, ten images.
    assert (mean - 2).abs().max() < 5 * (3 / 7 / trials) ** 0.5


def test_rate_zero_and_eval_mode_are_exact() -> None:
    x = torch.randn(4, 3, 16)
    assert torch.equal(block(0.0)([x])[0], block(0.5).eval()([x])[0])
    assert not torch.equal(block(0.0)([x])[0], block(0.5).train()([x])[0])


def test_gradients_reach_only_the_kept_images() -> None:
    x = torch.randn(8, 3, 16, requires_grad=True)
    (out,) = add_residual([x], block(0.5)._feed_forward, 0.5)
    (out - x).square().sum().backward()
    assert x.grad is not None
    assert (x.grad.flatten(1).abs().sum(1) > 0).sum() == 4
