"""Export to dinomed's own format: a backbone, or an adapter or an ensemble with its backbone inside the folder."""

from pathlib import Path
from typing import Any

from dinomed.adapters.bundle import HEADER, RECORD_FILE, WEIGHTS_FILE, read_record
from dinomed.adapters.export.parity import compare
from dinomed.adapters.export.source import ExportSource, load_source
from dinomed.adapters.inference.ensemble.record import (
    EnsembleRecord,
    read_ensemble,
    read_members,
    refer_to_members,
    write_ensemble,
)
from dinomed.adapters.record import AdapterRecord
from dinomed.adapters.reference import find_backbone
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone, save_backbone
from dinomed.backbones.vit import VisionTransformer
from dinomed.datasets.manifest import relative_root
from dinomed.errors import DinomedError
from dinomed.io.files import to_json, write_json
from dinomed.io.tensor_file import read_tensors, write_tensors

BACKBONE_FOLDER = "backbone"


def write_safetensors(source: ExportSource, folder: Path, backbone: str | None = None) -> dict[str, Any]:
    """Write a backbone that `load_backbone` reads, or an adapter or an ensemble with its backbone in a folder inside.

    Args:
        backbone: path of the backbone of an adapter, if it was moved.

    Returns:
        The result of `compare`, and the fingerprint.

    Raises:
        DinomedError: the files, when read again, have another fingerprint or other predictions.
    """
    if source.folder is None:
        frozen, place = source.backbone, folder
    else:
        place = folder / BACKBONE_FOLDER
        first = source.members[0] if source.members else read_record(source.folder)
        near = source.folder / read_ensemble(source.folder).members[0].folder if source.members else source.folder
        frozen = find_backbone(near, first.backbone, first.preprocessing, backbone)
        if source.members:
            _write_ensemble(source.folder, folder)
        else:
            _write_adapter(source.folder, first, folder, BACKBONE_FOLDER)
    written = _write_backbone(frozen, place)
    if written.fingerprint != frozen.fingerprint:
        raise DinomedError("the written backbone has another fingerprint; nothing is kept")
    exported = ExportSource(written) if source.folder is None else load_source(str(folder))
    side = source.preprocessing.image_size
    parity = compare(source, "dinomed", exported.reference, [(2, side, side)])
    return {**parity, "fingerprint": exported.backbone.fingerprint}


def _write_backbone(frozen: FrozenBackbone, place: Path) -> FrozenBackbone:
    """Write a backbone and load it again; a model of another library is written in the format of its family."""
    if isinstance(frozen.model, VisionTransformer):
        save_backbone(place, frozen.vit, frozen.preprocessing, {"name": frozen.name, **frozen.metadata})
        return load_backbone(place)
    place.mkdir(parents=True, exist_ok=True)
    frozen.model.write_folder(place, frozen.preprocessing)
    return load_backbone(place, image_size=frozen.preprocessing.image_size, aspect=frozen.preprocessing.aspect)


def _write_adapter(source: Path, record: AdapterRecord, folder: Path, backbone: str) -> None:
    """Write an adapter to `folder`, with the path of its backbone relative to it."""
    data = _moved(record, backbone).model_dump(mode="json")
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS_FILE, read_tensors(source / WEIGHTS_FILE), {HEADER: to_json(data)})
    write_json(folder / RECORD_FILE, data)


def _write_ensemble(source: Path, folder: Path) -> None:
    """Write the members of an ensemble, which refer to one backbone beside them, and its record."""
    ensemble = read_ensemble(source)
    names = [member.folder for member in ensemble.members]
    for name, record in zip(names, read_members(source, ensemble), strict=True):
        _write_adapter(source / name, record, folder / name, relative_root(folder / BACKBONE_FOLDER, folder / name))
    references, _ = refer_to_members(folder, names)
    write_ensemble(folder, EnsembleRecord(adapter=_moved(ensemble.adapter, BACKBONE_FOLDER), members=references))


def _moved(record: AdapterRecord, backbone: str) -> AdapterRecord:
    """Return the record with another path of the backbone, whose statistics are in its folder."""
    inside = record.backbone.model_copy(update={"path": backbone, "weights": None, "mean": None, "std": None})
    return record.model_copy(update={"backbone": inside})
