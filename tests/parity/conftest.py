"""Random weights for parity tests: every parameter is random, so that a wrong mapping of names is always detected."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


def _randomize(model: nn.Module, seed: int = 0) -> None:
    """Matrices keep the scale of their input; scales (norms, LayerScale) lie in 0.5 to 1.5; the rest is 0.1 to 0.5.
    As initialised, LayerScale (1e-5) and zero biases and tokens would hide any mistake in a block."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        random = torch.randn(parameter.shape, generator=generator)
        if name.endswith(("token", "tokens", "pos_embed", "position_embeddings")):
            value = 0.5 * random
        elif parameter.ndim > 1:
            value = random / parameter[0].numel() ** 0.5
        elif name.endswith("bias"):
            value = 0.1 * random
        else:
            value = 0.5 + torch.rand(parameter.shape, generator=generator)
        parameter.data.copy_(value)


def _difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference. Tokens leave the final norm with scales of 0.5 to 1.5, so values are of order 1."""
    assert actual.shape == expected.shape
    assert 0.3 < expected.std() < 3, "the tokens are not of order 1: the tolerance means nothing"
    return (actual - expected).abs().max().item()


@pytest.fixture(scope="session")
def randomize() -> Callable[..., None]:
    return _randomize


@pytest.fixture(scope="session")
def difference() -> Callable[[Tensor, Tensor], float]:
    return _difference
