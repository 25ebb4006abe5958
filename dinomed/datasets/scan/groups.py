"""Groups of a manifest: patients of DICOM files, and numbers or pseudonyms by a secret key in place of identifiers."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from dinomed.datasets.scan.facts import Facts
from dinomed.images.dicom.patient import patient_groups
from dinomed.io.pseudonyms import pseudonym


def add_patients(columns: dict[str, list[Any]], facts: Sequence[Facts], keep_ids: bool) -> tuple[list[str], list[str]]:
    """Set the group of DICOM images without a group, and return notes and warnings on it.

    It is the group that other images of the patient have, or else the patient, or else the study. With `keep_ids`,
    patients are numbered here: only groups that the user named are kept as written.
    """
    groups, images = columns["group"], columns["image"]
    patients = patient_groups([f.patient for f in facts], [f.study for f in facts])
    unnamed = [patient if group is None else None for patient, group in zip(patients, groups, strict=True)]
    named: dict[str | None, list[str]] = {}  # groups that the user named for the images of a patient
    for patient, group in zip(patients, groups, strict=True):
        if patient is not None and group is not None and group not in named.setdefault(patient, []):
            named[patient].append(group)
    for group in set(groups) - {None}:
        named.setdefault(group, [group])  # named by the identifier of the patient
    joined = [named[patient][0] if patient in named else None for patient in unnamed]
    numbered = [None if patient in named else patient for patient in unnamed]
    by_patient = len(numbered) - numbered.count(None)
    if keep_ids:
        numbered = number_groups(images, numbered, [f.sha256 for f in facts])
    columns["group"] = [
        group or of_patient or number for group, of_patient, number in zip(groups, joined, numbered, strict=True)
    ]
    notes, warnings = list[str](), list[str]()
    if by_patient:
        notes.append(
            f"groups of {by_patient:,} DICOM images are by Patient ID, or else by Study Instance UID; `group=none` "
            "leaves them without a group"
        )
    studies = {f.study for f, patient in zip(facts, numbered, strict=True) if patient is not None}
    if len(set(numbered) - {None}) == 1 and len(studies) > 1:
        warnings.append(
            f"the {by_patient:,} DICOM images of {len(studies):,} studies have one Patient ID and are one group, so "
            "they cannot be split; if it is a placeholder of a de-identification, name groups by `group=COLUMN`, or "
            "use `group=none`"
        )
    if count := len(joined) - joined.count(None):
        notes.append(f"{count:,} DICOM images without a group have the group of their patient's other images")
    if count := sum(len(named.get(patient, [])) > 1 for patient in unnamed):
        warnings.append(
            f"{count:,} DICOM images without a group have a patient whose other images have several groups, and have "
            "the first of these; name their groups in the table"
        )
    return notes, warnings


def replace_groups(columns: dict[str, list[Any]], key: bytes | None, keep_ids: bool) -> list[str]:
    """Replace groups by their pseudonyms, or without a key by numbers unless `keep_ids`, and return a note on it."""
    groups = columns["group"]
    if not any(groups) or (keep_ids and key is None):
        return []
    if key is not None:
        columns["group"] = [None if group is None else pseudonym(group, key) for group in groups]
        return ["groups are replaced by keyed hashes (HMAC-SHA256); keep the key where patients are known"]
    columns["group"] = number_groups(columns["image"], groups, columns["sha256"])
    return [
        f"groups are numbered, such as {next(filter(None, columns['group']))}; `keep_ids=True` keeps them as written, "
        "except Patient IDs"
    ]


def number_groups(
    images: Sequence[str], groups: Sequence[str | None], contents: Sequence[str] = ()
) -> list[str | None]:
    """Replace groups by numbers, such as ``3f2a-07``, that are the same whenever the same table is scanned.

    Numbers follow the names of the images. The part before the hyphen is common to all groups of a table: a hash of
    names, contents and which images are together, so that groups of other tables are not taken for these. Neither
    depends on the groups as written, which could be found by trying all values.

    Args:
        contents: hash of each image, for images whose names do not tell them from those of another folder.
    """
    order = sorted(range(len(images)), key=images.__getitem__)
    places: dict[str, int] = {}
    for row in order:
        if (group := groups[row]) is not None:
            places.setdefault(group, len(places) + 1)
    rows = [[images[row], contents[row] if contents else "", places.get(groups[row] or "")] for row in order]
    table = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:4]
    digits = len(str(len(places)))
    return [None if group is None else f"{table}-{places[group]:0{digits}}" for group in groups]
