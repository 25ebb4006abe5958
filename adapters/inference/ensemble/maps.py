"""Ensembles of dense adapters: the mean of the maps of all members, at the size of the image."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dinomed.adapters.inference.dense import DensePredictor
from dinomed.adapters.inference.ensemble.head import EnsembleHead
from dinomed.adapters.predictor import Predictor, Size
from dinomed.adapters.record import AdapterRecord
from dinomed.errors import UsageError
from dinomed.features.compute import Features


def stack_maps(logits: Sequence[Tensor]) -> Tensor:
    """Return the maps of the members one after the other along the classes, (B, members * classes, rows, columns)."""
    return torch.cat(list(logits), dim=1)


class EnsembleMaps(DensePredictor):
    """Averages the probabilities or depths of its members; comes before the predictor of a task among the bases.

    Each member makes its maps at the size of the image with its own mirror images, sizes, windows and fusion, as it
    does alone. Their mean is the last step.

    Args:
        record: record of the ensemble as an adapter.
        members: predictors of the task.
    """

    def __init__(self, record: AdapterRecord, members: Sequence[DensePredictor]) -> None:
        self.members = list(members)
        super().__init__(record, EnsembleHead(members, stack_maps), members[0].backbone)  # type: ignore[call-arg]
        different = next((member for member in members if member.views != self.views), None)
        if different is not None:
            raise UsageError(
                "the members of the ensemble predict with different mirror images, sizes or windows; train them with "
                "the same settings"
            )

    def activate(self, logits: Tensor) -> Tensor:
        """Return the maps of all members, (B, members * classes, H, W)."""
        parts = logits.chunk(len(self.members), dim=1)
        return torch.cat([member.activate(part) for member, part in zip(self.members, parts, strict=True)], dim=1)

    def outputs(self, adapter: nn.Module, features: Features, size: Size) -> Tensor:
        maps = super().outputs(adapter, features, size)
        return maps.unflatten(1, (len(self.members), -1)).mean(dim=1)

    def reference_outputs(self, pixels: Tensor) -> Tensor:
        maps = super().reference_outputs(pixels)
        return maps.unflatten(1, (len(self.members), -1)).mean(dim=1)

    def finish(self, maps: np.ndarray) -> np.ndarray:
        """Return the mean over the members: (members * classes, H, W) -> float32 (classes, H, W)."""
        return maps.reshape(len(self.members), -1, *maps.shape[1:]).mean(axis=0, dtype=np.float64).astype(np.float32)


def same_settings(members: Sequence[Predictor], name: str) -> None:
    """Raise a `UsageError` if an attribute of the predictors, such as the mask schema, differs between the members."""
    values = [getattr(member, name) for member in members]
    if any(value != values[0] for value in values):
        raise UsageError(f"the members of the ensemble have different settings ({name}); they cannot be averaged")
