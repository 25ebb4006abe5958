"""Loading of adapter bundles as predictors."""

from collections.abc import Callable
from pathlib import Path

import torch

from dinomed.adapters.bundle import WEIGHTS_FILE, load_head, load_tuned, read_familiarity_check, read_record
from dinomed.adapters.predictor import Predictor
from dinomed.adapters.record import reading_record
from dinomed.adapters.reference import find_backbone
from dinomed.adapters.task import find_task
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.device import resolve_device
from dinomed.errors import DinomedError


def load_adapter(
    folder: str | Path,
    device: str | torch.device = "cpu",
    backbone: str | Path | None = None,
    *,
    load: Callable[..., FrozenBackbone] = load_backbone,
) -> Predictor:
    """Load an adapter with its backbone.

    Args:
        folder: output folder of ``dinomed train``.
        device: cpu, cuda, cuda:N, mps or auto.
        backbone: path of the backbone, if it was moved since.
        load: replacement of `load_backbone`, such as `dinomed.adapters.inference.shared.Backbones`.

    Returns:
        The predictor of the adapter's task: `ClassifyPredictor`, `SegmentPredictor`, `DepthPredictor`, or that of a
        plug-in.

    Raises:
        UsageError: no bundle is there, or the backbone is not the one on which the adapter was trained.
        DinomedError: the bundle is damaged, or its backbone is missing.
    """
    record = read_record(folder)
    adapter = load_head(folder, record)
    where = resolve_device(device) if isinstance(device, str) else device
    base = find_backbone(folder, record.backbone, record.preprocessing.image_size, backbone, where, load)
    if base.embed_dim != record.backbone.embed_dim or not all(
        -base.depth <= block < base.depth for block in adapter.feature_spec.blocks
    ):
        raise DinomedError(f"adapter {folder} is damaged: its head reads blocks that the backbone lacks; train again")
    tuned = load_tuned(folder, record, base)
    with reading_record(Path(folder) / WEIGHTS_FILE):
        predictor = find_task(record.task).predictor(record, adapter, tuned)
        predictor.check = read_familiarity_check(folder, record, predictor.backbone)
    return predictor
