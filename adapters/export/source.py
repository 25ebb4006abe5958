"""What is to be exported: a backbone, or an adapter with its own."""

from copy import copy, deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinomed.adapters.bundle import WEIGHTS_FILE
from dinomed.adapters.export.graph import AdapterGraph, BackboneGraph
from dinomed.adapters.inference.loader import AnyPredictor, ClassifyPredictor, load_adapter
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.errors import UsageError
from dinomed.features.compute import compute_features


@dataclass(frozen=True)
class Source:
    """`predictor` is None for a backbone alone; `folder` is where an adapter was loaded from."""

    backbone: FrozenBackbone
    predictor: AnyPredictor | None = None
    folder: Path | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        return self.backbone.preprocessing

    @property
    def task(self) -> str:
        return "features" if self.predictor is None else self.predictor.task

    @property
    def title(self) -> str:
        """What an error calls it."""
        if self.predictor is None:
            return f"backbone {self.backbone.name}"
        return f"a {self.task} adapter with head {self.predictor.metadata['head'].get('name')}"

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the exported graph gives, by name."""
        return {"features": ("cls", "patches"), "depth": ("depth",)}.get(self.task, ("probabilities",))

    def graph(self, image_size: int | None) -> nn.Module:
        """The graph to be traced; `image_size` None: for any size."""
        if self.predictor is None:
            return BackboneGraph(self.backbone.vit, image_size).eval()
        return AdapterGraph(self.predictor, image_size).eval()

    @torch.inference_mode()
    def reference(self, pixels: Tensor) -> list[Tensor]:
        """What dinomed itself gives for preprocessed images, by its usual way."""
        if self.predictor is None:
            features = compute_features(self.backbone, pixels, (-1,), True)
            assert features.patches is not None
            return [features.cls, features.patches]
        if isinstance(self.predictor, ClassifyPredictor):
            return [torch.from_numpy(self.predictor.probability_rows(pixels))]
        size = (pixels.shape[-2], pixels.shape[-1])
        logits = self.predictor.logits(pixels)
        return [torch.stack([torch.from_numpy(self.predictor.resized(one[None], size)) for one in logits])]

    def doubled(self) -> "Source":
        """The same in float64, to see what float32 costs."""
        frozen = self.backbone
        backbone = FrozenBackbone(deepcopy(frozen.vit).double(), frozen.preprocessing, frozen.name)
        if self.predictor is None:
            return Source(backbone)
        predictor = copy(self.predictor)
        predictor.backbone, predictor.adapter = backbone, deepcopy(self.predictor.adapter).double()
        return Source(backbone, predictor)

    def describe(self) -> dict[str, Any]:
        """What goes into the exported files: no path, group or image name."""
        reading = self.preprocessing.model_dump(mode="json")
        found: dict[str, Any] = {
            "task": self.task,
            "backbone": {"name": self.backbone.name, "fingerprint": self.backbone.fingerprint},
            "architecture": self.backbone.vit.config.model_dump(mode="json"),
            "preprocessing": reading,
            "outputs": list(self.outputs),
        }
        if self.predictor is not None:
            record = self.predictor.metadata
            found |= {name: record[name] for name in ("head", "classes", "threshold", "usage", "validation")}
        return found


def load_source(
    path: str, *, weights: Path | None = None, backbone: str | None = None, image_size: int | None = None
) -> Source:
    """An adapter folder, or anything that `load_backbone` takes.

    Raises:
        UsageError: options that do not fit, or nothing is there.
        DinomedError: what is there is damaged.
    """
    if (Path(path) / WEIGHTS_FILE).is_file():
        if weights is not None or image_size is not None:
            raise UsageError(f"{path} is an adapter, made for its own backbone and image size; leave both out")
        predictor = load_adapter(path, "cpu", backbone)
        return Source(predictor.backbone, predictor, Path(path))
    if backbone is not None:
        raise UsageError(f"{path} is no adapter; --backbone is for an adapter whose backbone was moved")
    return Source(load_backbone(path, weights=weights, image_size=image_size))
