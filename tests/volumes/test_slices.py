"""`dinomed slices`: the slices of volumes as pictures with a manifest."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dinomed
from dinomed.datasets.open import open_dataset
from dinomed.datasets.scan.scan import scan
from dinomed.errors import DinomedError, UsageError
from dinomed.images.read import IntensityConfig, UnreadableImage, read_image
from dinomed.volumes.windows import WINDOWS, apply_window

made = runpy.run_path(str(Path(__file__).with_name("made.py")))
numbers, write_nifti, write_series = map(made.get, ("numbers", "write_nifti", "write_series"))
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two series of one patient and a NIfTI file, all with names of a patient."""
    write_series(tmp_path / "in" / "PLANTED_a", numbers((4, 5, 6)), uid="1.2.3")
    write_series(tmp_path / "in" / "PLANTED_b", numbers((3, 5, 6)), uid="1.2.4", orientation=(1, 0, 0, 0, 0, -1))
    write_nifti(tmp_path / "in" / "PLANTED_c.nii.gz", numbers((7, 6, 3)))
    return tmp_path / "in"


def pictures(result: object, volume: str) -> list[np.ndarray]:
    manifest = result.manifest  # type: ignore[attr-defined]
    rows = [row for row, name in enumerate(manifest.column("volume")) if name == volume]
    return [np.asarray(Image.open(manifest.path(row))) for row in rows]


def test_each_slice_is_a_row_and_each_patient_a_group(folder: Path, tmp_path: Path) -> None:
    written = dinomed.slices(folder, tmp_path / "out")
    manifest = open_dataset(tmp_path / "out" / "manifest.csv")
    assert len(manifest) == 4 + 5 + 3  # the second series is coronal
    assert written.problems == []
    volumes = {Path(path).parent.name: name for path, name in written.volumes.items()}
    groups = dict(zip(manifest.column("volume"), manifest.groups(), strict=True))
    assert groups[volumes["PLANTED_a"]] == groups[volumes["PLANTED_b"]]
    assert groups[volumes["in"]] == volumes["in"]
    first = [row for row, name in enumerate(manifest.column("volume")) if name == volumes["PLANTED_a"]]
    assert [manifest.column("slice")[row] for row in first] == ["0", "1", "2", "3"]
    spacing = [manifest.column(f"spacing_{name}_mm")[first[0]] for name in ("slices", "rows", "columns")]
    assert spacing == ["2.5", "0.7", "0.5"]
    scanned = scan(tmp_path / "out").manifest
    assert sorted(scanned.column("sha256")) == sorted(manifest.column("sha256"))
    for path in (tmp_path / "out").rglob("*"):
        assert "PLANTED" not in str(path.relative_to(tmp_path))
        assert path.is_dir() or b"PLANTED" not in path.read_bytes()


def test_windows_as_channels_are_not_mixed_for_a_backbone_of_one_channel(folder: Path, tmp_path: Path) -> None:
    several = dinomed.slices(folder / "PLANTED_a", tmp_path / "several", window=["lung", "bone"]).manifest
    assert read_image(several.path(0)).shape == (5, 6, 3)
    for intensity in (IntensityConfig(), IntensityConfig(bits=16)):
        with pytest.raises(UnreadableImage, match=r"three channels are windows .* write slices of one window"):
            read_image(several.path(0), channels=1, intensity=intensity)
    one = dinomed.slices(folder / "PLANTED_a", tmp_path / "one", window="lung").manifest
    assert read_image(one.path(0), channels=1).shape == (5, 6, 1)
    assert read_image(one.path(0)).shape == (5, 6, 3)


@pytest.mark.parametrize("keep_ids", [False, True])
def test_a_series_without_a_patient_is_of_the_patient_of_its_study(tmp_path: Path, keep_ids: bool) -> None:
    for number, patient in enumerate(["", "P1", ""]):
        study = "1.2" if number < 2 else "1.5"
        write_series(tmp_path / "in" / f"{number}", numbers((3, 5, 6)), uid=f"1.2.{number}", patient=patient,
                     StudyInstanceUID=study)  # fmt: skip
    written = dinomed.slices(tmp_path / "in", tmp_path / "out", keep_ids=keep_ids)
    groups = {Path(path).parent.name: name for path, name in written.volumes.items()}
    of_volume = dict(zip(written.manifest.column("volume"), written.manifest.groups(), strict=True))
    first, second, third = (of_volume[groups[name]] for name in ("0", "1", "2"))
    assert first == second != third


def test_series_of_one_study_are_one_group_if_the_patient_is_unknown(tmp_path: Path) -> None:
    for name, uid in (("a", "1.2.3"), ("b", "1.2.4")):
        write_series(tmp_path / "in" / name, numbers((3, 5, 6)), uid=uid, patient="")
    manifest = dinomed.slices(tmp_path / "in", tmp_path / "out").manifest
    assert len(set(manifest.column("volume"))) == 2
    assert len(set(manifest.groups())) == 1


def test_with_keep_ids_volumes_and_patients_have_their_names(folder: Path, tmp_path: Path) -> None:
    written = dinomed.slices(folder, tmp_path / "out", keep_ids=True)
    assert set(written.volumes.values()) == {"PLANTED_a", "PLANTED_b", "PLANTED_c"}
    assert set(written.manifest.groups()) == {"PLANTED", "PLANTED_c"}


