"""Block-wise (or random) masks for the iBOT loss (BEiT, Bao et al. 2021), with DINOv2's distribution of ratios."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from dinomed.config import Config


class MaskConfig(Config):
    """Settings of the masks. By default half of the global views are masked, with ratios spread evenly over `ratio`."""

    probability: float = Field(0.5, ge=0, le=1, description="share of the global views that are masked")
    ratio: tuple[float, float] = Field((0.1, 0.5), description="lowest and highest share of masked patches in a view")
    shape: Literal["blocks", "random"] = Field(
        "blocks", description="blocks of patches, or single patches at random, whose number is exact"
    )
    min_patches: int = Field(4, ge=1, description="patches of the smallest block")
    aspect: tuple[float, float] = Field((0.3, 1 / 0.3), description="lowest and highest height / width of a block")

    @model_validator(mode="after")
    def _check_ranges(self) -> "MaskConfig":
        low, high = self.ratio
        if not 0 <= low <= high < 1:
            raise ValueError(f"ratio {low, high}: use 0 <= low <= high < 1; a view needs a patch without a mask")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"aspect {self.aspect}: use 0 < low <= high")
        return self


def sample_masks(
    num_views: int, grid: tuple[int, int], config: MaskConfig, seed: Sequence[int], rows: Sequence[int] | None = None
) -> np.ndarray:
    """Sample the masks (num_views, patches) of a batch, bool, True where masked.

    ``int(num_views * probability)`` views get a mask. The i-th of them draws its ratio from the i-th of as many equal
    bins of `config.ratio`, so every batch has light and heavy masks; then the ratios are shuffled over the views. The
    mask of a view depends on the seed and its row only, so each process computes the masks of its own views.

    Args:
        grid: rows and columns of patches of a view.
        rows: the views whose masks are returned; None for all.
    """
    patches = grid[0] * grid[1]
    rng = np.random.default_rng([*seed])
    num_masked = int(num_views * config.probability)
    num_patches = np.zeros(num_views, int)
    bounds = np.linspace(*config.ratio, num_masked + 1)
    num_patches[:num_masked] = (patches * rng.uniform(bounds[:-1], bounds[1:])).astype(int)
    rng.shuffle(num_patches)
    rows = range(num_views) if rows is None else rows
    masks = np.zeros((len(rows), patches), dtype=bool)
    for index, row in enumerate(rows):
        view_rng, count = np.random.default_rng([*seed, 1 + row]), int(num_patches[row])
        if config.shape == "random":
            masks[index, view_rng.permutation(patches)[:count]] = True
        else:
            masks[index] = block_mask(grid, count, config, view_rng).ravel()
    return masks


def block_mask(grid: tuple[int, int], max_patches: int, config: MaskConfig, rng: np.random.Generator) -> np.ndarray:
    """Sample a mask (rows, columns), bool, of overlapping rectangles that cover at most `max_patches` patches."""
    mask = np.zeros(grid, dtype=bool)
    count = 0
    while count < max_patches:
        added = _add_block(mask, max_patches - count, config, rng)
        if added == 0:
            break
        count += added
    return mask


def _add_block(mask: np.ndarray, max_added: int, config: MaskConfig, rng: np.random.Generator) -> int:
    """Mask a rectangle that adds 1 to `max_added` patches, and return their number; 0 if ten tries found none."""
    rows, columns = mask.shape
    log_aspect = np.log(config.aspect)
    for _ in range(10):
        # as in the reference, also where fewer than `min_patches` are left: a smaller block fills the rest
        area = rng.uniform(*sorted((config.min_patches, max_added)))
        aspect = math.exp(rng.uniform(*log_aspect))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < height < rows and 0 < width < columns):
            continue
        top, left = rng.integers(0, rows - height + 1), rng.integers(0, columns - width + 1)
        block = mask[top : top + height, left : left + width]
        added = height * width - int(block.sum())
        if 0 < added <= max_added:
            block[:] = True
            return added
    return 0
