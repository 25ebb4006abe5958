"""The DINOv2 paper's grid of linear heads (appendix B.3), all of them trained at once in a few matrix products.

13 learning rates, the class tokens of the last block or of the last four, with the last block's mean patch token beside
them or without: 52 heads. Each is trained by SGD with momentum 0.9 and a cosine schedule on the same batches; the best
on val is kept. In the reference code every head is a module of its own. Here the heads of one input are the rows of one
matrix: their logits are one product, their gradients another, and the four inputs are slices of one array.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import cos, pi
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dinomed.adapters.adapter import ADAPTERS, HeadConfig
from dinomed.adapters.heads.linear import LinearClassifier, LinearClassifierConfig
from dinomed.adapters.heads.solve import CHOSEN_BY, Examples, Solution, SolvedClassifier, auroc_of_logits, best_of
from dinomed.errors import DinomedError
from dinomed.features.compute import Features
from dinomed.progress import bar

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
MOMENTUM = 0.9


class GridConfig(HeadConfig):
    """`learning_rates` are for batches of 256 and grow with the batch, as in the paper, which takes 12,500 steps of
    1,024 images. `standardise`: by the training set's mean and deviation, which the paper does not."""

    name: str = "grid"
    blocks: tuple[int, ...] = Field((-4, -3, -2, -1), min_length=1)
    learning_rates: tuple[float, ...] = Field(LEARNING_RATES, min_length=1)
    steps: int = Field(2500, ge=1)
    batch_size: int = Field(256, ge=1)
    standardise: bool = False


@dataclass
class Stack:
    """The heads of one input: `columns` of the features, `weight` (K, heads, width) and `bias` (K, heads).

    Classes come first so that a softmax runs over long rows: over the last dimension, of 7 classes, it took as long as
    the products.
    """

    blocks: int
    pooled: bool
    columns: slice
    weight: Tensor
    bias: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """(B, all columns) -> (K, heads, B)."""
        weight, bias = self.weight.flatten(0, 1), self.bias.flatten()[:, None]
        return torch.addmm(bias, weight, x[:, self.columns].T).unflatten(0, self.bias.shape)


@ADAPTERS.register("classify.grid")
class GridClassifier(SolvedClassifier):
    """Solves for the grid; what it leaves is a plain `LinearClassifier`."""

    Config = GridConfig

    def solve(self, train: Examples, val: Examples, weight: np.ndarray | None, seed: int) -> Solution:
        config: GridConfig = self.config
        x, queries = (self._inputs(part) for part in (train, val))
        shift, scale = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
        if config.standardise:
            shift, scale = x.mean(0), 1 / x.std(0, correction=0).clamp_min(1e-6)
            x, queries = (x - shift) * scale, (queries - shift) * scale
        stacks = build_stacks(self.embed_dim, len(config.blocks), len(config.learning_rates), self.num_classes, seed)
        train_stacks(stacks, x, torch.from_numpy(train.targets), weight, config, seed)
        rows: list[tuple[Stack, int]] = []
        scores: list[float] = []
        for stack in stacks:
            logits = stack.logits(queries)
            for index in range(len(config.learning_rates)):
                own = logits[:, index].T
                rows.append((stack, index))
                scores.append(auroc_of_logits(val.targets, own.numpy()) if own.isfinite().all() else float("nan"))
        place, (stack, index) = best_of(rows, scores)
        chosen = {"blocks": stack.blocks, "mean_patch": stack.pooled, "learning_rate": config.learning_rates[index]}
        if not stack.weight[:, index].isfinite().all():
            raise DinomedError("every head of the grid diverged; give smaller head.learning_rates")
        tried = [
            {"blocks": s.blocks, "mean_patch": s.pooled, "learning_rate": config.learning_rates[i], "score": score}
            for (s, i), score in zip(rows, scores, strict=True)
        ]
        note = {**chosen, "chosen_by": CHOSEN_BY, "score": scores[place], "heads": len(rows), "tried": tried}
        return Solution(self._plain(stack, index, shift, scale), note)

    def forward(self, features: Features) -> Tensor:
        raise AssertionError("a grid is solved; what it leaves is a linear classifier")

    def _inputs(self, part: Examples) -> Tensor:
        """Class tokens of all blocks, then the last block's mean patch token: float32 (N, (blocks + 1) * C)."""
        return torch.from_numpy(np.concatenate([part.cls, part.mean[:, -self.embed_dim :]], axis=1))

    def _plain(self, stack: Stack, index: int, shift: Tensor, scale: Tensor) -> LinearClassifier:
        """The head as a linear classifier. Mean patch tokens of blocks before the last, which it would pool too, get
        weights of 0."""
        blocks = tuple(self.config.blocks[-stack.blocks :])
        config = LinearClassifierConfig(blocks=blocks, tokens="cls+mean" if stack.pooled else "cls")
        plain = LinearClassifier(config, self.embed_dim, self.num_classes)
        width = stack.weight.shape[2]
        own = torch.arange(width)
        if stack.pooled:
            own[-self.embed_dim :] += (stack.blocks - 1) * self.embed_dim
        with torch.no_grad():
            plain.linear.weight.zero_()
            plain.linear.weight[:, own] = stack.weight[:, index]
            plain.linear.bias.copy_(stack.bias[:, index])
            plain.shift[own] = shift[stack.columns]
            plain.scale[own] = scale[stack.columns]
        return plain


