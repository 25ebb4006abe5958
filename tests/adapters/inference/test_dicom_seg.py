"""`predict --dicom-seg`: a segmentation for each DICOM image, also after an interruption, and one line otherwise."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from dinomed.adapters.fit import fit_head
from dinomed.adapters.fitting.config import FitConfig
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.tasks import dicom_seg
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.apps.api.heads import predict
from dinomed.apps.cli import main
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.images.read import read_mask
from dinomed.io.pseudonyms import key_check, pseudonym

pytest.importorskip("highdicom")
MARKER = "Planted"


@pytest.fixture(scope="module")
def adapter(backbone: FrozenBackbone, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    quick = FitConfig(epochs=1, batch_size=16, min_steps=0, learning_rate=0.02)
    fit_head(backbone, manifest, folder / "seg", SegmentConfig(fit=quick, image_size=32), cache=folder / "cache")
    return folder / "seg"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three pictures of two studies, one of them without a Series Instance UID."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for index, name in enumerate(("a.dcm", "sub/a.dcm", "incomplete.dcm")):
        file = Dataset()
        file.file_meta = FileMetaDataset()
        file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[name])
        file.StudyInstanceUID = generate_uid(entropy_srcs=[f"study {index % 2}"])
        if name != "incomplete.dcm":
            file.SeriesInstanceUID = generate_uid(entropy_srcs=[f"series {index % 2}"])
        file.PatientName, file.PatientID, file.Modality = MARKER, MARKER, "OT"
        file.Rows, file.Columns, file.SamplesPerPixel, file.PlanarConfiguration = 40 + index, 50, 3, 0
        file.PhotometricInterpretation, file.PixelRepresentation = "RGB", 0
        file.BitsAllocated, file.BitsStored, file.HighBit = 8, 8, 7
        file.PixelData = np.random.default_rng(index).integers(0, 256, (40 + index, 50, 3), np.uint8).tobytes()
        file.save_as(folder / name, enforce_file_format=True)
    return folder


def exit_code(words: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        main(words)
    return int(end.value.code or 0)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_dicom_has_a_segmentation_equal_to_its_mask(adapter: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = predict(adapter, images, out, dicom_seg=True)
    rows = {row["image"]: row for row in rows_of(out / "predictions.csv")}
    assert {name: row["dicom_seg"] for name, row in rows.items()} == {
        "a.dcm": "a.seg.dcm",
        "sub/a.dcm": "sub/a.seg.dcm",
    }
    for name, row in rows.items():
        mask, segmentation = read_mask(out / row["mask"]), dcmread(out / row["dicom_seg"])
        np.testing.assert_array_equal(segmentation.pixel_array, mask)
        np.testing.assert_array_equal(read_mask(out / row["dicom_seg"], size=mask.shape), mask)
        reference = segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]
        assert reference.ReferencedSOPInstanceUID == dcmread(images / name).SOPInstanceUID
        assert MARKER.encode() not in (out / row["dicom_seg"]).read_bytes()
    assert done.unreadable == [
        ("incomplete.dcm", "DICOM without SeriesInstanceUID, which a DICOM segmentation must reference")
    ]
    assert rows_of(out / "unreadable.csv")[0]["image"] == "incomplete.dcm"
    assert not (out / "incomplete.png").exists()
    assert predict(adapter, images / "a.dcm", tmp_path / "kept", dicom_seg=True, keep_ids=True).images == 1
    assert dcmread(tmp_path / "kept" / "a.seg.dcm").PatientID == MARKER
    (tmp_path / "id.key").write_bytes(b"A" * 16)
    predict(adapter, images / "a.dcm", tmp_path / "keyed", dicom_seg=True, id_key=tmp_path / "id.key")
    assert dcmread(tmp_path / "keyed" / "a.seg.dcm").PatientID == pseudonym(MARKER, b"A" * 16)
    plan = json.loads((tmp_path / "keyed" / "predictions.json").read_text())  # an interruption continues with this key
    assert plan["settings"]["id_key"] == key_check(b"A" * 16)


def test_an_interrupted_prediction_continues_and_overwrite_removes_its_segmentations(
    adapter: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, predictor, written = tmp_path / "out", load_adapter(adapter), []
    monkeypatch.setattr(predictor, "batch_size", 1)
    write = dicom_seg.write_segmentation

    def stop_at_the_second(path: Path, segmentation: object) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(path, segmentation)

    monkeypatch.setattr(dicom_seg, "write_segmentation", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        predict(predictor, images, out, dicom_seg=True)
    assert [path.name for path in out.rglob("*.seg.dcm")] == ["a.seg.dcm"]
    with pytest.raises(UsageError, match="unfinished prediction"):
        predict(predictor, images, out)
    monkeypatch.setattr(dicom_seg, "write_segmentation", write)
    before = written[0].read_bytes()
    done = predict(predictor, images, out, dicom_seg=True)
    assert (done.images, done.kept) == (2, 1)
    assert written[0].read_bytes() == before
    assert len(list(out.rglob("*.seg.dcm"))) == 2
    predict(predictor, images, out, overwrite=True)
    assert not list(out.rglob("*.seg.dcm"))


def test_other_images_and_other_tasks_are_refused_with_one_line(
    adapter: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (30, 20)).save(images / "b.png")
    words = ["predict", str(adapter), str(images), "-o", str(tmp_path / "out"), "--quiet", "--device", "cpu"]
    assert exit_code([*words, "--dicom-seg"]) == 2
    error = capsys.readouterr().err.strip()
    assert "--dicom-seg needs DICOM images, and 1 of 4 are not (the first: b.png)" in " ".join(error.split())
    assert not (tmp_path / "out").exists()
    assert exit_code([*words, "--keep-ids"]) == 2
    assert "add --dicom-seg" in " ".join(capsys.readouterr().err.split())
    (images / "b.png").unlink()
    assert exit_code([*words, "--dicom-seg"]) == 1  # one of the three has no segmentation
    assert "1 images have no prediction" in " ".join(capsys.readouterr().err.split())
