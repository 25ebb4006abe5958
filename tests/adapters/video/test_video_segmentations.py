"""`predict --dicom-seg` of DICOM files of several frames: read back by highdicom and pydicom, or one reason."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import MPEG4HP41, EnhancedCTImageStorage

import dinomed
from dinomed.adapters.video import dicom_seg
from dinomed.errors import DinomedError, UsageError
from dinomed.images.dicom.segmentation import read_segmentation
from dinomed.io.pseudonyms import pseudonym
from dinomed.video.video import Video
from dinomed.video.write import writing_video

hd = pytest.importorskip("highdicom")
tools = runpy.run_path(str(Path(__file__).with_name("written.py")))
cine = runpy.run_path(str(Path(__file__).parents[2] / "video" / "cine.py"))
Dark, only, rows_of = tools["Dark"], tools["only"], tools["rows_of"]
write_dicom, write_dicom_video = cine["write_dicom"], cine["write_dicom_video"]
SIZE, COUNT = (27, 31), 5  # no multiple of eight pixels
PLANTED = {
    "PatientBirthDate": "19020304", "AccessionNumber": "PlantedACC", "StudyDate": "19010203", "PatientID": "PlantedID",
    "ReferringPhysicianName": "Planted^Doctor", "ImageComments": "Planted words", "InstitutionName": "Planted house",
}  # fmt: skip
UIDS = {"StudyInstanceUID": "1.2.4", "SeriesInstanceUID": "1.2.5", "Modality": "US", "FrameTime": 40}


def lesions() -> list[np.ndarray]:
    """A mask for each frame; that of the second one is empty."""
    rows, columns = np.indices(SIZE)
    masks = [((rows - 4 - 4 * k) ** 2 + (columns - 5 - 5 * k) ** 2 < 20).astype(np.uint8) for k in range(COUNT)]
    masks[1][:] = 0
    return masks


def write_cine(path: Path, **elements: object) -> Path:
    frames = [np.where(mask, 20, 220).astype(np.uint8) for mask in lesions()]
    return Path(write_dicom(path, frames, **UIDS | elements))


class Inside(Dark):  # type: ignore[valid-type, misc]
    """`Dark` with the lesion as the class a, and all other pixels as the class b."""

    def __init__(self) -> None:
        super().__init__("a", "b")

    def predict(self, images: Any) -> list[Any]:
        results: list[Any] = super().predict(images)
        for result in results:
            result.masks["b"] = 1 - result.masks["a"]
        return results


def sources(plain: Any) -> list[tuple[str, int]]:
    """The image and the frame that each frame of a segmentation names."""
    items = [
        group.DerivationImageSequence[0].SourceImageSequence[0] for group in plain.PerFrameFunctionalGroupsSequence
    ]
    return [(item.ReferencedSOPInstanceUID, int(item.ReferencedFrameNumber)) for item in items]


def test_a_cine_has_a_segmentation_whose_frames_name_those_of_the_file(tmp_path: Path) -> None:
    video = write_cine(tmp_path / "in.dcm", **PLANTED)
    done = dinomed.predict(Dark(), video, tmp_path / "out", dicom_seg=True)
    assert done.unreadable == []
    path = only(tmp_path / "out") / "mask.seg.dcm"
    assert "mask.seg.dcm" in done.answers[0]["files"]
    plain, expected = dcmread(path), np.stack(lesions())
    assert np.array_equal(plain.pixel_array, expected)
    assert sources(plain) == [("1.2.3", number) for number in range(1, COUNT + 1)]
    groups = plain.PerFrameFunctionalGroupsSequence
    indices = [list(group.FrameContentSequence[0].DimensionIndexValues) for group in groups]
    assert indices == [[1, number] for number in range(1, COUNT + 1)]
    places = [int(group.FrameContentSequence[0].InStackPositionNumber) for group in groups]
    assert places == list(range(1, COUNT + 1))
    assert len(plain.DimensionIndexSequence) == 2
    assert "PixelMeasuresSequence" not in plain.SharedFunctionalGroupsSequence[0]  # the file states no spacing
    assert "FrameOfReferenceUID" not in plain
    theirs = hd.seg.segread(path)
    order = [4, 1, 2, 5, 3]
    pixels = theirs.get_pixels_by_source_frame("1.2.3", order, combine_segments=True, ignore_spatial_locations=True)
    assert np.array_equal(pixels, expected[np.array(order) - 1])
    ours = read_segmentation(path)
    assert np.array_equal(ours.frames, expected)
    assert len(set(ours.planes)) == COUNT
    content = path.read_bytes()
    assert [value for value in ("Planted", *PLANTED.values()) if str(value).encode() in content] == []
    several = dinomed.predict(Inside(), video, tmp_path / "several", dicom_seg=True)
    path = only(tmp_path / "several") / "mask.seg.dcm"
    plain = dcmread(path)
    assert [segment.SegmentLabel for segment in plain.SegmentSequence] == ["a", "b"]
    assert np.array_equal(plain.pixel_array, np.concatenate([expected, 1 - expected]))
    planes = hd.seg.segread(path).get_pixels_by_source_frame("1.2.3", order, ignore_spatial_locations=True)
    ordered = expected[np.array(order) - 1]
    assert np.array_equal(planes, np.stack([ordered, 1 - ordered], axis=-1))
    dinomed.predict(Dark("a", "b"), video, several.folder, overwrite=True)
    assert not path.exists()


@pytest.mark.parametrize("shared", [False, True], ids=["in the image", "in its functional groups"])
def test_the_pixel_spacing_of_a_cine_is_that_of_its_segmentation(shared: bool, tmp_path: Path) -> None:
    measures, groups = Dataset(), Dataset()
    measures.PixelSpacing, groups.PixelMeasuresSequence = [0.5, 0.25], [measures]
    elements = {"SharedFunctionalGroupsSequence": [groups]} if shared else {"PixelSpacing": [0.5, 0.25]}
    video = write_cine(tmp_path / "in.dcm", **elements)
    dinomed.predict(Dark(), video, tmp_path / "out", dicom_seg=True)
    (written,) = dcmread(only(tmp_path / "out") / "mask.seg.dcm").SharedFunctionalGroupsSequence
    assert list(written.PixelMeasuresSequence[0].PixelSpacing) == [0.5, 0.25]
    assert "PlaneOrientationSequence" not in written


def test_frames_of_other_numbers_or_sizes_or_of_a_damaged_video_are_refused(tmp_path: Path) -> None:
    video, out = write_cine(tmp_path / "in.dcm"), tmp_path / "mask.seg.dcm"
    options = dicom_seg.VideoSegOptions({video: 1}, {video: None})
    numbers = list(range(COUNT))
    for order, size, problem, message in (
        ([0, 1, 2, 4, 5], SIZE, None, "the numbers of its frames are not those of the DICOM header"),
        (numbers, SIZE, "cut off", "frames may be missing before others, whose numbers would be wrong: cut off"),
        (numbers, (SIZE[0], SIZE[1] + 1), None, "the mask has another size than its DICOM"),
        (numbers, SIZE[::-1], None, "the mask has another size than its DICOM"),  # as many pixels
    ):
        segmentation = dicom_seg.VideoSegmentation(video, ["lesion"], "0" * 64, options)
        for number in order:
            segmentation.add(number, [np.zeros(size, bool)])
        with pytest.raises(DinomedError, match=message):
            segmentation.write(out, problem)
    assert not out.exists()


def test_a_video_stream_in_a_dicom_file_has_a_segmentation_if_its_header_counts_the_frames(tmp_path: Path) -> None:
    size = (48, 64)
    with writing_video(tmp_path / "plain.avi", size, 10) as append:
        for number in range(6):
            append(np.roll(np.arange(48 * 64, dtype=np.uint32).reshape(size).astype(np.uint8), 4 * number, 1))
    stream, uid = (tmp_path / "plain.avi").read_bytes(), {"SeriesInstanceUID": "1.2.5"}
    good = write_dicom_video(tmp_path / "good.dcm", [stream], MPEG4HP41, size, 6, **uid)
    dinomed.predict(Dark(), good, tmp_path / "good", dicom_seg=True)
    masks = tools["masks_in"](only(tmp_path / "good") / "mask.avi")
    plain = dcmread(only(tmp_path / "good") / "mask.seg.dcm")
    assert np.array_equal(255 * plain.pixel_array, masks)
    wrong = write_dicom_video(tmp_path / "wrong.dcm", [stream], MPEG4HP41, size, 7, **uid)
    done = dinomed.predict(Dark(), wrong, tmp_path / "wrong", dicom_seg=True)
    reasons = [reason for _, reason in done.unreadable]
    assert "no DICOM segmentation: 6 of 7 frames of the DICOM header have a prediction, and all are needed" in reasons
    assert sorted(path.name for path in only(tmp_path / "wrong").iterdir()) == sorted(done.answers[0]["files"])
    assert not (only(tmp_path / "wrong") / "mask.seg.dcm").exists()
    data, cut = good.read_bytes(), tmp_path / "cut.dcm"
    size_of_rest = len(data) * 7 // 10
    cut.write_bytes(data[:size_of_rest])
    count = Video(cut).count_frames()
    assert 0 < count < 6
    write_dicom_video(cut, [stream], MPEG4HP41, size, count, **uid)  # the number of frames that are left
    cut.write_bytes(cut.read_bytes()[:size_of_rest])
    done = dinomed.predict(Dark(), cut, tmp_path / "cut", dicom_seg=True)
    reasons = [reason for _, reason in done.unreadable]
    assert any(reason.startswith("no DICOM segmentation: frames may be missing before others") for reason in reasons)


def write_enhanced(path: Path, positions: list[float], tilt: float = 0, stretch: float = 0) -> Path:
    """Write an enhanced image; with `tilt` or `stretch`, the frames have orientations or spacings that differ by it, or
    by a multiple of it."""
    shared, measures, plane, groups = Dataset(), Dataset(), Dataset(), []
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.25], 2
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    for number, place in enumerate(positions):
        group, position = Dataset(), Dataset()
        if tilt:
            plane = Dataset()
            plane.ImageOrientationPatient = [1, tilt * number, 0, 0, 1, 0]
            group.PlaneOrientationSequence = [plane]
        if stretch:
            measures = Dataset()
            measures.PixelSpacing, measures.SliceThickness = [0.5, 0.25 + stretch * number], 2
            group.PixelMeasuresSequence = [measures]
        position.ImagePositionPatient = [1, 2, place]
        group.PlanePositionSequence = [position]
        groups.append(group)
    write_cine(path, SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=groups, Modality="CT",
               FrameOfReferenceUID="1.2.6", SOPClassUID=EnhancedCTImageStorage)  # fmt: skip
    return path


def test_an_enhanced_image_has_a_segmentation_with_the_places_of_its_frames(tmp_path: Path) -> None:
    places = [6.0, 0.0, 8.0, 2.0, 4.0]  # frames are in another order than their positions
    done = dinomed.predict(Dark(), write_enhanced(tmp_path / "in.dcm", places), tmp_path / "out", dicom_seg=True)
    assert done.unreadable == []
    path, expected = only(tmp_path / "out") / "mask.seg.dcm", np.stack(lesions())
    plain = dcmread(path)
    numbers = [number for _, number in sources(plain)]
    assert sorted(numbers) == [1, 2, 3, 4, 5]
    assert np.array_equal(plain.pixel_array, expected[np.array(numbers) - 1])
    for number, group in zip(numbers, plain.PerFrameFunctionalGroupsSequence, strict=True):
        assert list(group.PlanePositionSequence[0].ImagePositionPatient) == [1, 2, places[number - 1]]
    assert plain.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 2
    volume = hd.seg.segread(path).get_volume(combine_segments=True)
    assert volume.spacing == pytest.approx((2, 0.5, 0.25))
    along = np.argsort(places) if volume.affine[2, 0] > 0 else np.argsort(places)[::-1]
    assert np.array_equal(volume.array, expected[along])
    rounded = write_enhanced(tmp_path / "rounded.dcm", places, 1e-9)
    assert dinomed.predict(Dark(), rounded, tmp_path / "rounded", dicom_seg=True).unreadable == []
    again = dcmread(only(tmp_path / "rounded") / "mask.seg.dcm")
    assert np.array_equal(again.pixel_array, plain.pixel_array)
    (shared,) = again.SharedFunctionalGroupsSequence
    assert list(shared.PlaneOrientationSequence[0].ImageOrientationPatient) == [1, 0, 0, 0, 1, 0]
    tilted = write_enhanced(tmp_path / "tilted.dcm", places, 1e-2)
    done = dinomed.predict(Dark(), tilted, tmp_path / "tilted", dicom_seg=True)
    assert ["several orientations" in reason for _, reason in done.unreadable] == [True]


def test_frames_of_several_spacings_have_no_segmentation(tmp_path: Path) -> None:
    places = [6.0, 0.0, 8.0, 2.0, 4.0]
    for stretch, reasons in (
        (1e-2, ["no DICOM segmentation: its frames have several orientations or spacings in the patient"]),
        (1e-5, []),  # rounding
    ):
        video, out = write_enhanced(tmp_path / "in.dcm", places, stretch=stretch), tmp_path / str(stretch)
        assert [reason for _, reason in dinomed.predict(Dark(), video, out, dicom_seg=True).unreadable] == reasons


@pytest.mark.parametrize("step", [0, 6e-5, 9e-4])  # mm; 6e-5 is the rounding of float32 at 1 m
def test_frames_of_one_position_have_no_segmentation(step: float, tmp_path: Path) -> None:
    places = [6.0, 0.0, 8.0, 2.0, 6.0 + step]
    done = dinomed.predict(Dark(), write_enhanced(tmp_path / "in.dcm", places), tmp_path / "out", dicom_seg=True)
    (reason,) = (reason for _, reason in done.unreadable)
    assert reason.startswith("no DICOM segmentation: several of its frames have one position in the patient")
    assert len(rows_of(only(tmp_path / "out"))) == COUNT
    assert not (only(tmp_path / "out") / "mask.seg.dcm").exists()


def test_frames_of_close_positions_have_a_segmentation(tmp_path: Path) -> None:
    places = [0.005 * number for number in range(COUNT)]  # mm, as of optical coherence tomography
    done = dinomed.predict(Dark(), write_enhanced(tmp_path / "in.dcm", places), tmp_path / "out", dicom_seg=True)
    assert done.unreadable == []
    groups = dcmread(only(tmp_path / "out") / "mask.seg.dcm").PerFrameFunctionalGroupsSequence
    written = sorted(float(group.PlanePositionSequence[0].ImagePositionPatient[2]) for group in groups)
    assert written == pytest.approx(places, abs=1e-9)  # decimal strings of 16 characters


def test_the_patient_is_a_placeholder_kept_or_a_pseudonym(tmp_path: Path) -> None:
    video = write_cine(tmp_path / "in.dcm", PatientID="P7")
    (tmp_path / "id.key").write_bytes(b"A" * 16)
    for name, options, patient in (
        ("plain", {}, "anonymous-"), ("kept", {"keep_ids": True}, "P7"),
        ("keyed", {"id_key": tmp_path / "id.key"}, pseudonym("P7", b"A" * 16)),
    ):  # fmt: skip
        dinomed.predict(Dark(), video, tmp_path / name, dicom_seg=True, **options)  # type: ignore[arg-type]
        assert dcmread(only(tmp_path / name) / "mask.seg.dcm").PatientID.startswith(patient)


def test_files_of_a_study_have_numbers_and_the_patient_that_one_of_them_names(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, patient in (("a.dcm", ""), ("b.dcm", "P7")):
        write_cine(tmp_path / "in" / name, PatientID=patient)
    (tmp_path / "id.key").write_bytes(b"A" * 16)
    done: Any = dinomed.predict(Dark(), tmp_path / "in", tmp_path / "out", dicom_seg=True, id_key=tmp_path / "id.key")
    written = {Path(path).name: dcmread(done.folder / group / "mask.seg.dcm") for path, group in done.groups.items()}
    assert {name: int(plain.InstanceNumber) for name, plain in written.items()} == {"a.dcm": 1, "b.dcm": 2}
    assert {plain.PatientID for plain in written.values()} == {pseudonym("P7", b"A" * 16)}


def test_what_has_no_segmentation_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    video = write_cine(tmp_path / "in" / "a.dcm")
    with writing_video(tmp_path / "clip.avi", (32, 32), 10) as append:
        append(np.zeros((32, 32), np.uint8))
    seg: dict[str, Any] = {"dicom_seg": True}
    for source, options, message in (
        (tmp_path / "clip.avi", seg, r"needs DICOM files, and 1 of 1 videos are not \(the first: .*clip.avi\)"),
        (video, seg | {"fps": 5}, "`dicom_seg=True` needs a prediction of every frame; leave `fps` out"),
        (video, seg | {"step": 2}, "leave `step` out"),
        (video, {"keep_ids": True}, "add `dicom_seg=True`"),
        (video, seg | {"series": tmp_path}, "`series` is for images, and the input is a video"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            dinomed.predict(Dark(), source, tmp_path / "out", **options)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    write_cine(tmp_path / "in" / "b.dcm", StudyInstanceUID="")
    done = dinomed.predict(Dark(), tmp_path / "in", tmp_path / "out", dicom_seg=True)
    assert [(Path(name).name, reason) for name, reason in done.unreadable] == [
        ("b.dcm", "no DICOM segmentation: DICOM without StudyInstanceUID, which a DICOM segmentation must reference")
    ]
    monkeypatch.setattr(dicom_seg, "_MAX_VOXELS", 27 * 31 * 4)
    with pytest.raises(DinomedError, match=r"no DICOM segmentation: .* pixels in all frames and classes, over"):
        dinomed.predict(Dark(), video, tmp_path / "large", dicom_seg=True)
    monkeypatch.setattr(dicom_seg, "_MAX_VOXELS", 27 * 31 * COUNT)
    with pytest.raises(DinomedError, match=r"no DICOM segmentation: .* pixels in all frames and classes, over"):
        dinomed.predict(Dark("a", "b"), video, tmp_path / "large", dicom_seg=True)
    assert dinomed.predict(Dark(), video, tmp_path / "small", dicom_seg=True).unreadable == []


def test_an_interrupted_call_is_continued_with_the_same_segmentations_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.dcm", "b.dcm"):
        write_cine(tmp_path / "in" / name, SeriesDescription=name)
    (tmp_path / "id.key").write_bytes(b"A" * 16)
    predict = Dark.predict

    def stop(self: Any, images: Any) -> Any:
        if self.seen >= COUNT:  # in the second file
            raise KeyboardInterrupt
        return predict(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(Dark, "predict", stop)
        with pytest.raises(KeyboardInterrupt):
            dinomed.predict(Dark(), tmp_path / "in", tmp_path / "out", dicom_seg=True)
    seg: dict[str, Any] = {"dicom_seg": True}
    others: list[dict[str, Any]] = [{}, seg | {"keep_ids": True}, seg | {"id_key": tmp_path / "id.key"}]
    for options in others:
        with pytest.raises(UsageError, match="holds an unfinished prediction"):
            dinomed.predict(Dark(), tmp_path / "in", tmp_path / "out", **options)
    done: Any = dinomed.predict(Dark(), tmp_path / "in", tmp_path / "out", dicom_seg=True)
    assert done.kept == 1
    assert all((done.folder / group / "mask.seg.dcm").is_file() for group in done.groups.values())


def test_only_a_segmenter_has_segmentations(user_folder: Path, tmp_path: Path) -> None:
    video = write_cine(tmp_path / "in.dcm")
    options = {"backbone": user_folder / "ssl", "dicom_seg": True}
    with pytest.raises(UsageError, match="`dicom_seg=True` is for segmenters"):
        dinomed.predict(user_folder / "cls", video, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
