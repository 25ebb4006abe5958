"""Volume formats: geometry and values as read by dinomed, compared with nibabel and highdicom, and as written back.

    python benchmarks/features/volume_formats.py [--rotations 20] [--json]

Files are written by nibabel, pydicom and highdicom: NIfTI in all 48 orders of the axes, oblique and anisotropic NIfTI
with a sform or a qform only, NIfTI-2, DICOM series (straight, oblique, of a tilted gantry), enhanced multi-frame DICOM,
and DICOM segmentations; with SimpleITK installed also oblique MetaImage and NRRD, every second one compressed. Each is
read by dinomed (`dinomed slices`), and a label map is written in its geometry (`dinomed predict --volumes`) and read by
the other library. *Error* is the largest distance of a corner voxel from its place by the other library, in mm, over
all files of a row. *Values* says whether all voxels are equal. The output is a table in Markdown.
"""

import argparse
import itertools
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel
import numpy as np
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy.spatial.transform import Rotation

from dinomed.images.dicom.write_segmentation import (
    SegmentationSettings,
    build_volume_segmentation,
    read_source,
    write_segmentation,
)
from dinomed.volumes.find import find_volumes
from dinomed.volumes.geometry import lps_to_ras
from dinomed.volumes.itk import write_volume, written_suffix
from dinomed.volumes.masks import read_mask_volume
from dinomed.volumes.nifti import write_nifti
from dinomed.volumes.read import Volume, read_volume

SHAPE, SPACING = (23, 17, 11), (0.7, 0.9, 2.5)
ORIGIN = np.array([-81.3, 42.7, -310.9])
SETTINGS = SegmentationSettings(("lesion",), "0" * 64)


@dataclass
class FormatRow:
    """A row of the table: errors in mm over all files, as read and as written back; None if nothing is written."""

    format: str
    files: int
    read_mm: float | None
    written_as: str
    written_mm: float | None
    values_equal: bool


def values_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 2000, SHAPE).astype(np.int16)


def affines(count: int, shear: float = 0.0) -> Iterator[np.ndarray]:
    """Yield affines to RAS+ of random rotations, anisotropic."""
    for rotation in Rotation.random(count, random_state=0):
        affine = np.eye(4)
        affine[:3, :3] = rotation.as_matrix() * SPACING
        affine[:3, 2] += shear * affine[:3, 1]
        affine[:3, 3] = ORIGIN
        yield affine


def distance_mm(affine: np.ndarray, reference: np.ndarray, shape: tuple[int, ...] = SHAPE) -> float:
    """Return the largest distance of a corner voxel by two affines, mm."""
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)], float)
    corners[:, :3] *= np.array(shape) - 1
    return float(np.linalg.norm(((affine - reference) @ corners.T)[:3], axis=0).max())


def read_one(path: Path) -> Volume:
    search = find_volumes([path])
    assert search.problems == [], search.problems
    (source,) = search.sources
    return read_volume(source)


def compare_nifti(name: str, images: list[Any], folder: Path, suffix: str) -> FormatRow:
    """Compare NIfTI files with nibabel, and the label maps that are written in their geometry."""
    read, written, equal = [], [], True
    for number, image in enumerate(images):
        path, mask_path = folder / f"{number}{suffix}", folder / "mask.nii.gz"
        nibabel.save(image, path)
        theirs, volume = nibabel.load(path), read_one(path)
        read.append(distance_mm(volume.grid.affine, theirs.affine, volume.grid.shape))
        mask = (volume.values > 500).astype(np.uint8)
        write_nifti(mask_path, mask, volume.grid, volume.header)
        again = nibabel.load(mask_path)
        written.append(distance_mm(again.affine, theirs.affine, volume.grid.shape))
        expected = np.asarray(theirs.dataobj)
        equal &= np.array_equal(volume.values, expected) and np.array_equal(np.asarray(again.dataobj), expected > 500)
    return FormatRow(name, len(images), max(read), "NIfTI", max(written), equal)


def nifti_rows(folder: Path, rotations: int) -> Iterator[FormatRow]:
    image = nibabel.Nifti1Image(values_of(0), next(affines(1)))
    orders = itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))
    reordered = [image.as_reoriented(np.stack([order, flips], axis=1)) for order, flips in orders]
    yield compare_nifti("NIfTI-1, `.nii`, all 48 orders of the axes", reordered, folder, ".nii")
    yield compare_nifti("NIfTI-1, `.nii.gz`, all 48 orders of the axes", reordered, folder, ".nii.gz")
    oblique = [nibabel.Nifti1Image(values_of(n), affine) for n, affine in enumerate(affines(rotations))]
    yield compare_nifti("NIfTI-1, oblique and anisotropic", oblique, folder, ".nii.gz")
    sheared = [nibabel.Nifti1Image(values_of(n), affine) for n, affine in enumerate(affines(rotations, 0.4))]
    yield compare_nifti("NIfTI-1, oblique and sheared (sform)", sheared, folder, ".nii.gz")
    for one in (by_qform := [nibabel.Nifti1Image(values_of(n), a) for n, a in enumerate(affines(rotations))]):
        one.set_qform(one.affine, code=1)
        one.set_sform(None, code=0)
    yield compare_nifti("NIfTI-1, oblique, qform only", by_qform, folder, ".nii.gz")
    second = [nibabel.Nifti2Image(values_of(n), affine) for n, affine in enumerate(affines(rotations))]
    yield compare_nifti("NIfTI-2, oblique and anisotropic", second, folder, ".nii")


