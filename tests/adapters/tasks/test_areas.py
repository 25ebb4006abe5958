"""Areas in mm²: of images whose files state the spacing in the patient, empty for all others."""

import csv
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

import dinomed
from dinomed.adapters.tasks.areas import PixelAreas, summarize_areas
from dinomed.adapters.tasks.segment.predict import SegmentPredictor

SHAPE = (40, 50)
SPACING = {
    "ct": {"Modality": "CT", "PixelSpacing": [0.7, 0.5]},
    "calibrated": {"Modality": "DX", "PixelSpacing": [0.2, 0.2], "ImagerPixelSpacing": [0.3, 0.3]},
    "detector": {"Modality": "DX", "ImagerPixelSpacing": [0.3, 0.3]},
    "same": {"Modality": "DX", "PixelSpacing": [0.3, 0.3], "ImagerPixelSpacing": [0.3, 0.3]},
    "estimated": {
        "Modality": "DX", "ImagerPixelSpacing": [0.3, 0.3], "EstimatedRadiographicMagnificationFactor": 1.5,
    },
    "unknown": {"Modality": "CR", "PixelSpacing": [0.3, 0.3]},
    "none": {"Modality": "OT"},
}  # fmt: skip
IN_PATIENT = {"ct": 0.35, "calibrated": 0.04}


def write_dicom(path: Path, seed: int, **elements: Any) -> None:
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = CTImageStorage
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    file.StudyInstanceUID, file.PatientID = f"1.2.{seed + 1}", f"P{seed}"
    file.Rows, file.Columns = SHAPE
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PixelRepresentation = 1, "MONOCHROME2", 0
    file.BitsAllocated, file.BitsStored, file.HighBit = 8, 8, 7
    file.PixelData = np.random.default_rng(seed).integers(0, 256, SHAPE, np.uint8).tobytes()
    for name, value in elements.items():
        setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for seed, (name, elements) in enumerate(SPACING.items()):
        write_dicom(tmp_path / "images" / f"{name}.dcm", seed, **elements)
    Image.new("RGB", SHAPE[::-1], "gray").save(tmp_path / "images" / "photo.png")
    return tmp_path / "images"


@pytest.fixture
def five_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predicts the first five rows of each image."""

    def decide(self: SegmentPredictor, probabilities: np.ndarray) -> np.ndarray:
        return (np.indices(probabilities.shape[1:])[0] < 5).astype(np.uint8)[None]

    monkeypatch.setattr(SegmentPredictor, "decide", decide)


@pytest.mark.usefixtures("five_rows")
def test_the_area_in_mm2_is_that_in_the_patient_and_else_empty(user_folder: Path, images: Path, tmp_path: Path) -> None:
    dinomed.predict(user_folder / "seg", images, tmp_path / "out", backbone=user_folder / "ssl")
    with open(tmp_path / "out" / "predictions.csv", encoding="utf-8", newline="") as file:
        rows = {row["image"].split(".")[0]: row for row in csv.DictReader(file)}
    assert list(rows["ct"])[2:5] == ["area_px", "area_mm2", "area_fraction"]
    assert {row["area_px"] for row in rows.values()} == {str(5 * SHAPE[1])}
    expected = {name: f"{5 * SHAPE[1] * IN_PATIENT[name]:.2f}" if name in IN_PATIENT else "" for name in rows}
    assert {name: row["area_mm2"] for name, row in rows.items()} == expected
    for name in SPACING:
        (images / f"{name}.dcm").unlink()
    dinomed.predict(user_folder / "seg", images, tmp_path / "photos", backbone=user_folder / "ssl")
    assert "area_mm2" not in (tmp_path / "photos" / "predictions.csv").read_text()


@pytest.mark.usefixtures("five_rows")
def test_an_evaluation_compares_areas_in_mm2(user_folder: Path, images: Path, tmp_path: Path) -> None:
    table = ["image,mask,split"]
    (images / "masks").mkdir()
    for name in SPACING:
        mask = np.zeros(SHAPE, np.uint8)
        mask[:8] = 255
        Image.fromarray(mask).save(images / "masks" / f"{name}.png")
        table.append(f"{name}.dcm,masks/{name}.png,test")
    (images / "table.csv").write_text("\n".join(table))
    manifest = dinomed.scan(images, images / "table.csv", out=tmp_path / "images.parquet")
    report = dinomed.evaluate(user_folder / "seg", manifest, out=tmp_path / "report", backbone=user_folder / "ssl")
    (row,) = report["area_mm2"].values()
    pixels = {name: SHAPE[1] * area for name, area in IN_PATIENT.items()}
    assert row["n"] == len(IN_PATIENT)
    assert row["reference"] == pytest.approx(8 * np.mean(list(pixels.values())))
    assert row["predicted"] == pytest.approx(5 * np.mean(list(pixels.values())))
    assert row["error"] == pytest.approx(3 * np.mean(list(pixels.values())))
    assert "Area in mm²" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("axis", "area"), [("sagittal", 0.7 * 2.5), ("axial", 0.7 * 0.5)])
def test_a_pixel_of_a_tilted_series_is_a_parallelogram(tmp_path: Path, axis: Any, area: float) -> None:
    made = runpy.run_path(str(Path(__file__).parents[2] / "volumes" / "made.py"))
    shift = np.tan(np.radians(25)) * 2.5  # mm from slice to slice, of a gantry tilted by 25 degrees
    made["write_series"](
        tmp_path / "in", made["numbers"]((4, 5, 6)),
        ImagePositionPatient=lambda k: [-10.0, 20 + k * shift, 300 + k * 2.5],
    )  # fmt: skip
    written = dinomed.slices(tmp_path / "in", tmp_path / "out", axis=axis)
    assert PixelAreas(written.manifest).of(0) == pytest.approx(area)


def test_intervals_are_over_groups_and_without_a_spacing_there_is_nothing(images: Path) -> None:
    manifest = dinomed.scan(images)
    areas = PixelAreas(manifest)
    assert areas.is_possible
    names = [name.split(".")[0] for name in manifest.column("image")]
    reference, predicted = np.arange(2000).reshape(SHAPE) < 10, np.arange(2000).reshape(SHAPE) < 20
    compared = {"lesion": [areas.compare(row, reference, predicted) for row in range(len(names))]}
    summary = summarize_areas(compared, [str(row) for row in range(len(names))], resamples=200)
    assert summary is not None
    assert 0.4 <= summary["lesion"]["low"] <= summary["lesion"]["error"] <= summary["lesion"]["high"] <= 3.5
    others = PixelAreas(manifest.take([row for row, name in enumerate(names) if name not in IN_PATIENT]))
    without = [others.compare(row, reference, predicted) for row in range(len(names) - len(IN_PATIENT))]
    assert summarize_areas({"lesion": without}, ["a"] * len(without)) is None


def test_a_mask_outside_the_ultrasound_regions_has_no_area(tmp_path: Path) -> None:
    region = Dataset()
    region.RegionSpatialFormat, region.PhysicalUnitsXDirection, region.PhysicalUnitsYDirection = 1, 3, 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.05, 0.05
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 0, 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 49, 19
    write_dicom(tmp_path / "a.dcm", 0, Modality="US", SequenceOfUltrasoundRegions=[region])
    areas, rows = PixelAreas(dinomed.scan(tmp_path)), np.indices(SHAPE)[0]
    assert areas.compare(0, rows < 4, rows < 8) == pytest.approx((50, 100))
    assert areas.compare(0, rows < 4, rows > 18) is None
    assert areas.cell(0, rows < 4) == "50.00"
    assert areas.cell(0, rows > 25) is None