def build_stacks(embed_dim: int, blocks: int, heads: int, num_classes: int, seed: int) -> list[Stack]:
    """Fresh heads (normal weights of deviation 0.01, as in the reference code) for each input of the grid."""
    generator = torch.Generator().manual_seed(seed)
    stacks = []
    for count in sorted({1, blocks}):
        for pooled in (False, True):
            columns = slice((blocks - count) * embed_dim, (blocks + pooled) * embed_dim)
            shape = (num_classes, heads, columns.stop - columns.start)
            weight = torch.randn(shape, generator=generator) * 0.01
            stacks.append(Stack(count, pooled, columns, weight, torch.zeros(num_classes, heads)))
    return stacks


def train_stacks(
    stacks: list[Stack], x: Tensor, targets: Tensor, weight: np.ndarray | None, config: GridConfig, seed: int
) -> None:
    """Train all heads in place, each exactly as it would be alone on these batches.

    Args:
        x: float32 (N, columns). targets: int (N,), or float (N, K) of 0, 1 and nan.
        weight: float (K,), what an example of each class counts.
    """
    num_classes, heads = stacks[0].bias.shape
    rates = torch.tensor(config.learning_rates) * min(config.batch_size, len(x)) / 256
    gradient = _sigmoid_gradient if targets.ndim == 2 else _softmax_gradient
    expected = targets.float() if targets.ndim == 2 else torch.eye(num_classes)[targets]
    counts = torch.ones(len(x)) if weight is None or targets.ndim == 2 else torch.from_numpy(weight).float()[targets]
    moving = [(torch.zeros_like(stack.weight), torch.zeros_like(stack.bias)) for stack in stacks]
    batch = x.new_empty(min(config.batch_size, len(x)), x.shape[1])  # one for all steps: new pages cost as much again
    with bar(f"{heads * len(stacks)} linear heads", config.steps) as progress:
        for step, rows in enumerate(_batches(len(x), config, seed)):
            torch.index_select(x, 0, rows, out=batch)
            y, count = expected[rows].T[:, None], counts[rows]
            now = rates * (0.5 * (1 + cos(pi * step / config.steps)))
            for stack, (weight_m, bias_m) in zip(stacks, moving, strict=True):
                slope = gradient(stack.logits(batch), y, count)
                flat = weight_m.flatten(0, 1)
                torch.addmm(flat, slope.flatten(0, 1), batch[:, stack.columns], beta=MOMENTUM, out=flat)
                torch.add(slope.sum(2), bias_m, alpha=MOMENTUM, out=bias_m)
                stack.weight.addcmul_(weight_m, now[:, None], value=-1)
                stack.bias.addcmul_(bias_m, now, value=-1)
            progress.advance()


def _softmax_gradient(logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """Of the mean cross-entropy by the logits (K, heads, B); targets (K, 1, B), counts (B,)."""
    return logits.softmax(0).sub_(targets).mul_(counts / counts.sum())


def _sigmoid_gradient(logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """Of the mean binary cross-entropy over the labels that are known."""
    known = ~targets.isnan()
    return logits.sigmoid_().sub_(targets.nan_to_num()).mul_(known / known.sum().clamp_min(1))


def _batches(count: int, config: GridConfig, seed: int) -> Iterator[Any]:
    """`steps` batches out of shuffled passes; a smaller rest begins the next pass."""
    generator = torch.Generator().manual_seed(seed)
    size, waiting = min(config.batch_size, count), torch.zeros(0, dtype=torch.int64)
    for _ in range(config.steps):
        if len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(count, generator=generator)])
        yield waiting[:size]
        waiting = waiting[size:]
