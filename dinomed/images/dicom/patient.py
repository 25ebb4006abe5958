"""Patient and study of DICOM images, for groups. Their values are personal data: no message holds them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinomed.images.decode import UnreadableImage
from dinomed.images.dicom.elements import is_dicom, read_header, reading_dicom

PATIENT, STUDY = "PatientID", "StudyInstanceUID"


def identifier_of(elements: Any, name: str) -> str | None:
    """Return the text of an element, None if it is missing or empty."""
    return str(elements.get(name) or "").strip(" \0") or None


def read_patient(path: str | Path) -> tuple[str | None, str | None]:
    """Return Patient ID and Study Instance UID of a DICOM file, each None if it is unknown.

    Raises:
        UnreadableImage: the file is damaged or truncated in its header.
    """
    with reading_dicom(path) as file:
        elements = read_header(file, [PATIENT, STUDY])
        return identifier_of(elements, PATIENT), identifier_of(elements, STUDY)


def read_patients(paths: Sequence[Path]) -> tuple[list[str | None], list[str | None]]:
    """Return Patient IDs and Study Instance UIDs of files, None for each that is unknown.

    They are unknown for damaged files too, which are reported when their pixels are read, and for other formats.
    """
    pairs: list[tuple[str | None, str | None]] = []
    for path in paths:
        try:
            pairs.append(read_patient(path) if is_dicom(path) else (None, None))
        except UnreadableImage:
            pairs.append((None, None))
    return [patient for patient, _ in pairs], [study for _, study in pairs]


def known_patients(patients: Sequence[str | None], studies: Sequence[str | None]) -> list[str | None]:
    """Return the patient of each image: where it is unknown that of another image of its study, or else None."""
    pairs = list(zip(patients, studies, strict=True))
    known = {study: patient for patient, study in pairs if patient is not None and study is not None}
    return [patient or known.get(study or "") for patient, study in pairs]


def patient_groups(patients: Sequence[str | None], studies: Sequence[str | None]) -> list[str | None]:
    """Return the group of each image: its patient as of `known_patients`, or else its study.

    >>> patient_groups(["P1", None, None, None, "P2"], ["1.2", "1.2", "1.3", None, None])
    ['P1', 'P1', '1.3', None, 'P2']
    """
    known = known_patients(patients, studies)
    return [patient or study for patient, study in zip(known, studies, strict=True)]
