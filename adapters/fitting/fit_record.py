"""Result of a fit, its record in the bundle, and the key by which an interrupted fit is resumed."""

import hashlib
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dinomed.adapters.fitting.config import TrainConfig
from dinomed.adapters.fitting.data import Splits
from dinomed.adapters.fitting.loop import BestEpoch
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.io.files import to_json


@dataclass(frozen=True)
class FitResult:
    """Result of a fit.

    Attributes:
        folder: of the bundle.
        epoch: that was kept; 0 for a head that is solved in closed form.
        validation: metrics on val.
        threshold: of a segmenter of one class.
        chosen: settings that a solved head chose on val.
    """

    folder: Path
    epoch: int
    validation: dict[str, Any]
    threshold: float | None = None
    chosen: dict[str, Any] = field(default_factory=dict)


def split_rows(count: int, size: int) -> list[list[int]]:
    """Return the rows 0 to `count` - 1 in batches of `size`.

    >>> split_rows(5, 2)
    [[0, 1], [2, 3], [4]]
    """
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


def fit_key(config: TrainConfig, splits: Splits, backbone: FrozenBackbone, targets: bytes = b"") -> str:
    """Return a hash of all inputs of a fit.

    These are the settings, the rows of train and val with all columns, `targets` (the digest of masks or depth maps),
    the backbone, the kind of device, and the versions of dinomed and torch.
    """
    device = backbone.device.type
    inputs = [config.model_dump(mode="json"), backbone.fingerprint, device, version("dinomed"), version("torch")]
    rows = [part.table.to_pydict() for part in (splits.train, splits.val)]
    return hashlib.sha256(to_json([inputs, rows]).encode() + targets).hexdigest()


def training_record(config: TrainConfig, splits: Splits, best: BestEpoch, backbone: FrozenBackbone) -> dict[str, Any]:
    """Return the entry ``training`` of a bundle's record: settings, and counts and hashes of the data (no names)."""
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
