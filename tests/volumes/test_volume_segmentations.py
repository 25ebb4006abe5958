"""`predict --volumes --dicom-seg`: volumes of DICOM series as DICOM segmentations, read back with equal geometry."""

import csv
import json
import runpy
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import EnhancedCTImageStorage

import dinomed
from dinomed.adapters.tasks.segment.predict import SegmentPredictor
from dinomed.errors import UsageError
from dinomed.io.pseudonyms import pseudonym
from dinomed.volumes.find import find_volumes
from dinomed.volumes.geometry import lps_to_ras
from dinomed.volumes.masks import read_mask_volume
from dinomed.volumes.read import read_volume

hd, nibabel = pytest.importorskip("highdicom"), pytest.importorskip("nibabel")
made = runpy.run_path(str(Path(__file__).with_name("made.py")))
numbers, write_nifti, write_series, OBLIQUE = map(made.get, ("numbers", "write_nifti", "write_series", "OBLIQUE"))
Run = Callable[..., tuple[int, str, str]]
MARKER = "PLANTED"
STRAIGHT = (1, 0, 0, 0, 1, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two series of equal geometry, an oblique one, a NIfTI file, and their slices."""
    folder = tmp_path_factory.mktemp("volumes")
    for uid, (name, orientation) in enumerate((("a", STRAIGHT), ("b", STRAIGHT), ("c", OBLIQUE))):
        write_series(folder / "in" / name, numbers((5, 24, 32), uid), orientation=orientation, uid=f"1.2.{uid + 3}",
                     SeriesDescription=MARKER, InstitutionName=MARKER, PatientComments=MARKER)  # fmt: skip
    write_nifti(folder / "in" / "n.nii.gz", numbers((6, 7, 4)))
    written = dinomed.slices(folder / "in", folder / "slices", axis="coronal", window="0,900", keep_ids=True)
    assert written.problems == []
    return folder


@pytest.fixture(autouse=True)
def bright(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predicts a part of each slice that has no symmetry."""

    def decide(self: SegmentPredictor, probabilities: np.ndarray) -> np.ndarray:
        rows, columns = np.indices(probabilities.shape[1:])
        return ((rows < 3) & (columns > 4) | (columns == 1)).astype(np.uint8)[None]

    monkeypatch.setattr(SegmentPredictor, "decide", decide)


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return {row["volume"]: row for row in csv.DictReader(file)}


def test_volumes_of_series_come_back_with_their_geometry_by_highdicom_pydicom_and_dinomed(
    user_folder: Path, folder: Path, tmp_path: Path, run: Run
) -> None:
    words = ("predict", user_folder / "seg", folder / "slices" / "manifest.csv", "-o", tmp_path / "out", "--volumes")
    options = ("--dicom-seg", "--series", folder / "in", "--backbone", user_folder / "ssl", "--no-sheet", "--json")
    code, _, err = run(*words, *options)
    assert code == 0, err
    rows = rows_of(tmp_path / "out" / "volumes.csv")
    assert {name: row["dicom_seg"] for name, row in rows.items()} == {
        "a": "volumes/a.seg.dcm", "b": "volumes/b.seg.dcm", "c": "volumes/c.seg.dcm", "n": "",
    }  # fmt: skip
    for name in ("a", "b", "c"):
        (source,) = find_volumes([folder / "in" / name]).sources
        grid = read_volume(source).grid
        expected = np.asarray(nibabel.load(tmp_path / "out" / rows[name]["file"]).dataobj)
        assert 0 < expected.sum() < expected.size
        path = tmp_path / "out" / rows[name]["dicom_seg"]
        assert np.array_equal(read_mask_volume(path, grid), expected)
        theirs = hd.seg.segread(path).get_volume(combine_segments=True)  # axes: slice, row, column
        affine = lps_to_ras(theirs.affine)[:, [2, 1, 0, 3]]
        flipped = theirs.array.transpose(2, 1, 0)
        if not np.allclose(affine[:3, 2], grid.affine[:3, 2], atol=1e-4):  # highdicom may order slices backwards
            affine = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 4], [0, 0, 0, 1.0]])
            flipped = flipped[:, :, ::-1]
        np.testing.assert_allclose(affine, grid.affine, atol=1e-5)  # decimal strings
        assert np.array_equal(flipped, expected)
        plain = dcmread(path)
        frames = dict(zip(_positions(plain), plain.pixel_array, strict=True))
        for number, frame in enumerate(source.frames):
            header = dcmread(frame.path)
            assert np.array_equal(frames[_rounded(header.ImagePositionPatient)], expected[:, :, number].T)
        references = {item.ReferencedSOPInstanceUID for item in plain.ReferencedSeriesSequence[0]
                      .ReferencedInstanceSequence}  # fmt: skip
        assert references == {dcmread(frame.path).SOPInstanceUID for frame in source.frames}
        assert plain.ReferencedSeriesSequence[0].SeriesInstanceUID == header.SeriesInstanceUID
        assert plain.FrameOfReferenceUID == header.FrameOfReferenceUID
        assert MARKER.encode() not in path.read_bytes()
        assert plain.PatientIdentityRemoved == "YES"
    series = {dcmread(tmp_path / "out" / "volumes" / f"{name}.seg.dcm").SeriesInstanceUID for name in ("a", "b", "c")}
    assert len(series) == 3
    assert MARKER not in (folder / "slices" / "volumes.json").read_text()


