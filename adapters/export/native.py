"""Export to dinomed's own format: a backbone, or an adapter with its backbone inside the folder."""

from pathlib import Path
from typing import Any

from dinomed.adapters.bundle import HEADER, RECORD_FILE, WEIGHTS_FILE, read_record
from dinomed.adapters.export.parity import compare
from dinomed.adapters.export.source import ExportSource, load_source
from dinomed.adapters.reference import find_backbone
from dinomed.backbones.load import load_backbone, save_backbone
from dinomed.errors import DinomedError
from dinomed.io.files import to_json, write_json
from dinomed.io.tensor_file import read_tensors, write_tensors

BACKBONE_FOLDER = "backbone"


def write_safetensors(source: ExportSource, folder: Path, backbone: str | None = None) -> dict[str, Any]:
    """Write a backbone that `load_backbone` reads, or an adapter with its backbone in a folder inside.

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
        record = read_record(source.folder)
        frozen = find_backbone(source.folder, record.backbone, record.preprocessing, backbone)
        place = folder / BACKBONE_FOLDER
        inside = record.backbone.model_copy(
            update={"path": BACKBONE_FOLDER, "weights": None, "mean": None, "std": None}
        )
        data = record.model_copy(update={"backbone": inside}).model_dump(mode="json")
        write_tensors(folder / WEIGHTS_FILE, read_tensors(source.folder / WEIGHTS_FILE), {HEADER: to_json(data)})
        write_json(folder / RECORD_FILE, data)
    save_backbone(place, frozen.vit, frozen.preprocessing, {"name": frozen.name, **frozen.metadata})
    written = load_backbone(place)
    if written.fingerprint != frozen.fingerprint:
        raise DinomedError("the written backbone has another fingerprint; nothing is kept")
    exported = ExportSource(written) if source.folder is None else load_source(str(folder))
    side = source.preprocessing.image_size
    parity = compare(source, "dinomed", exported.reference, [(2, side, side)])
    return {**parity, "fingerprint": exported.backbone.fingerprint}
