"""Volumes: values and geometry are those of nibabel and highdicom, and faulty files and series are refused."""

import gzip
import itertools
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dinomed.errors import DinomedError
from dinomed.images.decode import UnreadableImage
from dinomed.volumes.find import find_volumes
from dinomed.volumes.geometry import AXES, Grid, lps_to_ras, slices_of, voxel_places
from dinomed.volumes.nifti import write_nifti as write_volume
from dinomed.volumes.read import Volume, read_volume

nibabel = pytest.importorskip("nibabel")
made = runpy.run_path(str(Path(__file__).with_name("made.py")))
numbers, write_nifti, write_series, OBLIQUE = map(made.get, ("numbers", "write_nifti", "write_series", "OBLIQUE"))
SHAPE = (6, 5, 4)
TILTED = np.array([[1.9, 0.1, 0.3, -20], [-0.1, 3.0, 0.2, 15], [-0.2, -0.1, 5.0, 30], [0, 0, 0, 1]])
"""An affine with three spacings, rotated by a few degrees."""


def read(path: Path) -> Volume:
    search = find_volumes([path])
    assert search.problems == []
    (source,) = search.sources
    return read_volume(source)


def test_all_48_orders_of_the_axes_give_the_same_slices(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(numbers(SHAPE), TILTED)  # RAS+
    data = image.get_fdata()
    expected = {
        "axial": data[::-1, ::-1].transpose(2, 1, 0),
        "coronal": data[::-1, ::-1, ::-1].transpose(1, 2, 0),
        "sagittal": data[::-1, ::-1, ::-1].transpose(0, 2, 1),
    }
    orders = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))
    assert len(orders) == 48
    for number, (order, flips) in enumerate(orders):
        path = tmp_path / f"{number}.nii"
        nibabel.save(image.as_reoriented(np.stack([order, flips], axis=1)), path)
        volume = read(path)
        theirs = nibabel.load(path)
        assert np.array_equal(volume.values, theirs.get_fdata())
        assert np.array_equal(volume.grid.affine, theirs.affine)
        for axis in AXES:
            assert np.array_equal(slices_of(volume.values, volume.grid, axis), expected[axis]), (order, flips, axis)
        spacing = volume.grid.picture_spacing_mm("coronal")
        assert spacing == pytest.approx([np.linalg.norm(TILTED[:3, index]) for index in (1, 2, 0)])
        written = np.zeros(volume.grid.shape, np.uint8)
        slices_of(written, volume.grid, "axial")[...] = expected["axial"] > 700
        write_volume(tmp_path / "mask.nii.gz", written, volume.grid, volume.header)
        mask = nibabel.load(tmp_path / "mask.nii.gz")
        assert np.array_equal(np.asarray(mask.dataobj), theirs.get_fdata() > 700)
        assert np.array_equal(mask.affine, theirs.affine)


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", "<u2", "<i4", "<f4", ">f8"])
def test_the_values_are_those_of_nibabel(tmp_path: Path, dtype: str) -> None:
    values = (numbers(SHAPE) % 200).astype(dtype)
    path = write_nifti(tmp_path / "scaled.nii.gz", values, TILTED)
    content = bytearray(gzip.decompress(path.read_bytes()))
    order = ">" if dtype[0] == ">" else "<"
    content[112:120] = np.array([0.25, -3.5], f"{order}f4").tobytes()  # slope and intercept
    if order == ">":
        image = nibabel.Nifti1Image(values, TILTED, nibabel.Nifti1Header(endianness=">"))
        image.header.set_slope_inter(0.25, -3.5)
        content = bytearray(image.to_bytes())
    path.write_bytes(gzip.compress(bytes(content)))
    volume, theirs = read(path), nibabel.load(path)
    assert volume.values.dtype == np.float32
    assert np.array_equal(volume.values, theirs.get_fdata(dtype=np.float32))
    assert np.array_equal(volume.grid.affine, theirs.affine)


