"""Dice and HD95 by volume and by video, and their intervals over groups."""

import json
import runpy
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import dinomed
from dinomed.adapters.tasks.volume_metrics import CaseValues, VolumeComparison, case_tables, video_values
from dinomed.datasets.manifest import Manifest, build_manifest, read_manifest, write_manifest
from dinomed.errors import UsageError
from dinomed.metrics.bootstrap import bootstrap_mean
from dinomed.metrics.segmentation import volume_overlap
from dinomed.volumes.geometry import Grid, slices_of

pytest.importorskip("nibabel")
made = runpy.run_path(str(Path(__file__).parents[2] / "volumes" / "made.py"))
SHAPE = (12, 10, 6)
AFFINE = np.array([[0.0, 0, 5, -20], [1.5, 0, 0, 15], [0, 0.5, 0, 30], [0, 0, 0, 1]])
"""Axes in another order than those of the patient, of three spacings."""


def blob(rng: np.random.Generator) -> np.ndarray:
    """A random box inside of the volume, bool."""
    mask = np.zeros(SHAPE, bool)
    first = [int(rng.integers(1, size // 2)) for size in SHAPE]
    mask[tuple(slice(start, start + int(rng.integers(2, 4))) for start in first)] = True
    return mask


@pytest.fixture(scope="module")
def slices_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of slices of three volumes with masks, of two patients, all of the split test."""
    folder, rng = tmp_path_factory.mktemp("slices"), np.random.default_rng(0)
    for number in range(3):
        name = f"{number}.nii.gz"
        made["write_nifti"](folder / "in" / name, made["numbers"](SHAPE, number), AFFINE)
        made["write_nifti"](folder / "masks" / name, blob(rng).astype(np.uint8), AFFINE)
    written = dinomed.slices(
        folder / "in", folder / "out", axis="coronal", masks=folder / "masks", window="0,1500", keep_ids=True
    )
    manifest = written.manifest
    patients = ["a" if name in ("0", "1") else "b" for name in manifest.column("volume")]
    table = manifest.table.drop_columns(["group"]).append_column("group", pa.array(patients))
    table = table.append_column("split", pa.array(["test"] * len(table)))
    write_manifest(replace(manifest, table=table), written.folder / "test.csv")
    return written.folder / "test.csv"


def volumes_of(manifest: Manifest) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(manifest.column("volume")):
        rows.setdefault(name, []).append(row)
    return rows


def test_a_volume_is_compared_as_a_whole_in_mm_in_any_order_of_its_slices(slices_manifest: Path) -> None:
    manifest, rng = read_manifest(slices_manifest), np.random.default_rng(1)
    grid = Grid(SHAPE, AFFINE)
    comparison, expected, slices = VolumeComparison(manifest, ["lesion"]), {}, []
    for name, rows in volumes_of(manifest).items():
        target, predicted = blob(rng), blob(rng)
        expected[name] = volume_overlap(target, predicted, grid.spacing_mm)
        pictures = zip(slices_of(target, grid, "coronal"), slices_of(predicted, grid, "coronal"), strict=True)
        slices += [(row, *masks) for row, masks in zip(rows, pictures, strict=True)]
    for place in rng.permutation(len(slices)):
        row, target, predicted = slices[place]
        comparison.add(row, target[None], predicted[None])
    result = comparison.result()
    assert result is not None
    assert sorted(result.groups) == ["a", "a", "b"]
    assert result.incomplete == 0
    pairs = sorted((pair.dice, pair.hd95_mm) for pair in expected.values())
    measured = sorted(map(tuple, result.values["lesion"].tolist()))
    np.testing.assert_allclose(measured, pairs, rtol=1e-6)  # MONAI's distances have 32 bits


def test_missing_slices_are_counted_and_a_gap_leaves_no_distance(slices_manifest: Path) -> None:
    manifest, rng = read_manifest(slices_manifest), np.random.default_rng(2)
    rows = volumes_of(manifest)
    cut, gap, whole = rows.values()
    part = manifest.take([*cut[:-1], *gap[:4], *gap[5:], *whole])
    masks = {image: rng.random((2, 1, 6, 12)) < 0.5 for image in part.column("image")}
    comparison = VolumeComparison(part, ["lesion"])
    height, width = part.column("height")[0], part.column("width")[0]
    for row, image in enumerate(part.column("image")):
        target, predicted = masks[image][..., :height, :width]
        comparison.add(row, target, predicted)
    result = comparison.result()
    assert result is not None
    assert result.incomplete == 2
    assert np.isnan(result.values["lesion"][:, 1]).tolist() == [False, True, False]
    assert not np.isnan(result.values["lesion"][:, 0]).any()
    (table,) = case_tables({"by_volume": result.summarize(20)})
    assert "Slices of 2 volumes are missing" in table.note
    assert [row[-1] for row in table.rows] == [3, 2]


def test_masks_of_an_incomplete_volume_are_kept_as_bits(slices_manifest: Path) -> None:
    manifest = read_manifest(slices_manifest)
    comparison = VolumeComparison(manifest, [str(k) for k in range(500)])
    size = (500, manifest.column("height")[0], manifest.column("width")[0])
    rows = volumes_of(manifest)["0"][:-1]
    tracemalloc.start()
    for row in rows:
        comparison.add(row, np.ones(size, bool), np.zeros(size, bool))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 2 * np.prod(size) * len(rows) / 3  # a byte for up to eight pixels of a row, which has 12


@pytest.mark.parametrize("name", ["0/000001.png", "0/00012.png", f"0/{10**17}.png"])
def test_a_slice_that_its_volume_does_not_have_is_refused(name: str, slices_manifest: Path) -> None:
    manifest = read_manifest(slices_manifest)
    images = pa.array([name, *manifest.column("image")[1:]])
    renamed = replace(manifest, table=manifest.table.set_column(0, "image", images))
    with pytest.raises(UsageError, match=f"{name} is no slice that `dinomed slices` wrote"):
        VolumeComparison(renamed, ["lesion"])


def test_intervals_are_over_groups_and_a_class_has_its_own() -> None:
    rng = np.random.default_rng(3)
    groups = [str(i // 3) for i in range(30)]
    values = {name: np.stack([rng.random(30), rng.random(30) * 9], axis=1) for name in ("liver", "tumour")}
    values["tumour"][:4, 1] = np.nan
    report = CaseValues("volume", groups, values).summarize(200)
    assert (report["n"], report["groups"], report["incomplete"]) == (30, 10, 0)
    for name, table in values.items():
        for place, metric in enumerate(("dice", "hd95_mm")):
            row, (interval,) = report["metrics"][name][metric], bootstrap_mean(table[:, place], groups, resamples=200)
            assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
            assert row["value"] == pytest.approx(np.nanmean(table[:, place]))
            assert row["n"] == np.isfinite(table[:, place]).sum()
    alone = CaseValues("video", ["a", "a"], {"lesion": np.full((2, 2), np.nan)}).summarize(20)
    row = alone["metrics"]["lesion"]["hd95_px"]
    assert np.isnan([row["value"], row["low"], row["high"]]).all()
    assert row["n"] == 0


def test_a_video_counts_once_however_many_frames_it_has() -> None:
    count = 12
    columns = {
        "image": [f"v/frame_{i:06}" for i in range(count)], "sha256": [f"{i:064x}" for i in range(count)],
        "width": [8] * count, "height": [8] * count, "mode": ["RGB"] * count, "format": ["AVI"] * count,
        "bytes": [1] * count, "video": ["long"] * 10 + ["short"] + [None], "group": ["p"] * 11 + [None],
    }  # fmt: skip
    dice = np.array([0.5] * 10 + [0.9, 0.1])
    distances = np.array([2.0, np.nan] * 5 + [np.nan, 1.0])
    result = video_values(build_manifest(columns, Path()), {"lesion": np.stack([dice, distances], axis=1)})
    assert result is not None
    np.testing.assert_allclose(result.values["lesion"], [[0.5, 2.0], [0.9, np.nan]])
    assert result.groups == ["p", "p"]
    del columns["video"]
    assert video_values(build_manifest(columns, Path()), {"lesion": np.zeros((count, 2))}) is None


def test_evaluate_has_the_values_of_predicted_volumes(
    user_folder: Path, slices_manifest: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    options = ("--backbone", user_folder / "ssl", "--json")
    code, out, _ = run("evaluate", user_folder / "seg", "--data", slices_manifest, *options, "-o", tmp_path / "page")
    assert code == 0
    report = json.loads(out)
    run("predict", user_folder / "seg", slices_manifest, "-o", tmp_path / "out", "--volumes", "--no-sheet", *options)
    summary = json.loads((tmp_path / "out" / "volumes_summary.json").read_text())
    assert summary.pop("purpose") == "for research use only, not for diagnosis"
    assert summary.pop("incomplete") == report["by_volume"].pop("incomplete") == 0
    assert summary["metrics"]["lesion"]["dice"]["n"] == 3
    assert summary["groups"] == 2
    for metric, row in summary["metrics"]["lesion"].items():
        assert report["by_volume"]["metrics"]["lesion"][metric] == pytest.approx(row, rel=1e-6), metric
    assert "Dice and HD95 by volume" in (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
