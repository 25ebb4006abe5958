"""Groups of a manifest: patients of DICOM files, and numbers or pseudonyms by a secret key in place of identifiers."""

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinomed.datasets.scan.facts import Facts
from dinomed.datasets.scan.labels import number_groups
from dinomed.errors import UsageError, system_reason
from dinomed.images.dicom.patient import patient_groups
from dinomed.io.files import sha256_file

MIN_BYTES, MAX_BYTES = 16, 4096
_VIDEO, _GROUP = "video\0", "group\0"  # what is hashed begins with its kind
_DIGITS = 32
"""Hexadecimal digits of a pseudonym: 128 bits, so that two identifiers never share one by chance."""


def read_id_key(path: str | Path) -> bytes:
    """Return the secret key in a file, without the line break at its end.

    Raises:
        UsageError: the file cannot be read, or the key has fewer than 16 or more than 4096 bytes. The message does not
            repeat the key.
    """
    try:
        with open(path, "rb") as file:
            key = file.read(MAX_BYTES + 3).rstrip(b"\r\n")
    except OSError as error:
        raise UsageError(f"cannot read the key {path}: {system_reason(error)}") from None
    if not MIN_BYTES <= len(key) <= MAX_BYTES:
        size = f"{len(key)} bytes" if len(key) <= MAX_BYTES else f"more than {MAX_BYTES} bytes"
        raise UsageError(
            f"the key {path} has {size}; write a random one of {MIN_BYTES} to {MAX_BYTES} bytes, such as by "
            f"`openssl rand -hex 32 > {path}`"
        )
    return key


def chosen_key(path: str | Path | None, keep_ids: bool) -> bytes | None:
    """Return the key of `read_id_key`, None without a file; raise a `UsageError` with `keep_ids` too."""
    if path is not None and keep_ids:
        raise UsageError("`id_key` replaces groups and `keep_ids=True` keeps them; leave one of the two out")
    return None if path is None else read_id_key(path)


def video_identifier(path: str | Path) -> str:
    """Return the identifier of a video for `pseudonym`: its content, so that it does not depend on the name.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        return _VIDEO + sha256_file(path)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {system_reason(error)}") from None


def pseudonym(identifier: str, key: bytes) -> str:
    """Return the pseudonym of an identifier: the first half of its HMAC-SHA256, 32 hexadecimal digits.

    Without the key it can be neither computed nor reversed by trying all identifiers.

    Args:
        identifier: a group as written, or the `video_identifier` of a video; these are never taken for each other.
        key: the secret key.

    >>> pseudonym("P0012", b"0123456789abcdef") == pseudonym("P0012", b"0123456789abcdef")
    True
    >>> pseudonym("P0012", b"0123456789abcdef") == pseudonym("P0012", b"another key of 24 bytes.")
    False
    """
    message = identifier if identifier.startswith(_VIDEO) else _GROUP + identifier
    return hmac.new(key, message.encode(), hashlib.sha256).hexdigest()[:_DIGITS]


def add_patients(columns: dict[str, list[Any]], facts: Sequence[Facts], keep_ids: bool) -> list[str]:
    """Set the group of DICOM images without a group to their patient, or else their study, and return a note on it.

    With `keep_ids`, patients are numbered here: only groups that the user named are kept as written.
    """
    groups, images = columns["group"], columns["image"]
    patients = patient_groups([f.patient for f in facts], [f.study for f in facts])
    patients = [patient if group is None else None for patient, group in zip(patients, groups, strict=True)]
    count = len(patients) - patients.count(None)
    if count == 0:
        return []
    if keep_ids:
        patients = number_groups(images, patients)
    columns["group"] = [patient if group is None else group for patient, group in zip(patients, groups, strict=True)]
    return [
        f"groups of {count:,} DICOM images are by Patient ID, or else by Study Instance UID; `group=none` leaves them "
        "without a group"
    ]


def replace_groups(columns: dict[str, list[Any]], key: bytes | None, keep_ids: bool) -> list[str]:
    """Replace groups by their pseudonyms, or without a key by numbers unless `keep_ids`, and return a note on it."""
    groups = columns["group"]
    if not any(groups) or (keep_ids and key is None):
        return []
    if key is not None:
        columns["group"] = [None if group is None else pseudonym(group, key) for group in groups]
        return ["groups are replaced by keyed hashes (HMAC-SHA256); keep the key where patients are known"]
    columns["group"] = number_groups(columns["image"], groups)
    return [
        f"groups are numbered, such as {next(filter(None, columns['group']))}; --keep-ids keeps them as written, "
        "except Patient IDs"
    ]