def test_nifti_2_and_a_volume_with_a_qform_only_have_the_affine_of_nibabel(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti2Image(numbers(SHAPE), TILTED), tmp_path / "two.nii")
    image = nibabel.Nifti1Image(numbers(SHAPE), TILTED)
    image.set_qform(TILTED, code=1, strip_shears=True)
    image.set_sform(None, code=0)
    nibabel.save(image, tmp_path / "q.nii.gz")
    for name in ("two.nii", "q.nii.gz"):
        volume, theirs = read(tmp_path / name), nibabel.load(tmp_path / name)
        assert np.array_equal(volume.values, theirs.get_fdata())
        assert np.array_equal(volume.grid.affine, theirs.affine)
    write_volume(tmp_path / "mask.nii.gz", np.ones(SHAPE, np.uint8), volume.grid, volume.header)
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    assert np.array_equal(mask.affine, theirs.affine)
    assert (int(mask.header["sform_code"]), int(mask.header["qform_code"])) == (0, 1)


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), OBLIQUE, (0, 1, 0, 0, 0, -1), (-1, 0, 0, 0, 1, 0)])
def test_a_series_is_sorted_by_position_and_has_the_geometry_of_highdicom(
    tmp_path: Path, orientation: tuple[float, ...]
) -> None:
    hd = pytest.importorskip("highdicom")
    from pydicom import dcmread

    stored = numbers((4, 5, 6))
    paths = write_series(tmp_path / "series", stored, orientation=orientation)
    assert paths != sorted(paths)  # the order of names is another one
    volume = read(tmp_path)
    theirs = hd.get_volume_from_series([dcmread(path) for path in paths])
    assert volume.grid.spacing_mm == pytest.approx((0.5, 0.7, 2.5))
    places = voxel_places(volume.grid, theirs.spatial_shape, lps_to_ras(theirs.affine))
    assert places is not None
    for index in np.ndindex(theirs.spatial_shape):
        place = tuple(places @ (*index, 1))
        assert volume.values[place] == theirs.array[index]
        position = lps_to_ras(volume.grid.affine) @ (*place, 1)
        np.testing.assert_allclose(
            position[:3], theirs.map_indices_to_reference(np.array([index]))[0], atol=1e-6
        )  # float64


