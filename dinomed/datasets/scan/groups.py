"""Groups of a manifest: patients of DICOM files, and numbers or pseudonyms by a secret key in place of identifiers."""

from collections.abc import Sequence
from typing import Any

from dinomed.datasets.scan.facts import Facts
from dinomed.datasets.scan.labels import number_groups
from dinomed.images.dicom.patient import patient_groups
from dinomed.io.pseudonyms import pseudonym


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
