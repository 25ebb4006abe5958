"""Speed of the grid of 52 linear heads: stacked (`dinomed.adapters.heads.solved.grid`) compared with separate heads.

    python benchmarks/features/probe_grid.py [--rounds 5] [--steps 100] [--images 2000] [--dim 384] [--classes 7]
        [--json]

Separate heads are trained as in the DINOv2 code: a module for each, on the same batch, with summed losses, one SGD
(momentum 0.9) with a parameter group for each, and a cosine schedule. Both start from the same weights, and take the
same steps on the same batches of random features in memory; the largest difference between their final weights is
printed. Rounds alternate. One thread; seconds are processor seconds, since the machine may be shared.
"""

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dinomed.adapters.heads.solved.grid import GridConfig, Stack, _batches, build_stacks, train_stacks
from dinomed.log import set_level


def train_separately(
    stacks: list[Stack], x: torch.Tensor, targets: torch.Tensor, config: GridConfig
) -> list[nn.Linear]:
    """Build a module for each head from the weights in `stacks`."""
    num_classes = len(stacks[0].bias)
    heads, columns, groups = [], [], []
    for stack in stacks:
        for index, rate in enumerate(config.learning_rates):
            head = nn.Linear(stack.weight.shape[2], num_classes)
            with torch.no_grad():
                head.weight.copy_(stack.weight[:, index])
                head.bias.copy_(stack.bias[:, index])
            heads.append(head)
            columns.append(stack.columns)
            groups.append({"params": head.parameters(), "lr": rate * config.batch_size / 256})
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps, eta_min=0)
    for rows in _batches(len(x), config, 0):
        batch, y = x[rows], targets[rows]
        losses = [
            cross_entropy(head(batch[:, block_columns]), y) for head, block_columns in zip(heads, columns, strict=True)
        ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        schedule.step()
    return heads


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    set_level("warning")
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(arguments.images, 5 * arguments.dim)).astype(np.float32))
    targets = torch.from_numpy(rng.integers(0, arguments.classes, arguments.images))
    config = GridConfig(steps=arguments.steps, batch_size=arguments.batch)
    seconds: dict[str, list[float]] = {"stacked": [], "separate": []}
    difference = 0.0
    for turn in range(arguments.rounds + 1):  # the first round is not measured
        stacks = build_stacks(arguments.dim, 4, len(config.learning_rates), arguments.classes, 0)
        heads: list[nn.Linear] = []
        start = [Stack(s.blocks, s.pooled, s.columns, s.weight.clone(), s.bias.clone()) for s in stacks]
        for who in ("stacked", "separate") if turn % 2 else ("separate", "stacked"):
            began = time.process_time()
            if who == "stacked":
                train_stacks(stacks, x, targets, None, config, 0)
            else:
                heads = train_separately(start, x, targets, config)
            if turn:
                seconds[who].append(time.process_time() - began)
        ours = [stack.weight[:, index] for stack in stacks for index in range(len(config.learning_rates))]
        gaps = [(head.weight.detach() - weight).abs().max() for head, weight in zip(heads, ours, strict=True)]
        difference = max(difference, float(torch.stack(gaps).max()))
    ratios = [slow / fast for slow, fast in zip(seconds["separate"], seconds["stacked"], strict=True)]
    return {
        "settings": vars(arguments),
        "seconds": {who: statistics.median(values) for who, values in seconds.items()},
        "times_faster": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "largest_difference_of_weights": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rounds", 5), ("steps", 100), ("images", 2000), ("dim", 384), ("classes", 7), ("batch", 256)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    report = compare(parser.parse_args())
    print(json.dumps(report) if report["settings"]["json"] else json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
