"""Several DICOM segmentations of one data set: segments are compared by label and code, not by their numbers."""

import runpy
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.uid import generate_uid

import dinomed
from dinomed.errors import DinomedError, UsageError
from dinomed.images.dicom.segments import Segment, SegmentClasses, find_contradiction
from dinomed.volumes.find import find_volumes
from dinomed.volumes.geometry import slices_of
from dinomed.volumes.read import read_volume
from dinomed.volumes.write import SlicesResult

hd = pytest.importorskip("highdicom")
made = runpy.run_path(str(Path(__file__).with_name("made.py")))
numbers, write_series = made["numbers"], made["write_series"]
SHAPE = (4, 5, 6)
LABELS = np.random.default_rng(5).integers(0, 3, SHAPE).astype(np.uint8)
SWAPPED = np.array([0, 2, 1], np.uint8)[LABELS]


def write_seg(path: Path, sources: list[Path], labels: np.ndarray, *segments: tuple[str, str]) -> Path:
    """Write a segmentation by highdicom; `segments` are label and name of the code of each number from 1."""
    from pydicom.sr.codedict import codes

    described = [
        hd.seg.SegmentDescription(number, label, codes.SCT.Tissue, getattr(codes.SCT, code), "MANUAL")
        for number, (label, code) in enumerate(segments, 1)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(action="ignore"):
        hd.seg.Segmentation(
            [dcmread(source) for source in sources], labels, "BINARY", described, generate_uid(), 1, generate_uid(), 1,
            "maker", "model", "1", "0",
        ).save_as(path)  # fmt: skip
    return path


@pytest.fixture
def series(tmp_path: Path) -> dict[str, list[Path]]:
    return {name: write_series(tmp_path / "in" / name, numbers(SHAPE), uid=f"1.2.{name}3") for name in ("1", "2")}


def masks_of(written: SlicesResult, folder: Path, volume: str) -> np.ndarray:
    """The masks of a volume in the voxels of the series, (slices, rows, columns)."""
    names = zip(written.manifest.column("volume"), written.manifest.column("mask"), strict=True)
    pictures = [np.asarray(Image.open(written.folder / mask)) for name, mask in names if name == volume]
    (source,) = find_volumes([folder / "in" / volume]).sources
    grid = read_volume(source).grid
    values = np.zeros(grid.shape, np.uint8)
    slices_of(values, grid, "axial")[...] = pictures
    return values.transpose(2, 1, 0)


def test_segments_of_one_label_have_one_value_in_all_volumes(
    tmp_path: Path, series: dict[str, list[Path]], caplog: pytest.LogCaptureFixture
) -> None:
    write_seg(tmp_path / "segs" / "a.dcm", series["1"], LABELS, ("Liver", "Liver"), ("Cyst", "Cyst"))
    write_seg(tmp_path / "segs" / "b.dcm", series["2"], SWAPPED, ("cyst ", "Cyst"), ("LIVER", "Liver"))
    written = dinomed.slices(tmp_path / "in", tmp_path / "out", masks=tmp_path / "segs", keep_ids=True)
    assert written.problems == []
    assert written.classes == {1: "Liver", 2: "Cyst"}
    for volume in series:
        assert np.array_equal(masks_of(written, tmp_path, volume), LABELS)
    write_seg(tmp_path / "segs" / "b.dcm", series["2"], LABELS, ("Kidney", "Kidney"), ("Hepatic", "Liver"))
    written = dinomed.slices(tmp_path / "in", tmp_path / "other", masks=tmp_path / "segs", keep_ids=True)
    assert written.classes == {1: "Liver", 2: "Cyst", 3: "Kidney", 4: "Hepatic"}
    assert np.array_equal(masks_of(written, tmp_path, "2"), np.array([0, 3, 4])[LABELS])
    (message,) = [record.message for record in caplog.records if "another label" in record.message]
    assert "b.dcm: segment 2" in message
    assert "segment 1 of " in message


def test_one_label_with_two_codes_is_refused_and_names_both_files(
    tmp_path: Path, series: dict[str, list[Path]]
) -> None:
    first = write_seg(tmp_path / "segs" / "a.dcm", series["1"], LABELS, ("lesion", "Cyst"), ("Liver", "Liver"))
    second = write_seg(tmp_path / "segs" / "b.dcm", series["2"], LABELS, ("Liver", "Liver"), ("lesion", "Nodule"))
    written = dinomed.slices(tmp_path / "in", tmp_path / "out", masks=tmp_path / "segs", keep_ids=True)
    ((path, reason),) = written.problems
    assert path == str(second)
    assert f"segment 2 has the label of segment 1 of {first} and another code (SCT " in reason
    assert "\n" not in reason
    masks = dict(zip(written.manifest.column("volume"), written.manifest.column("mask"), strict=True))
    assert (masks["1"] is None, masks["2"] is None) == (False, True)
    assert np.array_equal(masks_of(written, tmp_path, "1"), LABELS)


def test_segmentations_of_one_series_are_joined_if_their_classes_differ(
    tmp_path: Path, series: dict[str, list[Path]]
) -> None:
    liver, cyst = (LABELS == 1).astype(np.uint8), (LABELS == 2).astype(np.uint8)
    write_seg(tmp_path / "segs" / "a.dcm", series["1"], liver, ("Liver", "Liver"))
    write_seg(tmp_path / "segs" / "b.dcm", series["1"], cyst, ("Cyst", "Cyst"))
    written = dinomed.slices(tmp_path / "in" / "1", tmp_path / "out", masks=tmp_path / "segs", keep_ids=True)
    assert written.problems == []
    assert np.array_equal(masks_of(written, tmp_path, "1"), LABELS)
    write_seg(tmp_path / "segs" / "b.dcm", series["1"], np.maximum(cyst, liver), ("Cyst", "Cyst"))
    written = dinomed.slices(tmp_path / "in" / "1", tmp_path / "overlap", masks=tmp_path / "segs")
    ((path, reason),) = written.problems
    assert "overlaps another mask of its volume" in reason
    assert "a.dcm" in reason
    assert path.endswith("b.dcm")
    write_seg(tmp_path / "segs" / "b.dcm", series["1"], cyst, ("Liver", "Liver"))
    ((_, reason),) = dinomed.slices(tmp_path / "in" / "1", tmp_path / "two", masks=tmp_path / "segs").problems
    assert "2 masks of one volume" in reason


def test_a_refused_segmentation_takes_the_others_of_its_series_with_it(
    tmp_path: Path, series: dict[str, list[Path]]
) -> None:
    liver, cyst = (LABELS == 1).astype(np.uint8), (LABELS == 2).astype(np.uint8)
    write_seg(tmp_path / "segs" / "a.dcm", series["1"], LABELS, ("lesion", "Cyst"), ("Liver", "Liver"))
    write_seg(tmp_path / "segs" / "b.dcm", series["2"], liver, ("Liver", "Liver"))
    write_seg(tmp_path / "segs" / "c.dcm", series["2"], cyst, ("lesion", "Nodule"))
    write_seg(tmp_path / "segs" / "d.dcm", series["2"], cyst, ("Kidney", "Kidney"))
    written = dinomed.slices(tmp_path / "in", tmp_path / "out", masks=tmp_path / "segs", keep_ids=True)
    reasons = {Path(path).stem: reason for path, reason in written.problems}
    assert "another code" in reasons.pop("c")
    assert reasons == dict.fromkeys("bd", "another segmentation of its series is refused")
    masks = zip(written.manifest.column("volume"), written.manifest.column("mask"), strict=True)
    assert {volume for volume, mask in masks if mask is not None} == {"1"}


def test_a_segmentation_of_another_series_decides_nothing(tmp_path: Path, series: dict[str, list[Path]]) -> None:
    write_seg(tmp_path / "segs" / "a.dcm", series["1"], LABELS, ("lesion", "Cyst"), ("Liver", "Liver"))
    write_seg(tmp_path / "segs" / "b.dcm", series["2"], SWAPPED, ("Liver", "Liver"), ("lesion", "Nodule"))
    written = dinomed.slices(tmp_path / "in" / "2", tmp_path / "out", masks=tmp_path / "segs", keep_ids=True)
    assert [reason for _, reason in written.problems] == ["a DICOM segmentation of another series"]
    assert np.array_equal(masks_of(written, tmp_path, "2"), SWAPPED)


def test_numbers_are_kept_where_they_are_free_and_codes_stand_for_missing_labels() -> None:
    classes = SegmentClasses()
    a, b = Path("a.dcm"), Path("b.dcm")
    assert classes.add(a, [Segment(5, "Liver", "SCT 1"), Segment(1, "", "SCT 2")]) == {5: 5, 1: 1}
    assert classes.add(b, [Segment(1, "spleen", ""), Segment(2, "", "SCT 2"), Segment(7, " liver", "")]) == {
        1: 6, 2: 1, 7: 5,
    }  # fmt: skip
    assert classes.names == {5: "Liver", 1: "SCT 2", 6: "spleen"}
    with pytest.raises(DinomedError, match=r"segment 3 has the label of segment 5 of a.dcm"):
        classes.add(b, [Segment(9, "new", "SCT 9"), Segment(3, "LIVER", "SCT 8")])
    assert 9 not in classes.names


def test_a_code_is_compared_with_the_first_one_also_if_the_first_file_has_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    classes = SegmentClasses()
    assert classes.add(Path("a.dcm"), [Segment(1, "Liver", "")]) == {1: 1}
    assert classes.add(Path("h.dcm"), [Segment(1, "Hepatic", "SCT 1")]) == {1: 2}
    assert classes.add(Path("b.dcm"), [Segment(3, "LIVER", "SCT 1")]) == {3: 1}
    assert any("b.dcm: segment 3 has the code (SCT 1)" in record.message for record in caplog.records)
    with pytest.raises(DinomedError, match=r"segment 1 has the label of segment 3 of b.dcm and another code \(SCT 2"):
        classes.add(Path("c.dcm"), [Segment(1, "Liver", "SCT 2")])
    assert classes.names == {1: "Liver", 2: "Hepatic"}
    files = [("a", [Segment(1, "Liver", "")]), ("b", [Segment(1, "Liver", "SCT 1")])]
    assert find_contradiction(files) is None
    message = "segment 1 of c has another code than segment 1 of b"
    assert find_contradiction([*files, ("c", [Segment(1, "Liver", "SCT 2")])]) == message


def test_two_segments_of_one_label_agree_with_themselves_in_another_file() -> None:
    lesions = [Segment(1, "lesion", ""), Segment(2, "lesion", "")]
    assert find_contradiction([("a", lesions), ("b", lesions[::-1]), ("c", lesions[1:])]) is None
    message = "segment 3 of b has the label of segment 1 of a"
    assert find_contradiction([("a", lesions), ("b", [*lesions, Segment(3, "lesion", "")])]) == message


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ((("Liver", "Liver"), ("Cyst", "Cyst")), ""),
        (
            (("Cyst", "Cyst"), ("Liver", "Liver")),
            "segment 1 of masks/b.dcm has another label than segment 1 of ",
        ),
        (
            (("Liver", "Liver"), ("Cyst", "Nodule")),
            "segment 2 of masks/b.dcm has another code than segment 2 of ",
        ),
    ],
)
def test_a_scan_of_label_maps_refuses_numbers_that_contradict_each_other(
    tmp_path: Path, segments: tuple[tuple[str, str], ...], message: str
) -> None:
    images = write_series(tmp_path / "in", numbers((2, 5, 6)))
    write_seg(tmp_path / "in" / "masks" / "a.dcm", images[:1], LABELS[:1], ("liver", "Liver"), ("Cyst", "Cyst"))
    write_seg(tmp_path / "in" / "masks" / "b.dcm", images[1:], LABELS[1:2], *segments)
    rows = [f"{image.name},masks/{mask}.dcm" for image, mask in zip(images, "ab", strict=True)]
    (tmp_path / "in" / "labels.csv").write_text("\n".join(["image,mask", *rows]))
    if not message:
        manifest = dinomed.scan(tmp_path / "in", tmp_path / "in" / "labels.csv", label_maps=True)
        assert set(manifest.column("mask")) == {"masks/a.dcm", "masks/b.dcm"}
        return
    with pytest.raises(UsageError, match=message) as error:
        dinomed.scan(tmp_path / "in", tmp_path / "in" / "labels.csv", label_maps=True)
    assert "\n" not in str(error.value)
    dinomed.scan(tmp_path / "in", tmp_path / "in" / "labels.csv")  # any segment is the mask
