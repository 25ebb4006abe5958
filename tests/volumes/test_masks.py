"""Masks of volumes: NIfTI label maps and DICOM segmentations of highdicom, aligned by geometry or refused."""

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
from dinomed.images.read import read_mask
from dinomed.volumes.find import find_volumes
from dinomed.volumes.geometry import Grid, slices_of
from dinomed.volumes.read import read_volume

nibabel = pytest.importorskip("nibabel")
made = runpy.run_path(str(Path(__file__).with_name("made.py")))
numbers, write_nifti, write_series, OBLIQUE = map(made.get, ("numbers", "write_nifti", "write_series", "OBLIQUE"))
TILTED = np.array([[1.9, 0.1, 0.3, -20], [-0.1, 3.0, 0.2, 15], [-0.2, -0.1, 5.0, 30], [0, 0, 0, 1]])


def labels_of(shape: tuple[int, ...], classes: int = 3) -> np.ndarray:
    return np.random.default_rng(5).integers(0, classes, shape).astype(np.uint8)


def read_masks(written: object) -> np.ndarray:
    manifest = written.manifest  # type: ignore[attr-defined]
    return np.stack([np.asarray(Image.open(manifest.root / name)) for name in manifest.column("mask")])


def write_seg(path: Path, sources: list[Path], labels: np.ndarray, **changes: object) -> Path:
    """Write a segmentation of a series by highdicom; `labels` is (slices, rows, columns) in the order of `sources`."""
    hd = pytest.importorskip("highdicom")
    from pydicom.sr.codedict import codes

    segments = [
        hd.seg.SegmentDescription(number, f"class {number}", codes.SCT.Tissue, codes.SCT.Liver, "MANUAL")
        for number in range(1, int(labels.max()) + 1)
    ]
    with warnings.catch_warnings(action="ignore"):
        segmentation = hd.seg.Segmentation(
            [dcmread(source) for source in sources], labels, "BINARY", segments, generate_uid(), 1, generate_uid(), 1,
            "maker", "model", "1", "0",
        )  # fmt: skip
        for name, value in changes.items():
            setattr(segmentation.ReferencedSeriesSequence[0], name, value)
        path.parent.mkdir(parents=True, exist_ok=True)
        segmentation.save_as(path)
    return path


