"""Adapter bundles: a folder with `adapter.safetensors` and `adapter.json`. Nothing in it is pickled.

The JSON says all that is needed to use the adapter again: task, head, classes, threshold, preprocessing, and which
backbone (a path relative to the bundle, so that both move together, and its fingerprint). It holds no image names,
groups or other values of the manifest's rows. Beside it lie `adapter.yaml`, the settings, and `log.jsonl`.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import torch
from pydantic import Field, ValidationError

from dinomed.adapters.config import TrainConfig, adapter_class
from dinomed.adapters.contract import Adapter, Task
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.variants import VARIANTS
from dinomed.checkpoint import read_tensors, write_tensors
from dinomed.config import Config, build_config, to_yaml
from dinomed.errors import DinomedError, UsageError
from dinomed.files import locked, prepare_output, read_json, replacing, sha256_file, write_json, write_text

RECORD_FILE, WEIGHTS_FILE, CONFIG_FILE = "adapter.json", "adapter.safetensors", "adapter.yaml"
FORMAT: Final = "dinomed.adapter/1"
PURPOSE = "for research use only, not for diagnosis"
_PACKAGES = ("dinomed", "torch", "monai", "scikit-learn", "numpy")


class BackboneReference(Config):
    """Where the backbone is: `path` (a folder) or `weights` (a file, with `name`), relative to the bundle; with
    neither, the released weights of `name`."""

    name: str
    path: str | None = None
    weights: str | None = None
    fingerprint: str
    embed_dim: int


class AdapterRecord(Config):
    """The content of `adapter.json`. `threshold` is for segmenters. `validation` are metrics on the val images."""

    format: Literal["dinomed.adapter/1"] = FORMAT
    purpose: str = PURPOSE
    task: Task
    head: dict[str, Any]
    classes: tuple[str, ...] = Field(min_length=1)
    threshold: float | None = Field(None, gt=0, lt=1)
    backbone: BackboneReference
    preprocessing: Preprocessing
    validation: dict[str, Any]
    training: dict[str, Any]
    weights_sha256: str


@contextmanager
def open_output(folder: str | Path, config: TrainConfig, *, overwrite: bool) -> Iterator[Path]:
    """The output folder, checked, held against other processes, with the settings written into it.

    What a fit that never finished left is replaced without asking; an adapter stays until the new one is written.
    """
    folder = Path(folder)
    unfinished = (folder / CONFIG_FILE).exists() and not (folder / RECORD_FILE).exists()
    prepare_output(folder, overwrite=overwrite or unfinished, marker=CONFIG_FILE)
    with locked(folder):
        write_text(folder / CONFIG_FILE, to_yaml(config))
        yield folder


def save_bundle(
    folder: Path,
    adapter: Adapter,
    backbone: FrozenBackbone,
    *,
    classes: list[str],
    threshold: float | None = None,
    validation: dict[str, Any],
    training: dict[str, Any],
) -> AdapterRecord:
    """Write the adapter: first the weights, then the record with their checksum, each atomically."""
    with replacing(folder / WEIGHTS_FILE) as temporary:
        write_tensors(temporary, adapter.state_dict())
    record = AdapterRecord(
        task=adapter.task,
        head=adapter.config.model_dump(mode="json"),
        classes=tuple(classes),
        threshold=threshold,
        backbone=_reference(backbone, folder),
        preprocessing=backbone.preprocessing,
        validation=validation,
        training={
            **training,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        weights_sha256=sha256_file(folder / WEIGHTS_FILE),
    )
    write_json(folder / RECORD_FILE, record.model_dump(mode="json"))
    return record


def read_record(folder: str | Path) -> AdapterRecord:
    """The record of a bundle.

    Raises:
        UsageError: there is no bundle.
        DinomedError: its record is damaged or of another format.
    """
    path = Path(folder) / RECORD_FILE
    if not path.parent.is_dir():
        raise UsageError(f"adapter {folder} does not exist; make one: dinomed train classify|segment ... -o {folder}")
    if not path.is_file():
        unfinished = (path.parent / CONFIG_FILE).exists()
        raise UsageError(
            f"{folder} holds no adapter yet; its training did not finish, run it again"
            if unfinished
            else f"{folder} is no adapter (it holds no {RECORD_FILE}); give the output folder of dinomed train"
        )
    data = read_json(path)
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise DinomedError(f"{path}: format {found!r}, this version reads {FORMAT!r}")
    try:
        return AdapterRecord.model_validate(data)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise DinomedError(f"{path} is damaged: {where}: {error.errors()[0]['msg']}") from None


def load_head(folder: str | Path, record: AdapterRecord) -> Adapter:
    """The adapter with its weights, on the CPU, in eval mode.

    Raises:
        DinomedError: the weights are missing, damaged, or do not belong to the record.
    """
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file() or sha256_file(path) != record.weights_sha256:
        raise DinomedError(f"{path} is missing, cut off, or of another training than {RECORD_FILE}; train again")
    cls = adapter_class(record.task, str(record.head.get("name")))
    num_classes = len(record.classes)
    adapter = cls(build_config(cls.Config, record.head, str(folder)), record.backbone.embed_dim, num_classes)
    try:
        adapter.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        raise DinomedError(f"{path}: weights of another head ({str(error).splitlines()[-1].strip()})") from None
    return adapter.eval()


def find_backbone(
    folder: str | Path, record: AdapterRecord, given: str | Path | None = None, device: str | torch.device = "cpu"
) -> FrozenBackbone:
    """The backbone that the adapter was made on, or `given` in its place if it is the same one elsewhere.

    Raises:
        DinomedError: it is not there.
        UsageError: it is another one; both fingerprints are named.
    """
    reference, size = record.backbone, record.preprocessing.image_size
    place: Path | None
    if given is not None:
        name, place = (reference.name, Path(given)) if Path(given).is_file() else (str(given), None)
    else:
        relative = reference.path or reference.weights
        place = None if relative is None else Path(os.path.normpath(Path(folder) / relative))
        if place is not None and not place.exists():
            raise DinomedError(f"the backbone of adapter {folder} is not at {place}; say where: --backbone PATH")
        name, place = (str(place), None) if reference.path else (reference.name, place)
    found = load_backbone(name, weights=place, image_size=size, device=device)
    if found.fingerprint != reference.fingerprint:
        raise UsageError(
            f"adapter {folder} was made on backbone {reference.name} with fingerprint {reference.fingerprint[:16]}, "
            f"but {given or found.source or found.name} has {found.fingerprint[:16]}; "
            "give the one it was made on (--backbone PATH), or train again"
        )
    return found


def _reference(backbone: FrozenBackbone, folder: Path) -> BackboneReference:
    source = None if backbone.source is None else Path(backbone.source)
    relative = None if source is None else _relative(source, folder)
    is_file = source is not None and source.is_file()
    assert not is_file or backbone.name in VARIANTS
    return BackboneReference(
        name=backbone.name,
        path=None if is_file else relative,
        weights=relative if is_file else None,
        fingerprint=backbone.fingerprint,
        embed_dim=backbone.embed_dim,
    )


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive (Windows)
        return path.resolve().as_posix()
