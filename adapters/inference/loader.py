"""Using adapters: `load_adapter` gives a predictor of images as arrays; folders are in `dinomed.adapters.folders`."""

from collections.abc import Callable
from pathlib import Path

import torch

from dinomed.adapters.bundle import load_head, load_tuned, read_record
from dinomed.adapters.inference.predictor import Predictor
from dinomed.adapters.reference import find_backbone
from dinomed.adapters.tasks.classify.predict import ClassifyPredictor
from dinomed.adapters.tasks.depth.predict import DepthPredictor
from dinomed.adapters.tasks.segment.predict import LesionSummary, SegmentPredictor, lesion_summary, resize_probability
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.device import resolve_device

__all__ = [
    "AnyPredictor",
    "ClassifyPredictor",
    "DepthPredictor",
    "LesionSummary",
    "Predictor",
    "SegmentPredictor",
    "lesion_summary",
    "load_adapter",
    "resize_probability",
]


AnyPredictor = SegmentPredictor | ClassifyPredictor | DepthPredictor
_KINDS: dict[str, type[AnyPredictor]] = {
    "classify": ClassifyPredictor,
    "segment": SegmentPredictor,
    "depth": DepthPredictor,
}


def load_adapter(
    folder: str | Path,
    device: str | torch.device = "cpu",
    backbone: str | Path | None = None,
    *,
    load: Callable[..., FrozenBackbone] = load_backbone,
) -> AnyPredictor:
    """The predictor of a bundle.

    Args:
        folder: what ``dinomed train`` wrote.
        device: cpu, cuda, cuda:N, mps or auto.
        backbone: where the backbone is, if it is no longer where the bundle says.
        load: another `load_backbone`, such as `dinomed.adapters.inference.shared.Backbones`.

    Raises:
        UsageError: no such bundle, or another backbone than it was made on.
        DinomedError: the bundle is damaged, or its backbone is missing.
    """
    record = read_record(folder)
    adapter = load_head(folder, record)
    where = resolve_device(device) if isinstance(device, str) else device
    found = find_backbone(folder, record.backbone, record.preprocessing.image_size, backbone, where, load)
    return _KINDS[record.task](record, adapter, load_tuned(folder, record, found))