def itk_rows(folder: Path, all_affines: list[np.ndarray]) -> Iterator[FormatRow]:
    """Compare files of SimpleITK, and the label maps that it reads back; no row without SimpleITK."""
    try:
        import SimpleITK as itk
    except ImportError:
        return
    for name, suffix in (("MetaImage", ".mha"), ("MetaImage", ".mhd"), ("NRRD", ".nrrd"), ("NRRD", ".nhdr")):
        read, written, equal = [], [], True
        for seed, affine in enumerate(all_affines):
            lps, values, path = lps_to_ras(affine), values_of(seed), folder / f"{seed}{suffix}"
            image = itk.GetImageFromArray(values.T)
            spacing = np.linalg.norm(lps[:3, :3], axis=0)
            image.SetSpacing(spacing.tolist())
            image.SetOrigin(lps[:3, 3].tolist())
            image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
            itk.WriteImage(image, str(path), useCompression=seed % 2 == 1)
            volume = read_one(path)
            read.append(distance_mm(volume.grid.affine, affine))
            out = folder / f"out{written_suffix(volume.header)}"
            write_volume(out, (values > 500).astype(np.uint8), volume.grid, volume.header)
            again = itk.ReadImage(str(out))
            theirs = np.eye(4)
            theirs[:3, :3] = np.reshape(again.GetDirection(), (3, 3)) * again.GetSpacing()
            theirs[:3, 3] = again.GetOrigin()
            written.append(distance_mm(lps_to_ras(theirs), affine))
            equal &= np.array_equal(volume.values, values)
            equal &= np.array_equal(itk.GetArrayFromImage(again).T, values > 500)
        yield FormatRow(
            f"{name} of SimpleITK, `{suffix}`, oblique",
            len(read),
            max(read),
            f"{name}, read by SimpleITK",
            max(written),
            equal,
        )


def write_series(folder: Path, seed: int, affine: np.ndarray) -> list[Path]:
    """Write a CT series whose voxel (column, row, slice) lies at `affine`, RAS+."""
    lps, values, paths = lps_to_ras(affine), values_of(seed), []
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(SHAPE[2]):
        file = Dataset()
        file.file_meta = FileMetaDataset()
        file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = CTImageStorage
        file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        file.StudyInstanceUID, file.SeriesInstanceUID, file.FrameOfReferenceUID = "1.2.1", f"1.2.3{seed}", "1.2.9"
        for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
                     "AccessionNumber", "ReferringPhysicianName", "Manufacturer"):  # fmt: skip
            setattr(file, name, "")
        file.Modality, file.InstanceNumber, file.SeriesNumber = "CT", number + 1, 1
        file.ImagePositionPatient = [f"{value:.10g}"[:16] for value in lps[:3, 3] + number * lps[:3, 2]]
        cosines = (lps[:3, :2] / np.linalg.norm(lps[:3, :2], axis=0)).T.ravel()
        file.ImageOrientationPatient = [f"{value:.12f}"[:16] for value in cosines]
        file.PixelSpacing, file.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
        file.Columns, file.Rows = SHAPE[:2]
        file.SamplesPerPixel, file.PhotometricInterpretation, file.PixelRepresentation = 1, "MONOCHROME2", 1
        file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
        file.RescaleSlope, file.RescaleIntercept = 1, 0
        file.PixelData = values[:, :, number].T.astype("<i2").tobytes()
        file.save_as(folder / f"{number:03}.dcm", enforce_file_format=True)
        paths.append(folder / f"{number:03}.dcm")
    return paths


def write_enhanced(folder: Path, seed: int, affine: np.ndarray) -> None:
    """Write one file with the frames of a series in another order, described by functional groups."""
    paths = write_series(folder, seed, affine)
    order = np.random.default_rng(seed).permutation(len(paths)).tolist()
    file, files, shared = dcmread(paths[0]), [dcmread(path) for path in paths], Dataset()
    measures, plane = Dataset(), Dataset()
    measures.PixelSpacing, plane.ImageOrientationPatient = file.PixelSpacing, file.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    frames = []
    for number in order:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = files[number].ImagePositionPatient
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    file.NumberOfFrames, file.PixelData = len(order), b"".join(files[number].PixelData for number in order)
    file.SharedFunctionalGroupsSequence, file.PerFrameFunctionalGroupsSequence = [shared], frames
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        del file[name]
    for path in paths:
        path.unlink()
    file.save_as(folder / "enhanced.dcm")


