"""DICOM segmentations: written with the geometry of their image and without the patient, and read back by three
libraries: highdicom, pydicom, dinomed."""

import runpy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from dinomed.adapters.tasks.dicom_seg import DicomSegmentations
from dinomed.adapters.tasks.segment.mask_schema import MaskSchema
from dinomed.datasets.scan.scan import scan
from dinomed.errors import DinomedError
from dinomed.images.dicom import segmentation as segmentation_module
from dinomed.images.dicom.segmentation import read_segmentation
from dinomed.images.dicom.spacing import PixelSpacing, read_pixel_spacing
from dinomed.images.dicom.write_segmentation import (
    SegmentationSettings,
    build_segmentation,
    read_source,
    write_segmentation,
)
from dinomed.images.labelmap import read_label_map
from dinomed.images.read import MaskSizeError, UnreadableImage, read_mask
from dinomed.io.pseudonyms import pseudonym

hd = pytest.importorskip("highdicom")
MARKER = "Planted"
SHAPE = (20, 30)
LESION = np.zeros(SHAPE, np.uint8)
LESION[5:15, 10:20] = 1
SETTINGS = SegmentationSettings(("lesion",), "0123456789abcdef" * 4)


def image(path: Path, **elements: Any) -> Path:
    """A slice of a CT whose patient, study, hospital and device have names."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SOPClassUID = CTImageStorage
    for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(file, name, generate_uid(entropy_srcs=[name]))
    file.SpecificCharacterSet, file.PatientName, file.PatientBirthDate = "ISO_IR 100", f"{MARKER}^Ä", "19500101"
    file.PatientSex, file.StudyDate, file.StudyTime = "F", "20200102", ""
    for name in ("PatientID", "AccessionNumber", "StudyID", "InstitutionName", "OperatorsName", "StationName",
                 "Manufacturer", "StudyDescription", "PatientComments", "OtherPatientNames", "SeriesDescription",
                 "ProtocolName"):  # fmt: skip
        setattr(file, name, MARKER)
    file.Modality, file.ImagePositionPatient = "CT", [-10.5, 20.25, 300.0]
    file.ImageOrientationPatient, file.PixelSpacing = [1, 0, 0, 0, 0.8, -0.6], [0.7, 0.5]
    file.SliceThickness, file.SamplesPerPixel, file.PhotometricInterpretation = 2.5, 1, "MONOCHROME2"
    file.Rows, file.Columns = SHAPE
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit, file.PixelRepresentation, file.PixelData = 15, 0, bytes(2 * SHAPE[0] * SHAPE[1])
    for name, value in elements.items():
        if value is None:
            del file[name]
        else:
            setattr(file, name, value)
    file.file_meta.MediaStorageSOPClassUID, file.file_meta.MediaStorageSOPInstanceUID = file.SOPClassUID, generate_uid()
    with warnings.catch_warnings(action="ignore"):
        file.save_as(path, enforce_file_format=True)
    return path


def written(tmp_path: Path, masks: np.ndarray, settings: SegmentationSettings = SETTINGS, **elements: Any) -> Path:
    source = read_source(image(tmp_path / "image.dcm", **elements))
    path = tmp_path / "image.seg.dcm"
    write_segmentation(path, build_segmentation(source, masks, settings, 1))
    return path


def test_a_mask_comes_back_with_the_geometry_and_the_references_of_its_image(tmp_path: Path) -> None:
    path = written(tmp_path, LESION[None])
    source, plain, theirs = dcmread(tmp_path / "image.dcm"), dcmread(path), hd.seg.segread(path)
    np.testing.assert_array_equal(plain.pixel_array, LESION)
    by_source = theirs.get_pixels_by_source_instance([source.SOPInstanceUID], combine_segments=True)
    np.testing.assert_array_equal(by_source[0], LESION)
    geometry = theirs.get_volume().get_geometry()
    np.testing.assert_allclose(geometry.position, source.ImagePositionPatient)
    np.testing.assert_allclose(geometry.spacing[1:], source.PixelSpacing)
    np.testing.assert_allclose([*geometry.direction[:, 2], *geometry.direction[:, 1]], source.ImageOrientationPatient)
    assert plain.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert (plain.StudyInstanceUID, plain.Modality) == (source.StudyInstanceUID, "SEG")
    assert plain.SeriesInstanceUID != source.SeriesInstanceUID
    series = plain.ReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    assert series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    segment = plain.SegmentSequence[0]
    assert (segment.SegmentLabel, segment.SegmentAlgorithmType) == ("lesion", "AUTOMATIC")
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Lesion"
    assert read_pixel_spacing(path) == PixelSpacing(0.7, 0.5, "patient")
    np.testing.assert_array_equal(read_mask(path, size=SHAPE), LESION)
    with pytest.raises(MaskSizeError, match="the mask is 30x20"):
        read_mask(path, size=(30, 20))


def test_classes_that_overlap_and_an_empty_class_have_a_segment_each(tmp_path: Path) -> None:
    masks = np.stack([LESION, np.roll(LESION, 3, axis=0), np.zeros_like(LESION)])
    settings = SegmentationSettings(("nodule", "liver", "Müll\\"), SETTINGS.model)
    path = written(tmp_path, masks, settings)
    theirs = hd.seg.segread(path)
    source = dcmread(tmp_path / "image.dcm").SOPInstanceUID
    np.testing.assert_array_equal(theirs.get_pixels_by_source_instance([source])[0], np.moveaxis(masks, 0, -1))
    assert [segment.SegmentLabel for segment in theirs.SegmentSequence] == ["nodule", "liver", "Müll"]
    read = read_segmentation(path)
    assert (read.segments, len(set(read.planes))) == ((1, 2, 3), 1)
    np.testing.assert_array_equal(read_mask(path), masks.any(axis=0))
    with pytest.raises(UnreadableImage, match="the segments overlap"):
        read_label_map(path)
    apart = written(tmp_path, np.stack([LESION, np.roll(LESION, 10, axis=1)]), SegmentationSettings(("a", "b"), "m"))
    np.testing.assert_array_equal(read_label_map(apart), LESION + 2 * np.roll(LESION, 10, axis=1))


def test_no_identifier_of_the_input_is_in_a_segmentation_but_its_uids(tmp_path: Path) -> None:
    lossy = {"LossyImageCompression": "01", "LossyImageCompressionRatio": 10}
    hidden = {"PositionReferenceIndicator": f"{MARKER} nasion", "LossyImageCompressionMethod": f"{MARKER}"}
    path = written(tmp_path, LESION[None], **lossy, **hidden)
    content = path.read_bytes()
    for secret in (MARKER, "19500101", "20200102"):
        assert secret.encode() not in content
    segmentation = dcmread(path)
    assert str(segmentation.PatientID).startswith("anonymous-")
    assert segmentation.PatientID == segmentation.PatientName
    for name in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "StudyID"):
        assert not segmentation[name].value, name
    assert segmentation.PatientIdentityRemoved == "YES"
    assert (segmentation.LossyImageCompression, segmentation.LossyImageCompressionRatio) == ("01", 10)
    methods = ["ISO_10918_1", "ISO_15444_1"]
    known = written(tmp_path, LESION[None], **lossy, LossyImageCompressionMethod=methods)
    assert dcmread(known).LossyImageCompressionMethod == methods
    patient = {element.keyword for element in segmentation if element.tag.group == 0x0010}
    assert patient == {"PatientName", "PatientID", "PatientBirthDate", "PatientSex"}  # type 2 of the standard


RETAINED = {
    "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "ReferencedSOPInstanceUID", "SourceImageSequence",
}  # fmt: skip
"""UIDs of the image that the standard requires: without them a segmentation could not reference its image."""
OF_THE_SEGMENTATION = {
    "ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime", "SeriesDate", "SeriesTime",
    "SeriesDescription", "DeviceSerialNumber", "DimensionOrganizationUID", "MediaStorageSOPInstanceUID",
    "SOPInstanceUID", "TrackingUID", "ContributionDescription",
}  # fmt: skip
"""Attributes of the profile that describe the segmentation; their values are not those of the image."""
PLACEHOLDERS = {"PatientID", "PatientName"}


def planted(keyword: str) -> Any:
    """A value of the attribute, which occurs in no segmentation by chance."""
    kinds = {"DA": "19870605", "TM": "010203.040506", "DT": "19870605010203", "UI": "1.2.3.987654", "SQ": [Dataset()],
             "AS": "077Y", "DS": "9876.5", "IS": "98765", "US": 54321, "OB": b"PLANTED!", "CS": "PLANTED"}  # fmt: skip
    return kinds.get(dictionary_VR(keyword).split()[0], MARKER)


def test_of_the_attributes_of_the_basic_profile_a_segmentation_has_those_it_needs(tmp_path: Path) -> None:
    table = runpy.run_path(str(Path(__file__).with_name("basic_profile.py")))
    profile = {name for part in ("REMOVED", "REPLACED", "UIDS") for name in table[part].split()}
    assert {name for name in profile if tag_for_keyword(name) is None} == set()
    fixed = {"SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"}
    elements = {name: planted(name) for name in sorted(profile - fixed) if tag_for_keyword(name) >> 16 > 2}
    path = written(tmp_path, LESION[None], **elements)
    original, uids = dcmread(tmp_path / "image.dcm"), {}
    for element in original:
        if element.VR == "UI":
            uids[str(element.value)] = element.keyword
    segmentation, present = dcmread(path), set()
    for element in [*segmentation.file_meta.iterall(), *segmentation.iterall()]:
        assert not element.tag.is_private, element
        if element.VR == "UI" and str(element.value) in uids and "SOPClass" not in element.keyword:
            assert element.keyword in RETAINED, element
        if element.keyword in profile and element.value:
            present.add(element.keyword)
            if element.keyword in original and element.keyword not in RETAINED:
                assert str(element.value) != str(original[element.keyword].value), element
    assert present <= RETAINED | OF_THE_SEGMENTATION | PLACEHOLDERS, present


def test_the_patient_of_a_segmentation_is_the_pseudonym_of_a_key(tmp_path: Path) -> None:
    key = b"a secret of the hospital"
    settings = SegmentationSettings(("lesion",), SETTINGS.model, key=key)
    segmentation = dcmread(written(tmp_path, LESION[None], settings))
    assert segmentation.PatientID == segmentation.PatientName == pseudonym(MARKER, key)  # as the group of a scan
    assert segmentation.PatientIdentityRemoved == "YES"
    unknown = dcmread(written(tmp_path, LESION[None], settings, PatientID=""))
    assert unknown.PatientID == pseudonym(str(unknown.StudyInstanceUID), key)
    assert key.decode() not in repr(settings)


def test_the_patient_of_a_segmentation_is_that_of_another_image_of_the_study(tmp_path: Path) -> None:
    folder, key = tmp_path / "in", b"a secret of the hospital"
    folder.mkdir()
    (tmp_path / "id.key").write_bytes(key)
    for name, elements in (("a", {}), ("b", {"PatientID": ""}), ("c", {"PatientID": None, "StudyInstanceUID": "1.2"})):
        image(folder / f"{name}.dcm", SeriesDescription=name, **elements)
    manifest = scan(folder, id_key=tmp_path / "id.key", make_split=False).manifest
    segmentations = DicomSegmentations(manifest, MaskSchema("binary", ("lesion",), (1,)), "m", False, key)
    built = segmentations.build(segmentations.read_sources(range(3)), range(3), np.stack([LESION[None]] * 3))
    assert [one.PatientID for one in built] == manifest.column("group")
    assert manifest.column("group") == [pseudonym(patient, key) for patient in (MARKER, MARKER, "1.2")]


def test_identifiers_are_copied_on_request_and_those_of_the_hospital_are_not(tmp_path: Path) -> None:
    path = written(tmp_path, LESION[None], SegmentationSettings(("lesion",), SETTINGS.model, keep_ids=True))
    segmentation = dcmread(path)
    assert (segmentation.PatientName, segmentation.PatientID) == (f"{MARKER}^Ä", MARKER)
    assert (segmentation.PatientBirthDate, segmentation.PatientSex) == ("19500101", "F")
    assert (segmentation.StudyDate, segmentation.AccessionNumber, segmentation.StudyID) == ("20200102", MARKER, MARKER)
    assert "PatientIdentityRemoved" not in segmentation
    for name in ("InstitutionName", "OperatorsName", "StationName", "PatientComments", "OtherPatientNames"):
        assert name not in segmentation


def test_an_image_without_a_position_has_a_segmentation_too(tmp_path: Path) -> None:
    absent = dict.fromkeys(("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient"))
    photograph = {"SOPClassUID": SecondaryCaptureImageStorage, **absent}
    path = written(tmp_path, LESION[None], **photograph)
    np.testing.assert_array_equal(dcmread(path).pixel_array, LESION)
    np.testing.assert_array_equal(read_mask(path, size=SHAPE), LESION)
    hd.seg.segread(path)


def test_an_image_without_what_a_segmentation_needs_has_one_reason(tmp_path: Path) -> None:
    reasons = {
        "StudyInstanceUID": "DICOM without StudyInstanceUID, which a DICOM segmentation must reference",
        "SeriesInstanceUID": "DICOM without SeriesInstanceUID, which a DICOM segmentation must reference",
    }
    for name, reason in reasons.items():
        with pytest.raises(DinomedError) as refused:
            read_source(image(tmp_path / "a.dcm", **{name: None}))
        assert str(refused.value) == reason
    with pytest.raises(DinomedError, match="a DICOM of several frames"):
        read_source(image(tmp_path / "a.dcm", NumberOfFrames=2))
    (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM" + bytes(range(256)))
    with pytest.raises(DinomedError, match="DICOM"):
        read_source(tmp_path / "a.dcm")
    truncated = image(tmp_path / "a.dcm", SharedFunctionalGroupsSequence=[Dataset()])
    content = truncated.read_bytes()
    place = content.index(b"\x00\x52\x29\x92SQ") + 12
    truncated.write_bytes(content[: place - 4] + b"\4\0\0\0" + content[place : place + 4] + content[place + 8 :])
    with pytest.raises(DinomedError, match="damaged or truncated DICOM"):
        read_source(truncated)
    several = read_source(image(tmp_path / "a.dcm"))
    several.Rows = [20, 20]
    with pytest.raises(DinomedError, match="the elements of the DICOM do not fit"):
        build_segmentation(several, LESION[None], SETTINGS, 1)
    odd = read_source(image(tmp_path / "b.dcm", PatientSex=MARKER))
    with pytest.raises(DinomedError) as refused:
        build_segmentation(odd, LESION[None], SegmentationSettings(("lesion",), "m", keep_ids=True), 1)
    assert str(refused.value).startswith("the elements of the DICOM do not fit a DICOM segmentation")
    assert MARKER not in str(refused.value)
    with pytest.raises(UnreadableImage, match="a DICOM image; masks are read from DICOM segmentations"):
        read_mask(tmp_path / "b.dcm")


def test_tiles_and_repeated_frames_are_no_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, np.stack([LESION, LESION]), SegmentationSettings(("a", "b"), "m"))

    def changed(**elements: Any) -> Path:
        segmentation = dcmread(path)
        for name, value in elements.items():
            setattr(segmentation, name, value)
        segmentation.save_as(tmp_path / "changed.dcm")
        return tmp_path / "changed.dcm"

    def reason(**elements: Any) -> str:
        with pytest.raises(UnreadableImage) as refused:
            read_mask(changed(**elements))
        return refused.value.reason

    groups = dcmread(path).PerFrameFunctionalGroupsSequence
    assert "a segmentation in tiles" in reason(DimensionOrganizationType="TILED_FULL")
    assert reason(PerFrameFunctionalGroupsSequence=[]) == "2 frames, of which 0 are described"
    twice = reason(PerFrameFunctionalGroupsSequence=[groups[0], groups[0]])
    assert twice == "two frames of one segment and one plane; a mask has one"
    monkeypatch.setattr(segmentation_module, "MAX_BYTES", 3 * LESION.size)
    assert read_segmentation(path).frames.nbytes == 2 * LESION.size
    labels = {"SegmentationType": "LABELMAP", "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7,
              "PixelData": LESION.tobytes() * 2}  # fmt: skip
    np.testing.assert_array_equal(read_segmentation(changed(**labels)).frames, [LESION, LESION])
    monkeypatch.setattr(segmentation_module, "MAX_BYTES", 2 * LESION.size - 1)
    assert "2 frames, 0.0 GB of samples" in reason(**labels)
    assert "2 frames, 0.0 GB of samples" in reason()


def test_the_mask_of_an_image_has_one_plane(tmp_path: Path) -> None:
    path = written(tmp_path, np.stack([LESION, LESION]), SegmentationSettings(("a", "b"), "m"))
    segmentation = dcmread(path)
    for group, height in zip(segmentation.PerFrameFunctionalGroupsSequence, (300, 302.5), strict=True):
        group.PlanePositionSequence[0].ImagePositionPatient = [-10.5, 20.25, height]
    segmentation.save_as(path)
    assert len(read_segmentation(path).frames) == 2
    with pytest.raises(UnreadableImage, match="a segmentation of 2 planes; the mask of an image has one"):
        read_mask(path)


def test_a_segmentation_of_another_image_is_no_mask_of_a_scan(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "masks").mkdir(parents=True)
    names = ("good", "other_image", "other_series", "turned", "moved")
    other = generate_uid(entropy_srcs=["other"])
    changes: dict[str, dict[str, Any]] = {
        "other_image": {"SOPInstanceUID": other}, "other_series": {"SeriesInstanceUID": other},
        "turned": {"ImageOrientationPatient": [-1, 0, 0, 0, -0.8, 0.6]},
        "moved": {"ImagePositionPatient": [-10.5, 20.25, 302.5]},
    }  # fmt: skip
    for name in names:
        segmentation = written(tmp_path, LESION[None])
        segmentation.rename(folder / "masks" / f"{name}.dcm")
        image(folder / f"{name}.dcm", **changes.get(name, {}))
    (tmp_path / "t.csv").write_text("image,mask\n" + "".join(f"{n}.dcm,masks/{n}.dcm\n" for n in names))
    result = scan(folder, tmp_path / "t.csv")
    found = dict(zip(result.manifest.column("image"), result.manifest.column("mask"), strict=True))
    assert found == dict.fromkeys([f"{name}.dcm" for name in names]) | {"good.dcm": "masks/good.dcm"}
    reasons = {Path(name).stem: reason for name, reason in result.unreadable}
    assert reasons == {
        "other_image": "mask of other_image.dcm: a DICOM segmentation of another image: it references other SOP "
        "Instance UIDs",
        "other_series": "mask of other_series.dcm: a DICOM segmentation of another image: it references another series",
        "turned": "mask of turned.dcm: a DICOM segmentation with another orientation in the patient than its image",
        "moved": "mask of moved.dcm: a DICOM segmentation with another position in the patient than its image",
    }
    unread = scan(folder, tmp_path / "t.csv", decode=False, make_split=False)
    assert {name for name, _ in unread.unreadable} == {name for name, _ in result.unreadable}