def test_windows_are_channels_in_hounsfield_units(folder: Path, tmp_path: Path) -> None:
    hounsfield = numbers((4, 5, 6)) * 2.0 - 1024
    one = dinomed.slices(folder / "PLANTED_a", tmp_path / "one", window="-160,240")
    (volume,) = one.volumes.values()
    for number, picture in enumerate(pictures(one, volume)):
        expected = np.clip((hounsfield[number] + 160) / 400 * 255, 0, 255)
        assert picture.shape == (5, 6)
        assert np.abs(picture - expected).max() <= 0.5 + 1e-3  # rounding to 8 bits
    three = dinomed.slices(folder / "PLANTED_a", tmp_path / "three", window=["lung", "bone", "0,80"])
    picture = pictures(three, volume)[2]
    assert WINDOWS["lung"] == (-1350, 150)
    for channel, window in enumerate((WINDOWS["lung"], WINDOWS["bone"], (0, 80))):
        assert np.array_equal(picture[..., channel], apply_window(hounsfield[2].astype(np.float32), window))
    two = pictures(dinomed.slices(folder / "PLANTED_a", tmp_path / "two", window=["lung", "bone"]), volume)[2]
    assert np.array_equal(two, picture[..., [0, 1, 1]])


def test_neighbours_are_channels_and_repeat_at_the_ends(folder: Path, tmp_path: Path) -> None:
    written = dinomed.slices(folder / "PLANTED_a", tmp_path / "n", window="0,900", neighbours=True)
    (volume,) = written.volumes.values()
    single = pictures(dinomed.slices(folder / "PLANTED_a", tmp_path / "s", window="0,900"), volume)
    for number, picture in enumerate(pictures(written, volume)):
        for channel, neighbour in enumerate((max(number - 1, 0), number, min(number + 1, 3))):
            assert np.array_equal(picture[..., channel], single[neighbour])


def test_without_a_window_the_percentiles_of_the_volume_are_black_and_white(tmp_path: Path) -> None:
    values = np.zeros((10, 10, 10), np.float32)
    values[3:7] = np.linspace(1, 1000, 400).reshape(4, 10, 10)
    values[0, 0, 0] = np.nan
    written = dinomed.slices(write_nifti(tmp_path / "x.nii", values), tmp_path / "out")
    stack = np.stack(pictures(written, *written.volumes.values()))
    assert (stack.min(), stack.max()) == (0, 255)
    assert 0.3 < (stack > 0).mean() < 0.4
    assert read_image(written.manifest.path(0)).shape == (10, 10, 3)


def test_a_faulty_volume_is_listed_and_the_others_are_written(folder: Path, tmp_path: Path, run: Run) -> None:
    (folder / "cut.nii.gz").write_bytes((folder / "PLANTED_c.nii.gz").read_bytes()[:120])
    damaged = sorted((folder / "PLANTED_a").iterdir())[1]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    code, out, err = run("slices", folder, "-o", tmp_path / "out", "--axis", "coronal", "--json")
    assert code == 1
    report = json.loads(out)
    assert report["slices"] == 3 + 6
    assert [(Path(problem["volume"]).name, problem["reason"]) for problem in report["problems"]] == [
        ("000.dcm", "damaged or truncated DICOM"), ("cut.nii.gz", "truncated or damaged compressed data")
    ]  # fmt: skip
    assert "the slices of the other 2 volumes are written" in err.splitlines()[-1]


def test_an_earlier_result_is_replaced_and_other_files_stay(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dinomed.slices(folder, out)
    with pytest.raises(UsageError, match="already holds a result"):
        dinomed.slices(folder, out)
    (out / "note.txt").write_text("mine")
    written = dinomed.slices(folder / "PLANTED_a", out, overwrite=True)
    assert len(list(out.rglob("*.png"))) == len(written.manifest) == 4
    assert (out / "note.txt").exists()
    (out / "manifest.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="did not write"):
        dinomed.slices(folder, out, overwrite=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": "lungs"}, "did you mean 'lung'"),
        ({"window": "240,-160"}, "LOW must be below HIGH"),
        ({"window": ["lung"] * 4}, "4 windows"),
        ({"window": ["lung", "bone"], "neighbours": True}, "give one window"),
        ({"axis": "x"}, "give axial, coronal or sagittal"),
    ],
)
def test_a_wrong_setting_is_refused(folder: Path, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dinomed.slices(folder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_named_windows_are_refused_for_other_modalities_than_ct(tmp_path: Path) -> None:
    write_series(tmp_path / "mr", numbers((3, 5, 6)), Modality="MR")
    with pytest.raises(DinomedError, match="modality is MR, and named windows are in Hounsfield units"):
        dinomed.slices(tmp_path / "mr", tmp_path / "out", window="lung")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_volume_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    for path, message in ((tmp_path / "a.txt", "neither a volume"), (tmp_path, "holds no volume")):
        with pytest.raises(UsageError, match=message):
            dinomed.slices(path, tmp_path / "out")
