"""Volumes of tests: a NIfTI file by nibabel, and a DICOM series by pydicom."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, 0.8)
"""Directions of columns and rows, LPS+, neither along an axis of the patient."""
SLOPE, INTERCEPT = 2.0, -1024.0


def numbers(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Random stored values, int16."""
    return np.random.default_rng(seed).integers(0, 1500, shape).astype(np.int16)


def write_nifti(path: Path, values: np.ndarray, affine: np.ndarray | None = None, **fields: Any) -> Path:
    """Write a NIfTI file by nibabel; `fields` are set in its header."""
    nibabel = pytest.importorskip("nibabel")
    affine = np.diag([-2.0, -2.0, 5.0, 1.0]) if affine is None else affine
    image = nibabel.Nifti1Image(values, affine)
    for name, value in fields.items():
        image.header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def write_series(
    folder: Path,
    values: np.ndarray,
    *,
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
    spacing: tuple[float, float, float] = (2.5, 0.7, 0.5),
    origin: tuple[float, float, float] = (-10.5, 20.25, 300.0),
    uid: str = "1.2.3",
    patient: str = "PLANTED",
    **elements: Any,
) -> list[Path]:
    """Write a CT series, a file for each slice (slices, rows, columns), whose names are in another order than they.

    Args:
        spacing: of slices, rows and columns in mm.
        elements: elements of all files; a function of the number of the slice sets them for each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    normal = np.cross(orientation[:3], orientation[3:])
    order = np.roll(np.arange(len(values))[::-1], 1)
    paths = []
    for number, pixels in enumerate(values):
        file = Dataset()
        file.file_meta = FileMetaDataset()
        file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file.SOPClassUID, file.SOPInstanceUID = CTImageStorage, generate_uid(entropy_srcs=[uid, str(number)])
        file.StudyInstanceUID, file.SeriesInstanceUID, file.FrameOfReferenceUID = "1.2", uid, "1.9"
        file.PatientID, file.PatientName, file.Modality = patient, f"{patient}^X", "CT"
        file.PatientBirthDate = file.PatientSex = file.StudyDate = file.StudyTime = file.AccessionNumber = ""
        file.StudyID = file.ReferringPhysicianName = file.Manufacturer = file.SeriesNumber = ""
        file.InstanceNumber = int(order[number]) + 1
        file.ImagePositionPatient = [float(x) for x in np.array(origin) + number * spacing[0] * normal]
        file.ImageOrientationPatient, file.PixelSpacing = list(orientation), list(spacing[1:])
        file.SliceThickness, file.SamplesPerPixel, file.PhotometricInterpretation = spacing[0], 1, "MONOCHROME2"
        file.Rows, file.Columns = pixels.shape
        file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 1
        file.RescaleSlope, file.RescaleIntercept = SLOPE, INTERCEPT
        file.PixelData = pixels.astype("<i2").tobytes()
        for name, value in elements.items():
            setattr(file, name, value(number) if callable(value) else value)
        file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID
        file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID
        path = folder / f"{order[number]:03}.dcm"
        with warnings.catch_warnings(action="ignore"):
            file.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths
