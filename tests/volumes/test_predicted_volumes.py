"""`dinomed predict --volumes`: the masks of slices as volumes in the geometry of the input, and their metrics."""

import csv
import json
import runpy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from scipy import ndimage

import dinomed
from dinomed.datasets.manifest import read_manifest, write_manifest
from dinomed.errors import UsageError
from dinomed.metrics.segmentation import volume_overlap
from dinomed.volumes.find import find_volumes
from dinomed.volumes.geometry import slices_of
from dinomed.volumes.read import read_volume

nibabel = pytest.importorskip("nibabel")
made = runpy.run_path(str(Path(__file__).with_name("made.py")))
numbers, write_nifti, write_series, OBLIQUE = map(made.get, ("numbers", "write_nifti", "write_series", "OBLIQUE"))
AFFINE = np.array([[0.1, -2.4, 0.3, -20], [0.2, 0.1, 5.0, 15], [1.5, 0.1, -0.2, 30], [0, 0, 0, 1.0]])
"""Oblique and anisotropic, with axes in another order than those of the patient."""
SHAPE = (30, 20, 8)
Run = Callable[..., tuple[int, str, str]]


def ball(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> np.ndarray:
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    return sum(((place - middle) ** 2 for place, middle in zip(places, centre, strict=True))) < radius**2


@pytest.fixture(scope="module")
def slices_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slices of a NIfTI file with a mask and of an oblique DICOM series without one."""
    folder = tmp_path_factory.mktemp("volumes")
    lesion = ball(SHAPE, (12, 9, 4), 6)
    write_nifti(folder / "in" / "a.nii.gz", (lesion * 600 + numbers(SHAPE) // 8).astype(np.int16), AFFINE)
    write_nifti(folder / "labels" / "a.nii.gz", lesion.astype(np.uint8), AFFINE)
    write_series(folder / "in" / "series", numbers((5, 24, 32)), orientation=OBLIQUE)
    written = dinomed.slices(
        folder / "in", folder / "slices", axis="coronal", masks=folder / "labels", window="0,900", keep_ids=True
    )
    assert written.problems == []
    return written.folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_masks_are_volumes_in_the_geometry_of_nifti_and_dicom_input(
    user_folder: Path, slices_folder: Path, tmp_path: Path, run: Run
) -> None:
    words = ("predict", user_folder / "seg", slices_folder / "manifest.csv", "-o", tmp_path / "out", "--volumes")
    code, out, _ = run(*words, "--backbone", user_folder / "ssl", "--no-sheet", "--json")
    assert code == 0
    assert Path(json.loads(out)["volumes"]) == tmp_path / "out" / "volumes.csv"
    manifest = read_manifest(slices_folder / "manifest.csv")
    inputs = slices_folder.parent / "in"
    for source in find_volumes([inputs]).sources:
        volume = read_volume(source)
        image = nibabel.load(tmp_path / "out" / "volumes" / f"{source.name}.nii.gz")
        mask = np.asarray(image.dataobj)
        assert mask.shape == volume.values.shape
        assert set(np.unique(mask)) <= {0, 1}
        np.testing.assert_allclose(image.affine, volume.grid.affine, rtol=1e-6, atol=1e-6)  # 32 bits in NIfTI-1
        assert nibabel.aff2axcodes(image.affine) == nibabel.aff2axcodes(volume.grid.affine)
        for number, picture in enumerate(slices_of(mask, volume.grid, "coronal")):
            png = np.asarray(Image.open(tmp_path / "out" / source.name / f"{number:05}.png"))
            assert np.array_equal(picture > 0, png > 0)
    original = nibabel.load(inputs / "a.nii.gz")
    predicted = nibabel.load(tmp_path / "out" / "volumes" / "a.nii.gz")
    assert np.array_equal(predicted.affine, original.affine)  # bit by bit
    assert np.array_equal(predicted.header.get_zooms(), original.header.get_zooms())
    rows = {row["volume"]: row for row in rows_of(tmp_path / "out" / "volumes.csv")}
    mask, lesion = np.asarray(predicted.dataobj) > 0, ball(SHAPE, (12, 9, 4), 6)
    expected = volume_overlap(lesion, mask, tuple(original.header.get_zooms()))
    assert float(rows["a"]["dice"]) == pytest.approx(expected.dice, abs=1e-4)  # four decimals
    assert int(rows["a"]["voxels"]) == mask.sum()
    millilitres = int(rows["a"]["voxels"]) * abs(np.linalg.det(AFFINE[:3, :3])) / 1000
    assert float(rows["a"]["volume_ml"]) == pytest.approx(millilitres, abs=1e-3)
    assert rows["series"]["dice"] == ""
    assert len(manifest) == len(rows_of(tmp_path / "out" / "predictions.csv"))


def test_a_slice_without_a_prediction_leaves_its_volume_out(
    user_folder: Path, slices_folder: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(slices_folder / "manifest.csv")
    (lost,) = [name for name in manifest.column("image") if name == "series/00002.png"]
    content = (slices_folder / lost).read_bytes()
    try:
        (slices_folder / lost).write_bytes(content[:100])
        for _ in range(2):
            done = dinomed.predict(
                user_folder / "seg", slices_folder / "manifest.csv", tmp_path / "out", volumes=True, sheet=False,
                backbone=user_folder / "ssl", overwrite=True,
            )  # fmt: skip
            written = {path.name for path in (tmp_path / "out" / "volumes").iterdir()}
            (tmp_path / "out" / "volumes" / "series.seg.dcm").touch()  # of another program; the second call keeps it
    finally:
        (slices_folder / lost).write_bytes(content)
    assert [path for path, _ in done.unreadable] == [lost]
    assert written == {"a.nii.gz", "series.seg.dcm"}
    rows = {row["volume"]: row for row in rows_of(tmp_path / "out" / "volumes.csv")}
    assert "1 of 5 slices have no prediction (the first: 2)" in rows["series"]["problem"]


def test_a_damaged_reference_mask_costs_the_metrics_of_its_volume_only(
    user_folder: Path, slices_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "slices"
    shutil.copytree(slices_folder, folder)
    mask = read_manifest(folder / "manifest.csv").column("mask")
    (folder / next(path for path in mask if path is not None)).write_bytes(b"no picture")
    dinomed.predict(
        user_folder / "seg", folder / "manifest.csv", tmp_path / "out", volumes=True, sheet=False,
        backbone=user_folder / "ssl",
    )  # fmt: skip
    rows = {row["volume"]: row for row in rows_of(tmp_path / "out" / "volumes.csv")}
    assert rows["a"]["problem"].startswith("no metrics: ")
    assert rows["a"]["voxels"]
    assert rows["a"]["dice"] == ""
    assert rows["series"]["voxels"]
    assert rows["series"]["problem"] == ""
    assert len(list((tmp_path / "out" / "volumes").iterdir())) == 2


def test_volumes_need_all_slices_and_a_segmenter(user_folder: Path, slices_folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(slices_folder / "manifest.csv")
    write_manifest(manifest.take(range(1, len(manifest))), slices_folder / "part.csv")
    images = pa.array(["a/first.png", *manifest.column("image")[1:]])
    write_manifest(
        replace(manifest, table=manifest.table.set_column(0, "image", images)), slices_folder / "renamed.csv"
    )
    for data, adapter, message in (
        (slices_folder / "part.csv", "seg", "of the .* slices of volume a; give all"),
        (slices_folder / "renamed.csv", "seg", "a/first.png is no slice that `dinomed slices` wrote"),
        (slices_folder.parent / "slices" / "a", "seg", "holds no volumes.json"),
        (slices_folder / "manifest.csv", "cls", "for segmenters"),
    ):
        with pytest.raises(UsageError, match=message):
            dinomed.predict(user_folder / adapter, data, tmp_path / "out", volumes=True, backbone=user_folder / "ssl")
    assert not (tmp_path / "out").exists()
    for name in ("part.csv", "renamed.csv"):
        (slices_folder / name).unlink()


def test_dice_and_hd95_are_those_of_scipy_in_mm() -> None:
    target, prediction = ball((24, 20, 16), (12, 10, 8), 6), ball((24, 20, 16), (14, 9, 8), 5)
    spacing = (0.7, 1.5, 4.0)

    def surface(mask: np.ndarray) -> np.ndarray:
        return mask & ~ndimage.binary_erosion(mask)

    def directed(start: np.ndarray, end: np.ndarray) -> float:
        distances = ndimage.distance_transform_edt(~surface(end), sampling=spacing)
        return float(np.percentile(distances[surface(start)], 95))

    overlap = volume_overlap(target, prediction, spacing)
    assert overlap.dice == pytest.approx(2 * (target & prediction).sum() / (target.sum() + prediction.sum()))
    expected = max(directed(target, prediction), directed(prediction, target))
    assert overlap.hd95_mm == pytest.approx(expected, rel=1e-5)  # 32 bits
    empty = np.zeros_like(target)
    assert volume_overlap(empty, empty, spacing).dice == 1
    assert volume_overlap(target, empty, spacing).dice == 0
    assert np.isnan(volume_overlap(target, empty, spacing).hd95_mm)
