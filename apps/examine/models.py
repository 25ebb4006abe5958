"""Examination of run folders, backbones, adapters and indexes, and of what they were made from."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dinomed.adapters.bundle import load_head, load_tuned, read_record, read_training_hashes
from dinomed.adapters.inference.ensemble.record import read_ensemble, read_members
from dinomed.adapters.inference.shared import Backbones
from dinomed.adapters.record import BackboneReference
from dinomed.adapters.reference import find_backbone
from dinomed.adapters.retrieval.index import read_index
from dinomed.apps.examine.datasets import add_images
from dinomed.apps.examine.report import ArtefactReport, read_mapping
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.config import parse_yaml
from dinomed.errors import DinomedError, MissingFileError
from dinomed.io.checkpoint import list_checkpoints, read_checkpoint
from dinomed.pretrain.curation.audit.training_index import read_training_index
from dinomed.pretrain.run_folder import (
    BACKBONE,
    BEST,
    CHECKPOINTS,
    CONFIG_FILE,
    LOG_FILE,
    RECORD_FILE,
    SEEN_FILE,
    UNTRAINED,
)


def examine_backbone(folder: Path) -> ArtefactReport:
    """Load a backbone, which verifies the hash of its weights."""
    report = ArtefactReport(str(folder), "backbone")
    _add_backbone(report, folder, folder.name, "copy it again, or load the last checkpoint of its run")
    return report


def _add_backbone(report: ArtefactReport, folder: Path, name: str, remedy: str) -> FrozenBackbone | None:
    backbone = report.check(
        name,
        lambda: load_backbone(folder),
        lambda read: f"weights match their hash; fingerprint {read.fingerprint}",
        remedy,
    )
    if backbone is not None:
        model = backbone.model  # of another library it has no `ViTConfig`
        described = (
            model.config.model_dump(mode="json") if isinstance(model, VisionTransformer) else model.architecture()
        )
        report.facts.setdefault("fingerprint", backbone.fingerprint)
        report.facts.setdefault("architecture", described)
    return backbone


def examine_run(folder: Path) -> ArtefactReport:
    """Check the settings, the record, the log, all checkpoints and all backbones of a run folder."""
    report = ArtefactReport(str(folder), "run")
    resume = "run the same command again with --resume"
    report.check(CONFIG_FILE, lambda: _read_settings(folder / CONFIG_FILE), "the settings of the run", resume)
    record = report.check(RECORD_FILE, lambda: read_mapping(folder / RECORD_FILE), "the record of the run", resume)
    if record is not None:
        data = record.get("data")
        report.facts.update(
            {name: record[name] for name in ("step", "versions", "device", "written", "processes") if name in record},
            data=data if isinstance(data, dict) else None,
        )
    report.check(LOG_FILE, lambda: _read_log(folder / LOG_FILE), lambda lines: f"{lines:,} lines", resume)
    checkpoints = list_checkpoints(folder / CHECKPOINTS)
    for checkpoint in checkpoints:
        report.check(
            f"{CHECKPOINTS}/{checkpoint.name}", lambda place=checkpoint: read_checkpoint(place),  # type: ignore[misc]
            "all files have the size and the checksum of the record",
            "remove this folder; --resume uses the checkpoint before it",
        )  # fmt: skip
    if not checkpoints:
        report.add(CHECKPOINTS, f"{folder} has no checkpoint yet", "incomplete", resume)
    elif not (folder / BACKBONE).is_dir():
        report.add(BACKBONE, f"{folder / BACKBONE} is missing", "missing", resume)
    for name in (BACKBONE, BEST, UNTRAINED):
        if (folder / name).is_dir():
            _add_backbone(report, folder / name, name, resume)
    if checkpoints:
        report.check(
            SEEN_FILE,
            lambda: read_training_index(folder),
            lambda index: f"hashes of {len(index):,} training images",
            resume,
        )
    return report


def _read_settings(path: Path) -> Any:
    if not path.is_file():
        raise MissingFileError(f"{path} is missing")
    return parse_yaml(path.read_text(encoding="utf-8", errors="replace"), str(path))


def _read_log(path: Path) -> int:
    """Return the number of lines. The last one may be cut off by a kill; a resume removes it."""
    if not path.is_file():
        raise MissingFileError(f"{path} is missing")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines[:-1], 1):
        try:
            json.loads(line)
        except ValueError:
            raise DinomedError(f"{path} is damaged: line {number} is no JSON") from None
    return len(lines)


def examine_adapter(folder: Path, load: Callable[..., FrozenBackbone] = load_backbone) -> ArtefactReport:
    """Load a head, the hashes of its training images, and the backbone to which its record refers."""
    report = ArtefactReport(str(folder), "adapter")
    again = "copy the folder again, or train again"
    record = report.check("record", lambda: read_record(folder), lambda read: f"format {read.format}", again)
    if record is None:
        return report
    report.facts.update(
        task=record.task, head=record.head.get("name"), classes=list(record.classes),
        versions=record.training.get("versions"), written=record.training.get("written"),
        backbone=record.backbone.name, backbone_fingerprint=record.backbone.fingerprint,
    )  # fmt: skip
    head = report.check(
        "head", lambda: load_head(folder, record), "weights match their hash, and have the shapes of the record", again
    )
    report.check("training images", lambda: read_training_hashes(folder, record), "hashes of train and val", again)
    backbone = _add_reference(report, folder, record.backbone, record.preprocessing, "adapter", "train again", load)
    if backbone is not None and head is not None and record.tuned is not None:
        report.check(
            "tuned backbone", lambda: load_tuned(folder, record, backbone), "has the fingerprint of the record", again
        )
    return report


def examine_ensemble(folder: Path) -> ArtefactReport:
    """Check the record of an ensemble, and each of its members as an adapter."""
    report = ArtefactReport(str(folder), "ensemble")
    again = "copy the whole folder again, or train again"
    record = report.check("record", lambda: read_ensemble(folder), lambda read: f"format {read.format}", again)
    if record is None:
        return report
    report.facts.update(task=record.adapter.task, classes=list(record.adapter.classes), members=len(record.members))
    report.check("members", lambda: read_members(folder, record), "are those of the record", again)
    shared = Backbones()
    for member in record.members:
        if (folder / member.folder).is_dir():
            for part in examine_adapter(folder / member.folder, shared).parts:
                report.parts.append(replace(part, name=f"{member.folder}: {part.name}"))
    return report


def _add_reference(
    report: ArtefactReport,
    folder: Path,
    reference: BackboneReference,
    preprocessing: Preprocessing,
    kind: str,
    remedy: str,
    load: Callable[..., FrozenBackbone] = load_backbone,
) -> FrozenBackbone | None:
    """Add the backbone to which a record refers; released weights are not downloaded."""
    if reference.path is None and reference.weights is None:
        report.add("backbone", f"released weights of {reference.name}; dinomed verifies them when they are loaded")
        return None
    return report.check(
        "backbone", lambda: find_backbone(folder, reference, preprocessing, load=load, kind=kind, remedy=remedy),
        f"{reference.name} is there and has the fingerprint of the record",
        "put it back at its place, or name it in each command with --backbone",
    )  # fmt: skip


def examine_index(folder: Path) -> ArtefactReport:
    """Read the vectors and the graph of an index, and check its backbone and its images."""
    report = ArtefactReport(str(folder), "index")
    again = "copy the folder again, or index again"
    index = report.check(
        "index", lambda: read_index(folder), lambda read: f"{len(read):,} vectors match their hash, all finite", again
    )
    if index is None:
        return report
    record = index.record
    report.facts.update(
        images=record.count, dimension=record.dimension, kind=record.kind, pool=record.pooling.tokens,
        written=record.written, manifest=record.manifest, backbone=record.backbone.name,
        backbone_fingerprint=record.backbone.fingerprint,
    )  # fmt: skip
    if index.manifest.fingerprint != record.manifest:
        report.add("manifest", "its rows are not those of the record", "changed", again)
    _add_reference(report, folder, record.backbone, record.preprocessing, "index", "index again")
    add_images(report, index.manifest, "index again, or put the images back; a search of vectors needs no images")
    return report
