"""Resizing of the position embedding: the two rules of the released weights (defect 8 of the reference)."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dinomed.layers.patch_embedding import PatchEmbedding, resize_position_embedding


def cubic_matrix(side: int, size: int, step: float) -> NDArray[np.float64]:
    """(size, side): sampling `side` values at the centres of `size` cells that are `step` wide, with Keys' cubic kernel
    (a = -0.75, torch's choice) and repeated borders. Written out from the definition."""
    matrix = np.zeros((size, side))
    for i in range(size):
        centre = (i + 0.5) * step - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            t = abs(centre - tap)
            near = 1.25 * t**3 - 2.25 * t**2 + 1
            far = -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
            matrix[i, min(max(tap, 0), side - 1)] += near if t <= 1 else far
    return matrix


@pytest.mark.parametrize("size", [(16, 16), (16, 22), (40, 37)])
@pytest.mark.parametrize("offset", [0.1, 0.0])
def test_the_rule_without_registers_samples_at_the_offset_step(size: tuple[int, int], offset: float) -> None:
    """The official code gives the scale (n + 0.1) / side, so that a cell is side / (n + 0.1) wide and not side / n."""
    side, dim = 37, 3
    grid = torch.randn(1, side * side, dim, generator=torch.Generator().manual_seed(0))
    rows, columns = (cubic_matrix(side, n, side / (n + offset)) for n in size)
    image = grid.double().numpy().reshape(side, side, dim)
    expected = np.einsum("rh,hwc,kw->rkc", rows, image, columns).reshape(1, -1, dim)
    resized = resize_position_embedding(grid, size, antialias=False, offset=offset)
    assert np.abs(resized.numpy() - expected).max() < 1e-4  # float32 coordinates of up to 37, measured 1e-5


def test_the_three_rules_differ_and_the_original_size_is_unchanged() -> None:
    grid = torch.randn(1, 37 * 37, 4, generator=torch.Generator().manual_seed(0))
    rules = [(False, 0.1), (False, 0.0), (True, 0.0)]
    at_224 = [resize_position_embedding(grid, (16, 16), antialias=a, offset=o) for a, o in rules]
    assert (at_224[0] - at_224[1]).abs().max() > 0.01
    assert (at_224[1] - at_224[2]).abs().max() > 0.1
    for antialias, offset in rules:
        assert resize_position_embedding(grid, (37, 37), antialias=antialias, offset=offset) is grid


def test_antialias_keeps_a_constant_and_halving_averages() -> None:
    constant = torch.full((1, 64, 2), 3.0)
    assert torch.allclose(resize_position_embedding(constant, (5, 3)), torch.full((1, 15, 2), 3.0), atol=1e-5)
    checkerboard = torch.tensor([1.0, -1.0]).repeat(8, 4).reshape(1, 64, 1)
    assert resize_position_embedding(checkerboard, (4, 4), antialias=True).abs().mean() < 0.1


@pytest.mark.parametrize("size", [4, 5, 7, 12, 16, 23, 37, 40, 73])
def test_the_offset_never_changes_the_size(size: int) -> None:
    grid = torch.zeros(1, 37 * 37, 1)
    assert resize_position_embedding(grid, (size, 3), antialias=False, offset=0.1).shape == (1, size * 3, 1)


def test_images_of_wrong_shape_are_refused() -> None:
    embed = PatchEmbedding(14, in_channels=1, dim=8)
    assert embed(torch.zeros(2, 1, 28, 42)).shape == (2, 6, 8)
    with pytest.raises(ValueError, match="30x28 is not divisible by the patch size 14"):
        embed(torch.zeros(1, 1, 30, 28))
    with pytest.raises(ValueError, match="images have 3 channels, the backbone takes 1"):
        embed(torch.zeros(1, 3, 28, 28))
