"""Small valid volumes, masks and videos of every kind that dinomed reads, made by code; and compressed bombs."""

import gzip
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

SHAPE = (6, 5, 4)
VALUES = np.random.default_rng(0).integers(0, 1500, SHAPE).astype(np.int16)
LABELS = (VALUES > 700).astype(np.uint8)


def nifti(values: np.ndarray, version: int = 1) -> bytes:
    """A NIfTI file in one part, not compressed."""
    import nibabel

    image = (nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image)(values, np.diag([-2.0, -2.0, 5.0, 1.0]))
    return bytes(image.to_bytes())


def slice_of_series(number: int, **elements: object) -> bytes:
    """A slice of a CT series, of 40 x 24 px."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID, file.file_meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = f"1.2.3.{number}"
    file.SOPClassUID, file.SeriesInstanceUID, file.StudyInstanceUID = CTImageStorage, "1.2.3", "1.2"
    file.FrameOfReferenceUID, file.PatientID, file.Modality = "1.9", "Planted", "CT"
    file.ImagePositionPatient, file.ImageOrientationPatient = [0.0, 0.0, 2.5 * number], [1, 0, 0, 0, 1, 0]
    file.PixelSpacing, file.SamplesPerPixel, file.PhotometricInterpretation = [0.5, 0.5], 1, "MONOCHROME2"
    file.Rows, file.Columns, file.BitsAllocated, file.BitsStored, file.HighBit = 24, 40, 16, 16, 15
    file.PixelRepresentation, file.RescaleSlope, file.RescaleIntercept = 1, 2, -1024
    file.PixelData = np.random.default_rng(number).integers(0, 1500, (24, 40)).astype("<i2").tobytes()
    for name, value in elements.items():
        setattr(file, name, value)
    content = io.BytesIO()
    file.save_as(content, enforce_file_format=True)
    return content.getvalue()


def segmentation() -> bytes:
    """A DICOM segmentation of the series of `slice_of_series`: a frame of one bit for each of two slices."""
    from pydicom import Dataset

    def item(**elements: object) -> "Dataset":
        dataset = Dataset()
        for name, value in elements.items():
            setattr(dataset, name, value)
        return dataset

    frames = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[0.0, 0.0, 2.5 * number])],
            SegmentIdentificationSequence=[item(ReferencedSegmentNumber=1)],
        )
        for number in range(2)
    ]
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.5])],
    )
    bits = np.packbits(np.random.default_rng(9).integers(0, 2, 2 * 24 * 40).astype(bool), bitorder="little")
    return slice_of_series(
        0, SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4", Modality="SEG", SegmentationType="BINARY", NumberOfFrames=2,
        BitsAllocated=1, BitsStored=1, HighBit=0, PixelRepresentation=0, PixelData=bits.tobytes(),
        ReferencedSeriesSequence=[item(SeriesInstanceUID="1.2.3")],
        SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=frames,
    )  # fmt: skip


def video(codec: str, suffix: str, folder: Path) -> bytes:
    """A video of 12 frames, 64 x 48 px; empty if this build of OpenCV does not encode the codec."""
    import cv2

    path = folder / f"made.{suffix}"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), 10, (64, 48))  # type: ignore[attr-defined]
    if not writer.isOpened():
        return b""
    for number in range(12):
        frame = np.full((48, 64, 3), number * 15, np.uint8)
        frame[10:30, 4 * number : 4 * number + 15] = 255 - number * 15
        writer.write(frame)
    writer.release()
    return path.read_bytes()


VOLUMES: dict[str, Callable[[], bytes]] = {
    "a.nii": lambda: nifti(VALUES),
    "b.nii": lambda: nifti(VALUES.astype(np.float32), version=2),
    "c.nii.gz": lambda: gzip.compress(nifti(VALUES), mtime=0),
}
"""Name -> function that makes a valid file."""
VIDEOS = {"avi": "MJPG", "mp4": "mp4v", "mkv": "VP80", "mpg": "mpg2"}
"""Suffix -> codec."""


def nifti_bomb(voxels: tuple[int, int, int], declared: tuple[int, int, int] | None = None) -> bytes:
    """A compressed NIfTI of zeros; `declared` is the shape in its header, if that is a lie."""
    header = bytearray(nifti(np.zeros((1, 1, 1), np.int16))[:352])
    struct.pack_into("<8h", header, 40, 3, *(declared or voxels), 1, 1, 1, 1)
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)  # 31: a gzip header
    parts, left = [packer.compress(bytes(header))], 2 * voxels[0] * voxels[1] * voxels[2]
    while left > 0:
        parts.append(packer.compress(bytes(min(left, 2**24))))
        left -= 2**24
    return b"".join([*parts, packer.flush()])
