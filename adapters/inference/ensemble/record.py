"""The record of an ensemble: an adapter folder that names other adapters, its members, whose predictions are averaged.

`ensemble.json` holds the record and its own checksum; the members are ordinary adapter folders inside the folder of the
ensemble. The record holds a hash of the record of each member, which in turn holds the hash of its weights. So a member
that was changed, trained again or exchanged is recognised.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from dinomed.adapters.bundle import WEIGHTS_FILE, read_record, read_training_hashes
from dinomed.adapters.record import AdapterRecord
from dinomed.adapters.training_images import TrainingHashes
from dinomed.config import Config
from dinomed.datasets.manifest import leaves_root
from dinomed.errors import DinomedError, UsageError
from dinomed.io.files import hash_json, read_json, write_json
from dinomed.io.tensor_file import parse_record

FORMAT: Final = "dinomed.ensemble/1"
ENSEMBLE_FILE = "ensemble.json"
MAX_MEMBERS = 1000
_CHECKSUM = "sha256"


class MemberReference(Config):
    """A member of an ensemble.

    Attributes:
        folder: its folder, relative to that of the ensemble.
        record_sha256: hash of its record.
        weights_sha256: hash of its tensors, as its record holds it.
    """

    folder: str = Field(min_length=1, max_length=255)
    record_sha256: str
    weights_sha256: str


class EnsembleRecord(Config):
    """The content of `ensemble.json`.

    Attributes:
        adapter: record of the ensemble as an adapter: task, classes, use, metrics out of fold, and the backbone of the
            first member. Its `weights_sha256` is a hash over those of the members.
        members: the adapters whose predictions are averaged.
    """

    format: Literal["dinomed.ensemble/1"] = FORMAT
    adapter: AdapterRecord
    members: tuple[MemberReference, ...] = Field(min_length=2, max_length=MAX_MEMBERS)


def is_ensemble(folder: str | Path) -> bool:
    """Return whether a folder holds an ensemble."""
    return (Path(folder) / ENSEMBLE_FILE).is_file()


def refer_to_members(
    folder: Path, names: Sequence[str], prefix: str = ""
) -> tuple[tuple[MemberReference, ...], list[AdapterRecord]]:
    """Return the references of an ensemble in `folder` to the adapters in its folders `names`, and their records.

    Args:
        folder: of the ensemble.
        names: of the folders of the members.
        prefix: text before these names as long as the ensemble is not complete.
    """
    records = [read_record(folder / f"{prefix}{name}") for name in names]
    references = tuple(
        MemberReference(folder=name, record_sha256=hash_record(record), weights_sha256=record.weights_sha256)
        for name, record in zip(names, records, strict=True)
    )
    check_members(folder, names, records)
    return references, records


def hash_record(record: AdapterRecord) -> str:
    """Return the SHA-256 of a record, 64 hex digits."""
    return hash_json(record.model_dump(mode="json"))


def hash_members(references: Sequence[MemberReference]) -> str:
    """Return the SHA-256 over the hashes of the weights of all members, in their order."""
    return hash_json([member.weights_sha256 for member in references])


def write_ensemble(folder: Path, record: EnsembleRecord) -> None:
    """Write `ensemble.json`, which makes `folder` an ensemble; its members are there already."""
    data = record.model_dump(mode="json")
    write_json(folder / ENSEMBLE_FILE, data | {_CHECKSUM: hash_json(data)})


def read_ensemble(folder: str | Path) -> EnsembleRecord:
    """Read the record of an ensemble, without its members.

    Raises:
        DinomedError: the record was changed, or is of another format.
    """
    path = Path(folder) / ENSEMBLE_FILE
    data = read_json(path)
    checksum = data.pop(_CHECKSUM, None) if isinstance(data, dict) else None
    record = parse_record(path, data, EnsembleRecord, FORMAT, "copy the whole folder again, or train again")
    if checksum != hash_json(data):
        raise DinomedError(f"{path} does not match its checksum: it was changed; copy the whole folder again")
    outside = next((member.folder for member in record.members if leaves_root(member.folder)), None)
    if outside is not None:
        raise DinomedError(f"{path} names a member {outside!r} outside the folder of the ensemble; train again")
    return record


def read_members(folder: str | Path, record: EnsembleRecord) -> list[AdapterRecord]:
    """Read the records of the members of an ensemble.

    Raises:
        DinomedError: a member is missing, damaged, or not the one that the ensemble was made of.
        UsageError: the members differ in task, classes or preprocessing.
    """
    records, remedy = [], "copy the whole folder of the ensemble again, or train again"
    for member in record.members:
        place = Path(folder) / member.folder
        if not (place / WEIGHTS_FILE).is_file():
            raise DinomedError(f"ensemble {folder} lacks its member {member.folder} ({place / WEIGHTS_FILE}); {remedy}")
        read = read_record(place)
        if hash_record(read) != member.record_sha256:
            raise DinomedError(f"{place} is another adapter than the member of the ensemble {folder}; {remedy}")
        records.append(read)
    check_members(folder, [member.folder for member in record.members], records)
    return records


def check_members(folder: str | Path, names: Sequence[str], records: Sequence[AdapterRecord]) -> None:
    """Raise a `UsageError` if the predictions of some adapters cannot be averaged."""
    for name, record in zip(names, records, strict=True):
        for what, values in (
            ("tasks", (records[0].task, record.task)),
            ("classes", (records[0].classes, record.classes)),
            ("image preparations", (records[0].preprocessing, record.preprocessing)),
        ):
            if values[0] != values[1]:
                shown = "" if what == "image preparations" else f": {_words(values[0])} and {_words(values[1])}"
                raise UsageError(
                    f"ensemble {folder}: members {names[0]} and {name} have different {what}{shown}; "
                    "an ensemble needs adapters of one training"
                )


def read_ensemble_hashes(folder: str | Path, record: EnsembleRecord) -> TrainingHashes:
    """Return the hashes of all images and groups that any member was trained or validated on."""
    hashes = [
        read_training_hashes(Path(folder) / member.folder, read)
        for member, read in zip(record.members, read_members(folder, record), strict=True)
    ]
    return TrainingHashes(
        frozenset[bytes]().union(*(each.images for each in hashes)),
        frozenset[bytes]().union(*(each.groups for each in hashes)),
    )


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
