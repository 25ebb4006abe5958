"""Random initialisation of layers."""

from collections.abc import Iterable

from torch import nn


def init_linear_layers(modules: Iterable[nn.Module]) -> None:
    """Draw the weights of the linear layers among modules from a truncated normal (standard deviation 0.02), as in the
    reference code of DINOv2; their biases become 0."""
    for module in modules:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