def test_an_oblique_series_is_written_as_nifti_with_its_geometry(tmp_path: Path) -> None:
    write_series(tmp_path / "series", numbers((4, 5, 6)), orientation=OBLIQUE)
    volume = read(tmp_path / "series")
    mask = (volume.values > 300).astype(np.uint8)
    write_volume(tmp_path / "mask.nii.gz", mask, volume.grid)
    written = nibabel.load(tmp_path / "mask.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), mask)
    # NIfTI-1 stores 32 bits: a relative error of 6e-8 of each number
    np.testing.assert_allclose(written.affine, volume.grid.affine, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(written.header.get_qform(), volume.grid.affine, rtol=1e-5, atol=1e-4)  # quaternion
    assert nibabel.aff2axcodes(written.affine) == nibabel.aff2axcodes(volume.grid.affine)


def test_a_tilted_series_is_written_without_a_qform_and_its_voxels_have_their_true_volume(tmp_path: Path) -> None:
    shift = np.tan(np.radians(25)) * 2.5  # mm from slice to slice, of a gantry tilted by 25 degrees
    write_series(
        tmp_path / "series", numbers((4, 5, 6)), ImagePositionPatient=lambda k: [-10.0, 20 + k * shift, 300 + k * 2.5]
    )
    grid = read(tmp_path / "series").grid
    assert grid.is_sheared
    assert grid.voxel_ml == pytest.approx(2.5 * 0.7 * 0.5 / 1000)
    write_volume(tmp_path / "mask.nii.gz", np.zeros(grid.shape, np.uint8), grid)
    header = nibabel.load(tmp_path / "mask.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(header.get_sform(), grid.affine, rtol=1e-6, atol=1e-6)  # 32 bits


def test_padding_is_not_a_number_and_every_slice_has_its_own_slope(tmp_path: Path) -> None:
    stored = numbers((3, 5, 6))
    stored[1, 2, 3] = -2000
    write_series(tmp_path / "series", stored, PixelPaddingValue=-2000, RescaleSlope=lambda number: float(number + 1))
    values = read(tmp_path / "series").values
    assert np.isnan(values[3, 2, 1])
    assert np.isnan(values).sum() == 1
    assert values[0, 0, 2] == stored[2, 0, 0] * 3 - 1024


def _at(numbers_of_slices: set[int], change: object, usual: object) -> Callable[[int], object]:
    return lambda number: change if number in numbers_of_slices else usual


POSITION = lambda mm: [-10.5, 20.25, 300.0 + mm]
FAULTS = {
    "2 patients": {"PatientID": _at({1}, "OTHER", "PLANTED")},
    "2 frames of reference": {"FrameOfReferenceUID": _at({1}, "1.8", "1.9")},
    "several orientations": {"ImageOrientationPatient": _at({2}, [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 1, 0])},
    "several pixel spacings": {"PixelSpacing": _at({2}, [1, 1], [0.7, 0.5])},
    "about 1 missing slices: after slice 3 of 5": {"ImagePositionPatient": lambda n: POSITION(2.5 * (n + (n > 2)))},
    "1 doubled slices": {"ImagePositionPatient": lambda n: POSITION(2.5 * (n - (n > 2)))},
    "uneven distances, 2.00 to 3.00": {"ImagePositionPatient": lambda n: POSITION((0, 2.5, 5, 7, 10)[n])},
    "not on a line": {"ImagePositionPatient": lambda n: [-10.5 + 3 * (n == 2), 20.25, 300 + 2.5 * n]},
    "colour or MONOCHROME1": {"PhotometricInterpretation": "MONOCHROME1"},
    "without the position": {"ImagePositionPatient": None},
    "without the pixel spacing": {"PixelSpacing": None},
}


@pytest.mark.parametrize("reason", FAULTS)
def test_a_faulty_series_is_refused_in_one_line_without_the_patient(tmp_path: Path, reason: str) -> None:
    write_series(tmp_path / "series", numbers((5, 4, 6)), **FAULTS[reason])
    write_series(tmp_path / "good", numbers((3, 4, 6)), uid="1.2.4")
    search = find_volumes([tmp_path])
    assert [source.name for source in search.sources] == ["good"]
    assert search.problems
    for _, text in search.problems:
        assert reason in text
        assert "\n" not in text
        assert "PLANTED" not in text


def test_slices_of_several_sizes_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "a", numbers((2, 4, 6)))
    write_series(tmp_path / "b", numbers((2, 5, 6)), origin=(-10.5, 20.25, 305.0))
    assert "several sizes (6x4, 6x5)" in find_volumes([tmp_path]).problems[0][1]
    write_series(tmp_path / "one", numbers((1, 5, 6)), uid="1.7")
    assert "one slice" in find_volumes([tmp_path / "one"]).problems[0][1]


def test_a_missing_slice_is_noticed_in_a_series_of_three(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "series", numbers((4, 4, 6)))
    paths[1].unlink()
    assert "about 1 missing slices: after slice 1 of 3" in find_volumes([tmp_path]).problems[0][1]


@pytest.mark.parametrize("kept", [0, 100, 200, 400, 600])
def test_a_slice_at_the_end_that_is_cut_off_is_a_problem(tmp_path: Path, kept: int) -> None:
    last = write_series(tmp_path / "series", numbers((4, 4, 6)))[-1]
    last.write_bytes(last.read_bytes()[:kept])
    search = find_volumes([tmp_path])
    assert [Path(path).name for path, _ in search.problems] == [last.name]
    assert len(search.sources) == 1


def _cut(path: Path) -> Path:
    content = write_nifti(path, numbers((20, 20, 20))).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def _without_affine(path: Path) -> Path:
    nibabel.save(nibabel.Nifti1Image(numbers(SHAPE), None), path)
    return path


def _patched(path: Path, place: int, new: bytes) -> Path:
    """Replace bytes of the header, which nibabel would not write so."""
    content = bytearray(gzip.decompress(write_nifti(path, numbers(SHAPE), TILTED).read_bytes()))
    content[place : place + len(new)] = new
    path.write_bytes(gzip.compress(bytes(content)))
    return path


def _text(path: Path) -> Path:
    path.write_text("no volume" * 100)
    return path


def _damaged(path: Path) -> Path:
    content = bytearray(write_nifti(path, numbers((20, 20, 20))).read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    return path


FAULTY = {
    "a NIfTI without an affine": _without_affine,
    "4 dimensions (6x5x4x3)": lambda path: write_nifti(path, np.zeros((*SHAPE, 3), np.int16)),
    "2 dimensions (6x5)": lambda path: write_nifti(path, np.zeros((6, 5), np.int16)),
    "truncated": _cut,
    "truncated or damaged compressed data": _damaged,
    "not a NIfTI volume": _text,
    "colours or complex numbers": lambda path: write_nifti(path, np.zeros(SHAPE, np.complex64)),
    "its affine is singular": lambda path: _patched(path, 280, bytes(12)),  # srow_x
    "in metres or micrometres": lambda path: _patched(path, 123, b"\1"),
    "the limit is 32767": lambda path: (
        nibabel.save(nibabel.Nifti2Image(np.zeros((1, 1, 40_000), np.uint8), np.eye(4)), path) or path
    ),
    "over the limit of": lambda path: _patched(path, 42, np.array([30000] * 3, "<i2").tobytes()),  # dim
}


@pytest.mark.parametrize("reason", FAULTY)
def test_a_faulty_nifti_file_is_refused_in_one_line(tmp_path: Path, reason: str) -> None:
    path = FAULTY[reason](tmp_path / "x.nii.gz")
    (source,) = find_volumes([path]).sources
    with pytest.raises(UnreadableImage) as refused:
        read_volume(source)
    assert reason in refused.value.reason
    assert "\n" not in refused.value.reason


def test_a_file_that_holds_more_than_its_header_declares_is_read_as_far_as_declared(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "long.nii.gz", numbers(SHAPE), TILTED)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(2**24)))
    assert np.array_equal(read(path).values, numbers(SHAPE))


def test_a_shifted_or_rotated_grid_is_not_aligned() -> None:
    grid = Grid(SHAPE, TILTED)
    assert np.array_equal(voxel_places(grid, SHAPE, TILTED), np.eye(4, dtype=np.int64)[:3])
    for change in ([0.5, 0, 0], [0, 0, 0.1]):
        shifted = TILTED.copy()
        shifted[:3, 3] += TILTED[:3, :3] @ change
        assert voxel_places(grid, SHAPE, shifted) is None
    turned = TILTED.copy()
    turned[:, :2] *= 1.1
    assert voxel_places(grid, SHAPE, turned) is None
    with pytest.raises(DinomedError, match="singular"):
        Grid(SHAPE, np.zeros((4, 4)))


def test_frames_of_an_enhanced_file_are_sorted_by_position_and_have_their_own_slopes(tmp_path: Path) -> None:
    from pydicom import Dataset, dcmread

    stored = numbers((4, 5, 6))
    paths = write_series(tmp_path / "in", stored)
    file = dcmread(paths[0])
    order = [2, 0, 3, 1]
    file.NumberOfFrames, file.PixelData = 4, stored[order].astype("<i2").tobytes()
    shared, frames = Dataset(), []
    measures, plane = Dataset(), Dataset()
    measures.PixelSpacing, plane.ImageOrientationPatient = file.PixelSpacing, file.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    for number in order:
        frame, position, values = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = dcmread(paths[number]).ImagePositionPatient
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = number + 1, -1000, "HU"
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [position], [values]
        frames.append(frame)
    file.SharedFunctionalGroupsSequence, file.PerFrameFunctionalGroupsSequence = [shared], frames
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        del file[name]
    single = read(tmp_path / "in")
    for path in paths:
        path.unlink()
    file.save_as(tmp_path / "in" / "enhanced.dcm")
    volume = read(tmp_path / "in")
    np.testing.assert_allclose(volume.grid.affine, single.grid.affine)
    assert np.array_equal(volume.values, (stored * np.arange(1, 5)[:, None, None] - 1000.0).transpose(2, 1, 0))