@pytest.mark.parametrize("axis", ["axial", "coronal"])
def test_a_nifti_mask_in_another_order_of_axes_is_aligned(tmp_path: Path, axis: str) -> None:
    labels = labels_of((7, 6, 5))
    labels[0, 0, 0] = 255
    write_nifti(tmp_path / "images" / "case_0000.nii.gz", numbers((7, 6, 5)), TILTED)
    mask = nibabel.Nifti1Image(labels, TILTED).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    (tmp_path / "labels").mkdir()
    nibabel.save(mask, tmp_path / "labels" / "case.nii.gz")
    written = dinomed.slices(tmp_path / "images", tmp_path / "out", axis=axis, masks=tmp_path / "labels")
    assert written.problems == []
    assert np.array_equal(read_masks(written), slices_of(labels, Grid((7, 6, 5), TILTED), axis))


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), OBLIQUE])
def test_a_segmentation_of_highdicom_is_aligned_with_its_series(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    sources = write_series(tmp_path / "in" / "ct", numbers((4, 5, 6)), orientation=orientation)
    write_series(tmp_path / "in" / "other", numbers((3, 5, 6)), uid="1.2.4")
    labels = labels_of((4, 5, 6))
    labels[2] = 0  # highdicom leaves empty frames out
    write_seg(tmp_path / "in" / "seg.dcm", sources[::-1], labels[::-1])
    written = dinomed.slices(tmp_path / "in", tmp_path / "out", masks=tmp_path / "in" / "seg.dcm", keep_ids=True)
    assert written.problems == []
    volumes = written.manifest.column("volume")
    assert [mask is not None for mask in written.manifest.column("mask")] == [name == "ct" for name in volumes]
    (source,) = [source for source in find_volumes([tmp_path / "in"]).sources if source.name == "ct"]
    grid = read_volume(source).grid
    expected = slices_of(labels.transpose(2, 1, 0), grid, "axial")
    assert np.array_equal(read_masks_of(written, "ct"), expected)


def read_masks_of(written: object, volume: str) -> np.ndarray:
    manifest = written.manifest  # type: ignore[attr-defined]
    names = zip(manifest.column("volume"), manifest.column("mask"), strict=True)
    return np.stack([np.asarray(Image.open(manifest.root / mask)) for name, mask in names if name == volume])


def test_a_nifti_mask_belongs_to_a_series_by_the_name_of_its_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", numbers((4, 5, 6)), orientation=OBLIQUE)
    (source,) = find_volumes([tmp_path / "ct"]).sources
    grid = read_volume(source).grid
    labels = labels_of(grid.shape, 2)
    write_nifti(tmp_path / "masks" / "ct.nii.gz", labels, grid.affine)  # 32 bits
    written = dinomed.slices(tmp_path / "ct", tmp_path / "out", masks=tmp_path / "masks")
    assert np.array_equal(read_masks(written), slices_of(labels, grid, "axial"))
    for name, image in zip(written.manifest.column("mask"), read_masks(written), strict=True):
        assert np.array_equal(read_mask(written.manifest.root / name), image)  # a binary mask of 0 and 1


def _shifted(labels: np.ndarray, path: Path) -> Path:
    affine = TILTED.copy()
    affine[:3, 3] += 0.5 * TILTED[:3, 0]
    return write_nifti(path, labels, affine)


REFUSED = {
    "does not align": [
        _shifted,
        lambda labels, path: write_nifti(path, labels[:-1], TILTED),
        lambda labels, path: write_nifti(path, labels, TILTED @ np.diag([-1, 1, 1, 1.0])),
        lambda labels, path: write_nifti(path, labels.transpose(1, 0, 2), TILTED),
    ],
    "must be integers": [lambda labels, path: write_nifti(path, labels + np.float32(0.5), TILTED)],
    "values outside of 0 to 65535": [lambda labels, path: write_nifti(path, -labels.astype(np.int16), TILTED)],
    "without a volume of its name": [lambda labels, path: write_nifti(path.with_name("y.nii.gz"), labels, TILTED)],
}


@pytest.mark.parametrize(("reason", "write"), [(reason, write) for reason, all in REFUSED.items() for write in all])
def test_a_mask_that_does_not_belong_to_its_volume_is_refused_and_the_slices_are_written(
    tmp_path: Path, reason: str, write: object
) -> None:
    write_nifti(tmp_path / "x.nii.gz", numbers((7, 6, 5)), TILTED)
    write(labels_of((7, 6, 5)), tmp_path / "masks" / "x.nii.gz")  # type: ignore[operator]
    written = dinomed.slices(tmp_path / "x.nii.gz", tmp_path / "out", masks=tmp_path / "masks")
    assert len(written.manifest) == 5
    assert set(written.manifest.column("mask")) == {None}
    assert not (tmp_path / "out" / "masks").exists()
    ((path, text),) = written.problems
    assert Path(path).parent.name == "masks"
    assert reason in text


def test_segmentations_of_another_series_or_at_another_place_are_refused(tmp_path: Path) -> None:
    sources = write_series(tmp_path / "ct", numbers((4, 5, 6)))
    moved = write_series(tmp_path / "moved", numbers((4, 5, 6)), origin=(-10.5, 20.5, 300.0))
    labels = labels_of((4, 5, 6))
    write_seg(tmp_path / "segs" / "other.dcm", sources, labels, SeriesInstanceUID="1.2.99")
    write_seg(tmp_path / "segs" / "moved.dcm", moved, labels)  # it references the series of the same number
    written = dinomed.slices(tmp_path / "ct", tmp_path / "out", masks=tmp_path / "segs")
    problems = {Path(path).name: reason for path, reason in written.problems}
    assert problems["other.dcm"] == "a DICOM segmentation of another series"
    assert "does not align" in problems["moved.dcm"]
    write_seg(tmp_path / "segs" / "second.dcm", sources, labels)
    both = dinomed.slices(tmp_path / "ct", tmp_path / "two", masks=tmp_path / "segs").problems
    assert any("2 masks of one volume" in reason for _, reason in both)


@pytest.mark.parametrize("patients", [["P1"], ["P1", "P2"]])
def test_a_mask_of_the_name_of_two_volumes_is_given_to_none(tmp_path: Path, patients: list[str]) -> None:
    for patient in ("P1", "P2"):
        write_nifti(tmp_path / "in" / patient / "t1.nii.gz", numbers((7, 6, 5)), TILTED)
    for patient in patients:
        write_nifti(tmp_path / "in" / "masks" / patient / "t1.nii.gz", labels_of((7, 6, 5)), TILTED)
    for uid, patient in enumerate(("S1", "S2")):  # series are named by their folder
        write_series(tmp_path / "in" / patient / "ct", numbers((4, 5, 6)), uid=f"1.2.{uid + 3}")
    write_nifti(tmp_path / "in" / "masks" / "ct.nii.gz", labels_of((6, 5, 4)), TILTED)
    written = dinomed.slices(tmp_path / "in", tmp_path / "out", masks=tmp_path / "in" / "masks")
    assert len(written.volumes) == 4  # no mask is a volume
    assert set(written.manifest.column("mask")) == {None}
    assert [reason for _, reason in written.problems if "has the name of 2 volumes" not in reason] == []
    assert len(written.problems) == 4


def test_masks_inside_the_folder_of_the_volumes_are_no_volumes_and_are_replaced_with_them(tmp_path: Path) -> None:
    write_nifti(tmp_path / "in" / "images" / "x.nii.gz", numbers((7, 6, 5)), TILTED)
    write_nifti(tmp_path / "in" / "labels" / "x.nii.gz", labels_of((7, 6, 5)), TILTED)
    written = dinomed.slices(tmp_path / "in", tmp_path / "out", masks=tmp_path / "in" / "labels")
    assert len(written.volumes) == 1
    assert len(list((tmp_path / "out" / "masks").rglob("*.png"))) == 5
    dinomed.slices(tmp_path / "in" / "images", tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "masks").exists()
    with pytest.raises(UsageError, match="holds all the volumes"):
        dinomed.slices(tmp_path / "in" / "labels", tmp_path / "no", masks=tmp_path / "in" / "labels")
    with pytest.raises(UsageError, match="does not exist"):
        dinomed.slices(tmp_path / "in" / "images", tmp_path / "no", masks=tmp_path / "nothing")
    (tmp_path / "bad.nii").write_bytes(b"no volume")
    with pytest.raises(DinomedError, match="none of"):
        dinomed.slices(tmp_path / "bad.nii", tmp_path / "no", masks=tmp_path / "in" / "labels")