def compare_dicom(
    name: str, all_affines: list[np.ndarray], folder: Path, write: Callable[[Path, int, np.ndarray], Any]
) -> FormatRow:
    """Compare DICOM volumes with the affines of which they were written, and their label maps as NIfTI."""
    read, written, equal = [], [], True
    for seed, affine in enumerate(all_affines):
        write(folder / name / str(seed), seed, affine)
        volume = read_one(folder / name / str(seed))
        if distance_mm(volume.grid.affine, affine) > distance_mm(volume.grid.affine, flip_slices(affine)):
            affine, values = flip_slices(affine), values_of(seed)[:, :, ::-1]  # slices are sorted along their normal
        else:
            values = values_of(seed)
        read.append(distance_mm(volume.grid.affine, affine))
        write_nifti(folder / "mask.nii.gz", (values > 500).astype(np.uint8), volume.grid)
        again = nibabel.load(folder / "mask.nii.gz")
        written.append(distance_mm(again.affine, volume.grid.affine))
        equal &= np.array_equal(volume.values, values) and np.array_equal(np.asarray(again.dataobj), values > 500)
    return FormatRow(name, len(all_affines), max(read), "NIfTI", max(written), equal)


def flip_slices(affine: np.ndarray) -> np.ndarray:
    """Return the affine of the same voxels with the slices in reverse order."""
    flip = np.diag([1.0, 1.0, -1.0, 1.0])
    flip[2, 3] = SHAPE[2] - 1
    return affine @ flip


def compare_segmentations(all_affines: list[np.ndarray], folder: Path) -> list[FormatRow]:
    """Compare segmentations of highdicom as dinomed reads them, and of dinomed as highdicom reads them."""
    equal, theirs_equal, distances = True, True, []
    for seed, affine in enumerate(all_affines):
        paths = write_series(folder / "seg" / str(seed), seed, affine)
        (source,) = find_volumes([folder / "seg" / str(seed)]).sources
        grid, order = read_volume(source).grid, [paths.index(Path(frame.path)) for frame in source.frames]
        labels = (values_of(seed) > 500).astype(np.uint8)
        segment = hd.seg.SegmentDescription(1, "lesion", codes.SCT.Tissue, codes.SCT.Lesion, "MANUAL")
        hd.seg.Segmentation(
            [dcmread(path) for path in paths], labels.transpose(2, 1, 0), "BINARY", [segment], generate_uid(), 1,
            generate_uid(), 1, "maker", "model", "1", "0",
        ).save_as(folder / "theirs.dcm")  # fmt: skip
        expected = labels[:, :, order]
        equal &= np.array_equal(read_mask_volume(folder / "theirs.dcm", grid), expected)
        headers = [read_source(frame.path) for frame in source.frames]
        frames = expected.transpose(2, 1, 0)[None]
        write_segmentation(folder / "ours.dcm", build_volume_segmentation(headers, frames, SETTINGS, 1))
        again = hd.seg.segread(folder / "ours.dcm").get_volume(combine_segments=True)
        ours, values = lps_to_ras(again.affine)[:, [2, 1, 0, 3]], again.array.transpose(2, 1, 0)
        if distance_mm(flip_slices(ours), grid.affine) < distance_mm(ours, grid.affine):
            ours, values = flip_slices(ours), values[:, :, ::-1]
        distances.append(distance_mm(ours, grid.affine))
        theirs_equal &= np.array_equal(values, expected)
    count = len(all_affines)
    return [
        FormatRow("DICOM SEG of highdicom, as a mask of its series", count, None, "", None, equal),
        FormatRow("DICOM series, oblique", count, None, "DICOM SEG, read by highdicom", max(distances), theirs_equal),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rotations", type=int, default=20, help="oblique volumes of each format")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    arguments = parser.parse_args()
    rotated, straight = list(affines(arguments.rotations)), np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    straight[:3, 3] = ORIGIN
    tilted = straight.copy()
    tilted[1, 2] = 1.2
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings(action="ignore"):
        folder = Path(place)
        rows = list(nifti_rows(folder, arguments.rotations))
        rows += itk_rows(folder, rotated)
        for name, group, write in (
            ("DICOM series, axial", [straight], write_series),
            ("DICOM series, oblique", rotated, write_series),
            ("DICOM series, tilted gantry", [tilted], write_series),
            ("enhanced multi-frame DICOM, oblique", rotated, write_enhanced),
        ):
            rows.append(compare_dicom(name, group, folder, write))
        rows += compare_segmentations(rotated, folder)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print("| format | files | error as read, mm | written back as | error as written, mm | values |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        read, written = ("" if error is None else f"{error:.1g}" for error in (row.read_mm, row.written_mm))
        equal = "equal" if row.values_equal else "**not equal**"
        print(f"| {row.format} | {row.files} | {read} | {row.written_as} | {written} | {equal} |")


if __name__ == "__main__":
    main()
