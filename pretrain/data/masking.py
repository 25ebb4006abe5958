"""Block-wise masks for iBOT (BEiT, Bao et al. 2021), with DINOv2's distribution of ratios."""

import math
from collections.abc import Sequence

import numpy as np
from pydantic import Field, model_validator

from dinomed.config import Config


class MaskConfig(Config):
    """Half of the global views are masked, their ratios spread evenly over `ratio`."""

    probability: float = Field(0.5, ge=0, le=1, description="share of the global views that are masked")
    ratio: tuple[float, float] = Field((0.1, 0.5), description="share of the patches that is masked, low and high")
    min_patches: int = Field(4, ge=1, description="smallest block")
    aspect: tuple[float, float] = (0.3, 1 / 0.3)

    @model_validator(mode="after")
    def _ranges(self) -> "MaskConfig":
        low, high = self.ratio
        if not 0 <= low <= high < 1:
            raise ValueError(f"ratio {low, high}: expected 0 <= low <= high < 1 (not every patch can be masked)")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"aspect {self.aspect}: expected 0 < low <= high")
        return self


def sample_masks(
    num_views: int, grid: tuple[int, int], config: MaskConfig, seed: Sequence[int], rows: Sequence[int] | None = None
) -> np.ndarray:
    """bool (num_views, patches), True where masked; of the views in `rows` only, if given.

    ``int(num_views * probability)`` views get a mask; the i-th draws its ratio from the i-th of as many equal bins of
    `config.ratio`, so that every batch holds light and heavy masks. Which view gets which is shuffled. A view's mask
    depends on the seed and its row alone: each process of several makes only those of its own views.
    """
    patches = grid[0] * grid[1]
    rng = np.random.default_rng([*seed])
    num_masked = int(num_views * config.probability)
    wanted = np.zeros(num_views, int)
    bounds = np.linspace(*config.ratio, num_masked + 1)
    wanted[:num_masked] = (patches * rng.uniform(bounds[:-1], bounds[1:])).astype(int)
    rng.shuffle(wanted)
    chosen = range(num_views) if rows is None else rows
    masks = np.zeros((len(chosen), patches), dtype=bool)
    for index, row in enumerate(chosen):
        masks[index] = block_mask(grid, int(wanted[row]), config, np.random.default_rng([*seed, 1 + row])).ravel()
    return masks


def block_mask(grid: tuple[int, int], wanted: int, config: MaskConfig, rng: np.random.Generator) -> np.ndarray:
    """bool (rows, columns) with at most `wanted` True, made of overlapping rectangles of at least `min_patches`."""
    mask = np.zeros(grid, dtype=bool)
    count = 0
    while count < wanted:
        added = _add_block(mask, wanted - count, config, rng)
        if added == 0:
            break
        count += added
    return mask


def _add_block(mask: np.ndarray, room: int, config: MaskConfig, rng: np.random.Generator) -> int:
    """Mask one more rectangle that adds between 1 and `room` patches; 0 if ten tries found none."""
    rows, columns = mask.shape
    log_aspect = np.log(config.aspect)
    for _ in range(10):
        area = rng.uniform(config.min_patches, max(room, config.min_patches))
        aspect = math.exp(rng.uniform(*log_aspect))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < height < rows and 0 < width < columns):
            continue
        top, left = rng.integers(0, rows - height + 1), rng.integers(0, columns - width + 1)
        block = mask[top : top + height, left : left + width]
        added = height * width - int(block.sum())
        if 0 < added <= room:
            block[:] = True
            return added
    return 0