def _positions(plain: object) -> list[tuple[float, ...]]:
    groups = plain.PerFrameFunctionalGroupsSequence  # type: ignore[attr-defined]
    return [_rounded(group.PlanePositionSequence[0].ImagePositionPatient) for group in groups]


def _rounded(position: Iterable[float]) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in position)  # decimal strings of several lengths


def test_the_patient_is_a_placeholder_a_pseudonym_or_kept(user_folder: Path, folder: Path, tmp_path: Path) -> None:
    written = dinomed.slices(folder / "in" / "c", tmp_path / "slices", window="0,900")
    (tmp_path / "id.key").write_bytes(b"A" * 16)
    for name, options, patient in (
        ("plain", {}, "anonymous-"),
        ("keyed", {"id_key": tmp_path / "id.key"}, pseudonym(MARKER, b"A" * 16)),
        ("kept", {"keep_ids": True}, MARKER),
    ):
        dinomed.predict(
            user_folder / "seg", written.manifest, tmp_path / name, volumes=True, dicom_seg=True, series=folder / "in",
            backbone=user_folder / "ssl", sheet=False, **options,  # type: ignore[arg-type]
        )  # fmt: skip
        (path,) = (tmp_path / name / "volumes").glob("*.seg.dcm")
        assert dcmread(path).PatientID.startswith(patient)
        assert (MARKER.encode() in path.read_bytes()) == (name == "kept")


