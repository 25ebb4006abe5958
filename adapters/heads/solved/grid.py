"""Grid of linear heads of the DINOv2 paper (appendix B.3), trained together by a few matrix products.

The grid has 52 heads: 13 learning rates, class tokens of the last block or of the last four, with or without the mean
patch token of the last block. Each head is trained by SGD with momentum 0.9 and a cosine schedule on the same batches;
the best head on val is kept. In the reference code every head is a module. Here all heads of one input are rows of one
matrix: one product computes their logits, another one their gradients, and the four inputs are slices of one array.
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
from dinomed.adapters.heads.solved.solve import (
    CHOSEN_BY,
    Examples,
    Solution,
    SolvedClassifier,
    auroc_of_logits,
    best_of,
)
from dinomed.errors import DinomedError
from dinomed.features.compute import Features
from dinomed.progress import bar

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
MOMENTUM = 0.9


class GridConfig(HeadConfig):
    """Settings of the grid.

    `learning_rates` are for batches of 256 and are scaled with the batch size, as in the paper (12,500 steps of 1,024
    images). `standardise` uses mean and standard deviation of the training set; the paper does not.
    """

    name: str = "grid"
    blocks: tuple[int, ...] = Field(
        (-4, -3, -2, -1),
        min_length=1,
        description="blocks whose tokens the probes read, the last one alone or all; -1 is the last",
    )
    learning_rates: tuple[float, ...] = Field(
        LEARNING_RATES,
        min_length=1,
        description="learning rates of the probes, for batches of 256; scaled with the batch size",
    )
    steps: int = Field(2500, ge=1, description="steps of all probes")
    batch_size: int = Field(256, ge=1, description="training images per step")
    standardise: bool = Field(
        False, description="scale features by mean and standard deviation of the training set; the paper does not"
    )


@dataclass
class Stack:
    """Heads of one input: `columns` of the features, `weight` (K, heads, width) and `bias` (K, heads).

    Classes are the first dimension so that the softmax runs over long rows: over a last dimension of 7 classes it took
    as long as the products.
    """

    blocks: int
    pooled: bool
    columns: slice
    weight: Tensor
    bias: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """Compute logits (K, heads, B) of features (B, all columns)."""
        weight, bias = self.weight.flatten(0, 1), self.bias.flatten()[:, None]
        return torch.addmm(bias, weight, x[:, self.columns].T).unflatten(0, self.bias.shape)


@ADAPTERS.register("classify.grid")
class GridClassifier(SolvedClassifier):
    """Trains the grid of heads; the result is a plain `LinearClassifier`."""

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
                head_logits = logits[:, index].T
                rows.append((stack, index))
                finite = bool(head_logits.isfinite().all())
                scores.append(auroc_of_logits(val.targets, head_logits.numpy()) if finite else float("nan"))
        place, (stack, index) = best_of(rows, scores)
        chosen = {"blocks": stack.blocks, "mean_patch": stack.pooled, "learning_rate": config.learning_rates[index]}
        if not stack.weight[:, index].isfinite().all():
            raise DinomedError("every head of the grid diverged; set smaller head.learning_rates")
        tried = [
            {"blocks": s.blocks, "mean_patch": s.pooled, "learning_rate": config.learning_rates[i], "score": score}
            for (s, i), score in zip(rows, scores, strict=True)
        ]
        note = {**chosen, "chosen_by": CHOSEN_BY, "score": scores[place], "heads": len(rows), "tried": tried}
        return Solution(self._to_linear(stack, index, shift, scale), note)

    def forward(self, features: Features) -> Tensor:
        raise AssertionError("a grid is solved; its result is a linear classifier")

    def _inputs(self, part: Examples) -> Tensor:
        """Return class tokens of all blocks and the mean patch token of the last block, float32 (N, (blocks + 1) *
        C)."""
        return torch.from_numpy(np.concatenate([part.cls, part.mean[:, -self.embed_dim :]], axis=1))

    def _to_linear(self, stack: Stack, index: int, shift: Tensor, scale: Tensor) -> LinearClassifier:
        """Return a head as a linear classifier; mean patch tokens of blocks before the last get weights of 0."""
        blocks = tuple(self.config.blocks[-stack.blocks :])
        config = LinearClassifierConfig(blocks=blocks, tokens="cls+mean" if stack.pooled else "cls")
        plain = LinearClassifier(config, self.embed_dim, self.num_classes)
        width = stack.weight.shape[2]
        used = torch.arange(width)
        if stack.pooled:
            used[-self.embed_dim :] += (stack.blocks - 1) * self.embed_dim
        with torch.no_grad():
            plain.linear.weight.zero_()
            plain.linear.weight[:, used] = stack.weight[:, index]
            plain.linear.bias.copy_(stack.bias[:, index])
            plain.shift[used] = shift[stack.columns]
            plain.scale[used] = scale[stack.columns]
        return plain


def build_stacks(embed_dim: int, blocks: int, heads: int, num_classes: int, seed: int) -> list[Stack]:
    """Initialise heads for each input of the grid (normal weights with deviation 0.01, as in the reference code)."""
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
    """Train all heads in place; each head is trained as it would be alone on these batches.

    Args:
        x: features, float32 (N, columns).
        targets: int (N,), or float (N, K) of 0, 1 and nan (unknown).
        weight: weight of the examples of each class, float (K,).
    """
    num_classes, heads = stacks[0].bias.shape
    rates = torch.tensor(config.learning_rates) * min(config.batch_size, len(x)) / 256
    expected = targets.float() if targets.ndim == 2 else torch.eye(num_classes)[targets]
    counts = None  # of labels that may occur together; else the weight of each example
    if targets.ndim == 1:
        counts = torch.ones(len(x)) if weight is None else torch.from_numpy(weight).float()[targets]
    momenta = [(torch.zeros_like(stack.weight), torch.zeros_like(stack.bias)) for stack in stacks]
    batch = x.new_empty(min(config.batch_size, len(x)), x.shape[1])  # reused: new memory pages would double the cost
    with bar(f"{heads * len(stacks)} linear heads", config.steps) as progress:
        for step, rows in enumerate(_batches(len(x), config, seed)):
            torch.index_select(x, 0, rows, out=batch)
            y, count = expected[rows].T[:, None], None if counts is None else counts[rows]
            step_rates = rates * (0.5 * (1 + cos(pi * step / config.steps)))
            for stack, (weight_momentum, bias_momentum) in zip(stacks, momenta, strict=True):
                logits = stack.logits(batch)
                slope = _sigmoid_gradient(logits, y) if count is None else _softmax_gradient(logits, y, count)
                flat = weight_momentum.flatten(0, 1)
                torch.addmm(flat, slope.flatten(0, 1), batch[:, stack.columns], beta=MOMENTUM, out=flat)
                torch.add(slope.sum(2), bias_momentum, alpha=MOMENTUM, out=bias_momentum)
                stack.weight.addcmul_(weight_momentum, step_rates[:, None], value=-1)
                stack.bias.addcmul_(bias_momentum, step_rates, value=-1)
            progress.advance()


def _softmax_gradient(logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """Return the gradient of the mean cross-entropy for logits (K, heads, B), targets (K, 1, B) and weights (B,)."""
    return logits.softmax(0).sub_(targets).mul_(counts / counts.sum())


def _sigmoid_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient of the mean binary cross-entropy over known labels."""
    known = ~targets.isnan()
    return logits.sigmoid_().sub_(targets.nan_to_num()).mul_(known / known.sum().clamp_min(1))


def _batches(count: int, config: GridConfig, seed: int) -> Iterator[Any]:
    """Yield `steps` batches from shuffled passes; the remainder of a pass starts the next batch."""
    generator = torch.Generator().manual_seed(seed)
    size, remaining = min(config.batch_size, count), torch.zeros(0, dtype=torch.int64)
    for _ in range(config.steps):
        if len(remaining) < size:
            remaining = torch.cat([remaining, torch.randperm(count, generator=generator)])
        yield remaining[:size]
        remaining = remaining[size:]
