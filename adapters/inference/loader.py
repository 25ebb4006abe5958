"""Loading of adapter bundles as predictors."""

from collections.abc import Callable
from pathlib import Path

import torch

from dinomed.adapters.bundle import (
    WEIGHTS_FILE,
    load_head,
    load_tuned,
    read_familiarity_check,
    read_record,
    read_training_hashes,
)
from dinomed.adapters.inference.ensemble.record import is_ensemble, read_ensemble, read_ensemble_hashes, read_members
from dinomed.adapters.inference.shared import Backbones
from dinomed.adapters.predictor import Predictor
from dinomed.adapters.record import AdapterRecord, reading_record
from dinomed.adapters.reference import find_backbone
from dinomed.adapters.task import find_task
from dinomed.adapters.training_images import TrainingHashes
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
        folder: output folder of ``dinomed train``; with ``--folds`` an ensemble, whose members share the pass of a
            frozen backbone.
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
    if is_ensemble(folder):
        return _load_ensemble(folder, device, backbone, load)
    record = read_record(folder)
    adapter = load_head(folder, record)
    where = resolve_device(device) if isinstance(device, str) else device
    base = find_backbone(folder, record.backbone, record.preprocessing, backbone, where, load)
    if base.embed_dim != record.backbone.embed_dim or not all(
        -base.depth <= block < base.depth for block in adapter.feature_spec.blocks
    ):
        raise DinomedError(f"adapter {folder} is damaged: its head reads blocks that the backbone lacks; train again")
    tuned = load_tuned(folder, record, base)
    with reading_record(Path(folder) / WEIGHTS_FILE):
        predictor = find_task(record.task).predictor(record, adapter, tuned)
        predictor.check = read_familiarity_check(folder, record, predictor.backbone)
    return predictor


def _load_ensemble(
    folder: str | Path, device: str | torch.device, backbone: str | Path | None, load: Callable[..., FrozenBackbone]
) -> Predictor:
    """Load an ensemble: its members share the weights of their backbone. Images are compared with the training images
    of the first member, which are those of all other folds."""
    record = read_ensemble(folder)
    read_members(folder, record)
    shared = Backbones() if load is load_backbone else load
    members = [load_adapter(Path(folder) / member.folder, device, backbone, load=shared) for member in record.members]
    predictor = find_task(record.adapter.task).build_ensemble(record.adapter, members)
    predictor.check = members[0].check
    return predictor


def read_adapter_record(folder: str | Path) -> AdapterRecord:
    """Read the record of an adapter, or of an ensemble as an adapter. Raise as `read_record` and `read_ensemble`."""
    return read_ensemble(folder).adapter if is_ensemble(folder) else read_record(folder)


def read_seen_hashes(folder: str | Path) -> TrainingHashes:
    """Read the hashes of the images of train and val of an adapter, or of all members of an ensemble.

    Raises:
        DinomedError: the adapter is damaged.
    """
    if is_ensemble(folder):
        return read_ensemble_hashes(folder, read_ensemble(folder))
    return read_training_hashes(folder, read_record(folder))