def test_a_missing_a_changed_and_a_needless_series_are_refused_in_one_line(
    user_folder: Path, folder: Path, tmp_path: Path
) -> None:
    slices = folder / "slices" / "manifest.csv"
    both = {"volumes": True, "dicom_seg": True}
    write_series(tmp_path / "other", numbers((5, 24, 32), 9))  # the geometry of a and b with other values
    for name, patient in (("original", MARKER), ("copy", "OTHER")):  # one acquisition under two UIDs
        write_series(tmp_path / "twice" / name, numbers((5, 24, 32)), uid=f"1.2.{len(name)}", patient=patient)
    alone = dinomed.slices(folder / "in" / "a", tmp_path / "alone").folder / "manifest.csv"
    nifti = dinomed.slices(folder / "in" / "n.nii.gz", tmp_path / "nifti").folder / "manifest.csv"
    old = dinomed.slices(folder / "in" / "c", tmp_path / "old").folder
    record = json.loads((old / "volumes.json").read_text())
    for volume in record["volumes"].values():
        del volume["values_sha256"]
    (old / "volumes.json").write_text(json.dumps(record))
    for data, options, message in (
        (slices, both, r"add `series=FOLDER`"),
        (slices, {"volumes": True, "series": folder / "in"}, "`series` is for DICOM segmentations of volumes"),
        (alone, both | {"series": tmp_path / "other"}, "holds no DICOM series with the geometry and the values of"),
        (alone, both | {"series": tmp_path / "twice"}, "holds 2 DICOM series with .*/copy/.*, .*/original/.*; give"),
        (slices, both | {"series": tmp_path / "none"}, "`series=.*none.* does not exist"),
        (nifti, both | {"series": folder / "in"}, "none of the volumes is of a DICOM series"),
        (old / "manifest.csv", both | {"series": folder / "in"}, "written by an earlier version"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            dinomed.predict(user_folder / "seg", data, tmp_path / "out", backbone=user_folder / "ssl", **options)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_slice_without_a_uid_leaves_the_nifti_file_and_says_why(
    user_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_series(tmp_path / "in", numbers((5, 24, 32)), StudyInstanceUID="")
    written = dinomed.slices(tmp_path / "in", tmp_path / "slices")
    dinomed.predict(
        user_folder / "seg", written.manifest, tmp_path / "out", volumes=True, dicom_seg=True, series=tmp_path / "in",
        backbone=user_folder / "ssl", sheet=False,
    )  # fmt: skip
    (row,) = rows_of(tmp_path / "out" / "volumes.csv").values()
    assert row["problem"] == (
        "no DICOM segmentation: DICOM without StudyInstanceUID, which a DICOM segmentation must reference"
    )
    assert (row["dicom_seg"], Path(row["file"]).suffix) == ("", ".gz")
    assert any("no DICOM segmentation" in record.message for record in caplog.records)


def test_an_enhanced_image_comes_back_with_its_geometry_and_its_frames_are_named(
    user_folder: Path, tmp_path: Path
) -> None:
    values, order = numbers((5, 24, 32)), [3, 0, 4, 1, 2]  # frames are in another order than their positions
    files = [dcmread(path) for path in write_series(tmp_path / "series", values, orientation=OBLIQUE)]
    enhanced, shared, measures, plane = files[0], Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = enhanced.PixelSpacing, enhanced.SliceThickness
    plane.ImageOrientationPatient = enhanced.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence, groups = [measures], [plane], []
    for number in order:
        group, position = Dataset(), Dataset()
        position.ImagePositionPatient = files[number].ImagePositionPatient
        group.PlanePositionSequence = [position]
        groups.append(group)
    enhanced.SOPClassUID = enhanced.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    enhanced.NumberOfFrames, enhanced.PixelData = 5, b"".join(files[number].PixelData for number in order)
    enhanced.SharedFunctionalGroupsSequence, enhanced.PerFrameFunctionalGroupsSequence = [shared], groups
    enhanced.SeriesDescription = enhanced.FrameComments = MARKER
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        del enhanced[name]
    (tmp_path / "in").mkdir()
    enhanced.save_as(tmp_path / "in" / "a.dcm")
    written = dinomed.slices(tmp_path / "in", tmp_path / "slices", keep_ids=True)
    assert written.problems == []
    dinomed.predict(
        user_folder / "seg", written.manifest, tmp_path / "out", volumes=True, dicom_seg=True, series=tmp_path / "in",
        backbone=user_folder / "ssl", sheet=False,
    )  # fmt: skip
    ((name, row),) = rows_of(tmp_path / "out" / "volumes.csv").items()
    assert row["problem"] == "", name
    path = tmp_path / "out" / row["dicom_seg"]
    (source,) = find_volumes([tmp_path / "in"]).sources
    grid = read_volume(source).grid
    expected = np.asarray(nibabel.load(tmp_path / "out" / row["file"]).dataobj)
    assert 0 < expected.sum() < expected.size
    assert np.array_equal(read_mask_volume(path, grid), expected)
    theirs = hd.seg.segread(path).get_volume(combine_segments=True)
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]) * [31, 23, 4, 1]
    affine, labels = lps_to_ras(theirs.affine)[:, [2, 1, 0, 3]], theirs.array.transpose(2, 1, 0)
    if not np.allclose(affine @ corners[0], grid.affine @ corners[0], atol=1e-4):  # slices backwards
        affine = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 4], [0, 0, 0, 1.0]])
        labels = labels[:, :, ::-1]
    np.testing.assert_allclose(affine @ corners.T, grid.affine @ corners.T, atol=1e-4)
    assert np.array_equal(labels, expected)
    plain = dcmread(path)
    for group in plain.PerFrameFunctionalGroupsSequence:
        (item,) = group.DerivationImageSequence[0].SourceImageSequence
        assert item.ReferencedSOPInstanceUID == enhanced.SOPInstanceUID
        place = groups[int(item.ReferencedFrameNumber) - 1].PlanePositionSequence[0].ImagePositionPatient
        assert _rounded(group.PlanePositionSequence[0].ImagePositionPatient) == _rounded(place)
    assert MARKER.encode() not in path.read_bytes()
