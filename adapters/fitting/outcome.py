"""What all fits share: their result, and what a bundle records of them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dinomed.adapters.fitting.config import TrainConfig
from dinomed.adapters.fitting.data import Splits
from dinomed.adapters.fitting.loop import Best
from dinomed.backbones.frozen import FrozenBackbone


@dataclass(frozen=True)
class FitResult:
    """What a fit gives: the bundle's folder, the epoch kept, metrics on val, the threshold of a segmenter, and what a
    head that is solved and not trained (epoch 0) chose on val."""

    folder: Path
    epoch: int
    validation: dict[str, Any]
    threshold: float | None = None
    chosen: dict[str, Any] = field(default_factory=dict)


def chunks(count: int, size: int) -> list[list[int]]:
    """
    >>> chunks(5, 2)
    [[0, 1], [2, 3], [4]]
    """
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


def training_record(config: TrainConfig, splits: Splits, best: Best, backbone: FrozenBackbone) -> dict[str, Any]:
    """What the bundle records of the fit: settings, and the data by counts and hashes, never by names."""
    return {
        "config": config.model_dump(mode="json"),
        "epoch": best.epoch,
        "device": str(backbone.device),
        "data": {
            "train": {"images": len(splits.train), "manifest": splits.train.fingerprint},
            "val": {"images": len(splits.val), "manifest": splits.val.fingerprint},
            "val_made_here": splits.made,
            "by_group": splits.train.has("group"),
        },
    }
