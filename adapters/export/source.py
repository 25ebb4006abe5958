"""Source of an export: a backbone, or an adapter with its backbone."""

from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinomed.adapters.bundle import WEIGHTS_FILE
from dinomed.adapters.export.graph import AdapterGraph, BackboneGraph
from dinomed.adapters.inference.ensemble.record import is_ensemble, read_ensemble, read_members
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.predictor import Predictor
from dinomed.adapters.record import AdapterRecord
from dinomed.adapters.task import find_task
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.errors import UsageError
from dinomed.features.compute import compute_features

_DESCRIBED = ("head", "classes", "threshold", "usage", "validation")
_OF_EACH_MEMBER = ("abstention", "cross")
"""Entries of the usage of an ensemble that need the predictions of each member; a graph returns only their mean."""


@dataclass(frozen=True)
class ExportSource:
    """A backbone, an adapter or an ensemble to export.

    Attributes:
        backbone: the backbone; of an ensemble that of its first member.
        predictor: the adapter or the ensemble; None for a backbone.
        folder: folder of the adapter or the ensemble; None for a backbone.
        members: records of the members of an ensemble.
        logits: the output of a dense adapter is that of its head, not yet resized, activated and decided.
    """

    backbone: FrozenBackbone
    predictor: Predictor | None = None
    folder: Path | None = None
    members: tuple[AdapterRecord, ...] = ()
    logits: bool = False

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of the images."""
        return self.backbone.preprocessing

    @property
    def task(self) -> str:
        """Task of the adapter; ``features`` for a backbone."""
        return "features" if self.predictor is None else self.predictor.task

    @property
    def title(self) -> str:
        """Name for messages."""
        if self.predictor is None:
            return f"backbone {self.backbone.name}"
        if self.members:
            return f"an ensemble of {len(self.members)} adapters (task {self.task}, heads {self.heads})"
        return f"a {self.task} adapter with head {self.heads}"

    @property
    def heads(self) -> str:
        """Name of the head; of an ensemble the names of the different heads of its members."""
        assert self.predictor is not None
        if not self.members:
            return str(self.predictor.metadata["head"].get("name"))
        return ", ".join(sorted({str(record.head.get("name")) for record in self.members}))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs of the exported graph."""
        return ("cls", "patches") if self.predictor is None else find_task(self.task).output_names

    def graph(self, image_size: int | None) -> nn.Module:
        """Return the module to trace, for one image size (px) or for any (None)."""
        if self.predictor is None:
            return BackboneGraph(self.backbone.model, image_size).eval()
        return AdapterGraph(self.predictor, image_size, self.logits).eval()

    @torch.inference_mode()
    def reference(self, pixels: Tensor) -> list[Tensor]:
        """Return the outputs of dinomed for preprocessed images, for comparison."""
        if self.predictor is None:
            features = compute_features(self.backbone, pixels, (-1,), True)
            assert features.patches is not None
            return [features.cls, features.patches]
        return [self.predictor.logits(pixels) if self.logits else self.predictor.reference_outputs(pixels)]

    def doubled(self) -> "ExportSource":
        """Return the source in float64, to measure the rounding error of float32."""
        frozen = self.backbone
        backbone = FrozenBackbone(deepcopy(frozen.model).double(), frozen.preprocessing, frozen.name)
        if self.predictor is None:
            return ExportSource(backbone)
        predictor = copy(self.predictor)
        predictor.backbone, predictor.adapter = backbone, deepcopy(self.predictor.adapter).double()
        return ExportSource(backbone, predictor, logits=self.logits)

    def describe(self) -> dict[str, Any]:
        """Return the description that is written to the exported files; it has no path, group or image name."""
        reading, model = self.preprocessing.model_dump(mode="json"), self.backbone.model
        description: dict[str, Any] = {
            "task": self.task,
            "backbone": {"name": self.backbone.name, "fingerprint": self.backbone.fingerprint},
            "architecture": model.config.model_dump(mode="json")
            if isinstance(model, VisionTransformer)
            else model.architecture(),
            "preprocessing": reading,
            "outputs": list(self.outputs),
        }
        if self.predictor is not None:
            record = self.predictor.metadata
            description |= {name: record[name] for name in _DESCRIBED}
        if self.members:
            usage = description["usage"]
            description["usage"] = {name: usage[name] for name in usage if name not in _OF_EACH_MEMBER}
            description["members"] = [
                {
                    **member.model_dump(mode="json", include=set(_DESCRIBED) - {"classes"}),
                    "backbone": (member.tuned or member.backbone).fingerprint,
                }
                for member in self.members
            ]
        return description


def load_source(
    path: str,
    *,
    weights: Path | None = None,
    backbone: str | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ExportSource:
    """Load the source of an export: an adapter, an ensemble, or anything that `load_backbone` accepts.

    Args:
        weights: weights file of a backbone.
        backbone: path of the backbone of an adapter, if it was moved.
        image_size: of a backbone, px.
        mean: of a backbone whose files name none, for each channel.
        std: as `mean`.

    Raises:
        UsageError: an option does not fit the source, or the source does not exist.
        DinomedError: the source is damaged.
    """
    averages = is_ensemble(path)
    if averages or (Path(path) / WEIGHTS_FILE).is_file():
        if any(value is not None for value in (weights, image_size, mean, std)):
            raise UsageError(
                f"{path} is {'an ensemble' if averages else 'an adapter'} with a fixed backbone and image size; leave "
                "`weights`, `image_size`, `mean` and `std` out"
            )
        predictor = load_adapter(path, "cpu", backbone)
        members = tuple(read_members(path, read_ensemble(path))) if averages else ()
        return ExportSource(predictor.backbone, predictor, Path(path), members)
    if backbone is not None:
        raise UsageError(f"{path} is not an adapter; `backbone` is for an adapter whose backbone was moved")
    return ExportSource(load_backbone(path, weights=weights, image_size=image_size, mean=mean, std=std))
