"""DICOM files of several frames or with a video stream, for the tests."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, VideoEndoscopicImageStorage


def write_dicom(path: Path, frames: Sequence[np.ndarray], **elements: object) -> Path:
    """Write frames, uint8 (H, W) or (H, W, 3), as a DICOM file of an ultrasound; `elements` are added or replaced."""
    pixels = np.stack(frames)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.3.1"  # ultrasound cine
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.SamplesPerPixel, data.PhotometricInterpretation = (1, "MONOCHROME2") if pixels.ndim == 3 else (3, "RGB")
    if data.SamplesPerPixel == 3:
        data.PlanarConfiguration = 0
    data.NumberOfFrames, data.Rows, data.Columns = pixels.shape[:3]
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.PatientName = "Planted"
    data.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def write_dicom_video(
    path: Path, fragments: Sequence[bytes], syntax: UID, size: tuple[int, int], frames: int, **elements: object
) -> Path:
    """Write a video stream of frames of `size` (H, W) as a DICOM file of an endoscope, in one or more fragments."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = VideoEndoscopicImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.Modality, data.PatientName, data.PatientID, data.StudyInstanceUID = "ES", "Planted", "P1", "1.2.4"
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "YBR_PARTIAL_420", 0
    data.NumberOfFrames, data.Rows, data.Columns = frames, *size
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.FrameTime = 40
    data.PixelData = encapsulate([part + bytes(len(part) % 2) for part in fragments])
    data["PixelData"].VR = "OB"
    for name, value in elements.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path
