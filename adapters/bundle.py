"""Adapter bundles: folders with `adapter.safetensors`, and, for people, `card.md`, `adapter.json`, `adapter.yaml` and
`log.jsonl` (with a second training also `log_refit.jsonl`). Nothing in a bundle is pickled.

`adapter.safetensors` alone is the complete adapter. It holds the weights of the head, the changed weights of a tuned
backbone (the base backbone is not copied), and hashes and mean features of training images. Its header holds the record
(`dinomed.adapters.record`) with the hash of the tensors. Therefore a single rename replaces an older adapter, and the
record and the weights of two adapters cannot be mixed up. A bundle holds no image names, groups or other values of the
manifest's rows. `adapter.json` is a copy of the record; `adapter.yaml` holds the settings.
"""

import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.card import CARD_FILE, build_card
from dinomed.adapters.fitting.config import TrainConfig, adapter_class
from dinomed.adapters.fitting.loop import LOG_FILE, REFIT_LOG_FILE, STATE_FOLDER
from dinomed.adapters.fitting.tune import TunedBackbone, changed_backbone
from dinomed.adapters.record import FORMAT, AdapterRecord, TunedReference, reading_record
from dinomed.adapters.reference import refer_to
from dinomed.adapters.training_images import (
    NOTHING_STORED,
    FamiliarityCheck,
    TrainingHashes,
    training_hashes_from_tensors,
)
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.config import build_config, to_yaml
from dinomed.errors import DinomedError, MissingFileError, UsageError
from dinomed.features.familiarity.reference import TrainingReference, reference_from_tensors
from dinomed.io.files import read_json, to_json, write_json, write_text
from dinomed.io.output_folder import STAGE, open_output_folder
from dinomed.io.publish import publish
from dinomed.io.tensor_file import check_tensors, hash_tensors, parse_record, read_header, read_tensors, write_tensors
from dinomed.loggers.names import LOGGER_FOLDERS

WEIGHTS_FILE, RECORD_FILE, CONFIG_FILE = "adapter.safetensors", "adapter.json", "adapter.yaml"
HEADER = "adapter"
_HEAD, _SEEN, _TUNED, _REFERENCE = "head.", "seen.", "backbone.", "reference."  # prefixes of the names of tensors
_PACKAGES = ("dinomed", "torch", "monai", "scikit-learn", "numpy")


@dataclass(frozen=True)
class BundleOutput:
    """The folder of a bundle, and the stage in it: the folder that holds its files until all are written."""

    folder: Path
    stage: Path


@contextmanager
def open_output(folder: str | Path, config: TrainConfig, *, overwrite: bool) -> Iterator[BundleOutput]:
    """Prepare and lock the output folder of a fit, and write its settings to the stage.

    Files of an unfinished fit are replaced, except its state, from which the same fit is resumed, and the files of its
    loggers. An older adapter stays until the new one is complete. After a failure no empty folder stays.

    Raises:
        UsageError: the folder holds folds of a cross-validation; see also `open_output_folder`.
    """
    folder = Path(folder)
    check_no_folds(folder)
    with open_output_folder(
        folder, marker=WEIGHTS_FILE, overwrite=overwrite, keep=[STATE_FOLDER, *LOGGER_FOLDERS]
    ) as stage:
        _remove_logs_without_state(stage)
        write_text(stage / CONFIG_FILE, to_yaml(config))
        try:
            yield BundleOutput(folder, stage)
        except BaseException:
            _remove_logs_without_state(stage)
            raise


def check_no_folds(folder: Path) -> None:
    """Raise a `UsageError` if a folder holds folds of a cross-validation instead of an adapter."""
    if any(place.is_dir() for place in folder.glob("fold_*")):
        raise UsageError(
            f"output folder {folder} holds folds of a cross-validation; give `folds` to continue it, or choose another "
            "folder"
        )


def _remove_logs_without_state(stage: Path) -> None:
    """Remove the files of loggers of a fit that will not be resumed."""
    if not (stage / STATE_FOLDER).exists():
        for name in LOGGER_FOLDERS:
            shutil.rmtree(stage / name, ignore_errors=True)


def save_bundle(
    output: BundleOutput,
    adapter: Adapter,
    backbone: FrozenBackbone,
    *,
    classes: list[str],
    seen: TrainingHashes,
    threshold: float | None = None,
    usage: dict[str, Any] | None = None,
    validation: dict[str, Any],
    training: dict[str, Any],
    tuned: TunedBackbone | None = None,
    reference: TrainingReference | None = None,
) -> AdapterRecord:
    """Write the bundle to the stage, then move its files into place. An interruption leaves the old or the new adapter.

    Args:
        output: result of `open_output`.
        adapter: the fitted head.
        backbone: the backbone to which the bundle refers.
        classes: names of the classes, in the order of the head's channels.
        seen: hashes of the images of train and val.
        threshold: threshold of a segmenter of one class, in (0, 1).
        usage: further settings for the use of the head; see `AdapterRecord`.
        validation: metrics on val.
        training: settings and data of the fit; see `training_record`.
        tuned: the backbone after the fit, if it was trained too.
        reference: features of training images, for `read_familiarity_check`.

    Returns:
        The record of the bundle.
    """
    tensors = {_HEAD + name: tensor.detach().cpu() for name, tensor in adapter.state_dict().items()}
    tensors |= {_SEEN + name: tensor for name, tensor in seen.to_tensors().items()}
    if tuned is not None:
        tensors |= {_TUNED + name: tensor.detach().cpu() for name, tensor in tuned.changed.items()}
    if reference is not None:
        tensors |= {_REFERENCE + name: tensor for name, tensor in reference.to_tensors().items()}
    record = AdapterRecord(
        task=adapter.task,
        head=adapter.config.model_dump(mode="json"),
        classes=tuple(classes),
        threshold=threshold,
        usage=usage or {},
        backbone=refer_to(backbone, output.folder),
        tuned=None
        if tuned is None
        else TunedReference(
            how=tuned.how,
            weights=sum(t.numel() for t in tuned.changed.values()),
            fingerprint=tuned.backbone.fingerprint,
        ),
        preprocessing=backbone.preprocessing,
        validation=validation,
        training={**training, "unlike_check": _describe_check(reference), **made_with()},
        weights_sha256=hash_tensors(tensors),
    )
    data = record.model_dump(mode="json")
    write_tensors(output.stage / WEIGHTS_FILE, tensors, {HEADER: to_json(data)})
    write_json(output.stage / RECORD_FILE, data)
    write_text(output.stage / CARD_FILE, build_card(record))
    _publish(output)
    return record


def _describe_check(reference: TrainingReference | None) -> dict[str, Any]:
    """Return whether features for the check of unlike images are `stored`, and the `problem` that switches it off."""
    if reference is None:
        return {"stored": False, "problem": NOTHING_STORED}
    return {"stored": reference.distance is not None, "problem": reference.problem}


def made_with() -> dict[str, Any]:
    """Return the entries of a record about its making: ``versions`` of the libraries, and the time ``written``."""
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _publish(output: BundleOutput) -> None:
    """Remove the files for people of an older adapter, then replace it in one step."""
    beside = (RECORD_FILE, CONFIG_FILE, CARD_FILE, LOG_FILE, REFIT_LOG_FILE)
    new = [name for name in beside if (output.stage / name).exists()]
    old_logs = _files_of_loggers(output.folder)
    publish(
        output.stage, output.folder, [WEIGHTS_FILE, *new, *_files_of_loggers(output.stage)], remove=[*beside, *old_logs]
    )


def _files_of_loggers(folder: Path) -> list[str]:
    """Return the files of loggers in a folder, relative to it."""
    paths = (path for name in LOGGER_FOLDERS for path in sorted((folder / name).rglob("*")) if path.is_file())
    return [path.relative_to(folder).as_posix() for path in paths]


def read_record(folder: str | Path) -> AdapterRecord:
    """Read the record of a bundle.

    Raises:
        UsageError: the folder is no bundle.
        DinomedError: the bundle is damaged, of another format, or mixed from two.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"adapter {folder} does not exist; make one: dinomed train TASK ... -o {folder}")
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        if (folder / RECORD_FILE).exists():
            raise MissingFileError(f"{path} is missing; copy the whole folder of the adapter, or train again")
        raise UsageError(
            f"{folder} holds no adapter yet; its training did not finish, run it again"
            if (folder / STAGE).is_dir()
            else f"{folder} is no adapter (it holds no {WEIGHTS_FILE}); give the output folder of dinomed train"
        )
    data = read_header(path, HEADER, "train again")
    if (folder / RECORD_FILE).exists() and read_json(folder / RECORD_FILE) != data:
        raise DinomedError(
            f"{folder / RECORD_FILE} is not the record in {WEIGHTS_FILE}: it was changed, or the files of two adapters "
            "are mixed up; copy both from one training, or train again"
        )
    return parse_record(path, data, AdapterRecord, FORMAT, "train again")


def load_head(folder: str | Path, record: AdapterRecord) -> Adapter:
    """Load the head with its weights, on the CPU, in eval mode.

    Raises:
        DinomedError: the weights are damaged, or do not belong to the record.
    """
    cls = adapter_class(record.task, str(record.head.get("name")))
    config = build_config(cls.Config, record.head, str(folder))
    weights = _read_part(folder, record, _HEAD)
    with reading_record(Path(folder) / WEIGHTS_FILE):
        embed_dim = record.backbone.embed_dim * int(record.usage.get("width", 1))  # several images concatenated
        with torch.device("meta"):  # compares all shapes before anything is allocated
            cls(config, embed_dim, len(record.classes)).load_state_dict(weights, assign=True)
        adapter = cls(config, embed_dim, len(record.classes))
        adapter.load_state_dict(weights)
    return adapter.eval()


def load_tuned(folder: str | Path, record: AdapterRecord, base: FrozenBackbone) -> FrozenBackbone:
    """Return the backbone of the head: `base`, or its tuned version.

    Args:
        folder: the bundle.
        record: record of the bundle.
        base: the backbone to which the record refers.

    Raises:
        DinomedError: the weights are damaged, or their fingerprint differs from the record.
    """
    if record.tuned is None:
        return base
    try:
        backbone = changed_backbone(base, _read_part(folder, record, _TUNED))
    except RuntimeError as error:
        line = str(error).splitlines()[-1].strip()
        raise DinomedError(f"{Path(folder) / WEIGHTS_FILE}: weights of another backbone ({line})") from None
    if backbone.fingerprint != record.tuned.fingerprint:
        raise DinomedError(
            f"{Path(folder) / WEIGHTS_FILE}: its tuned backbone has fingerprint {backbone.fingerprint[:16]}, the "
            f"record says {record.tuned.fingerprint[:16]}; copy the bundle again, or train again"
        )
    return backbone


def read_training_hashes(folder: str | Path, record: AdapterRecord) -> TrainingHashes:
    """Read the hashes of the images of train and val. Raise `DinomedError` as `load_head` does."""
    return training_hashes_from_tensors(_read_part(folder, record, _SEEN))


def read_familiarity_check(
    folder: str | Path, record: AdapterRecord, backbone: FrozenBackbone
) -> FamiliarityCheck | None:
    """Return the check whether images are unlike the training images; None if the bundle has no features of them.

    Args:
        folder: the bundle.
        record: record of the bundle.
        backbone: the backbone of the head, as `load_tuned` returns it.

    Raises:
        DinomedError: the bundle is damaged.
    """
    try:
        reference = reference_from_tensors(_read_part(folder, record, _REFERENCE))
        return None if reference is None else FamiliarityCheck(reference, backbone)
    except DinomedError as error:
        raise DinomedError(f"{Path(folder) / WEIGHTS_FILE}: {error}; train again") from None


def _read_part(folder: str | Path, record: AdapterRecord, prefix: str) -> dict[str, Tensor]:
    """Read the tensors whose names begin with `prefix`, without it, after a check of the hash of all tensors."""
    path = Path(folder) / WEIGHTS_FILE
    tensors = read_tensors(path)
    check_tensors(path, tensors, record.weights_sha256, "copy it again, or train again")
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
