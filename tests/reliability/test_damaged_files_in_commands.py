"""One damaged file does not end a job: each command works on the other files and names the damaged one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dinomed.adapters.fit import fit_head
from dinomed.adapters.fitting.config import FitConfig
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.apps import cli
from dinomed.backbones.load import load_backbone
from dinomed.config import parse_yaml
from dinomed.datasets.manifest import read_manifest
from dinomed.errors import DinomedError, UsageError
from dinomed.images.decode import UnreadableImage, refusing
from dinomed.images.read import read_header, read_image, read_whole


def damaged(corpus: SimpleNamespace) -> dict[str, bytes]:
    """DICOM files with one wrong type or length of an element."""
    whole = corpus.SEEDS["dicom"]()
    mode, rows = whole.index(b"\x28\0\x04\0CS"), whole.index(b"\x28\0\x10\0US")
    slope = whole.index(b"\x28\0\x53\x10DS")
    frames = corpus.dicom(corpus.GRAY, NumberOfFrames=1)
    number = frames.index(b"\x28\0\x08\0IS")
    return {
        "mode.dcm": whole[: mode + 4] + b"CQ" + whole[mode + 6 :],
        "rows.dcm": whole[: rows + 6] + b"\x03\0" + whole[rows + 8 : rows + 10] + b"\0" + whole[rows + 10 :],
        "slope.dcm": whole[: slope + 8] + b"x" + whole[slope + 9 :],
        "frames.dcm": frames[: number + 4] + b"FD" + frames[number + 6 :],
        "cut.dcm": whole[:-300],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, corpus: SimpleNamespace) -> Path:
    """Eight images and five damaged DICOM files."""
    root = tmp_path_factory.mktemp("damaged") / "images"
    root.mkdir()
    rng = np.random.default_rng(0)
    for index in range(8):
        pixels = np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((12, 12, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{index}.png")
    for name, content in damaged(corpus).items():
        (root / name).write_bytes(content)
    return root


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that may end with 0 or 1 (`code`: with this one), and return what it printed."""

    def call(*arguments: object, code: int | None = None) -> str:
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert end.value.code in ((0, 1, None) if code is None else (code,)), captured.err
        assert "internal error" not in captured.err
        assert "Planted" not in captured.out + captured.err
        return captured.out + captured.err

    return call


@pytest.mark.parametrize("read", [read_header, read_image, read_whole])
def test_wrong_types_and_lengths_of_elements_are_damage(
    tmp_path: Path, corpus: SimpleNamespace, read: Callable[[Path], object]
) -> None:
    for name, content in damaged(corpus).items():
        (tmp_path / name).write_bytes(content)
        if read is read_header and name in ("slope.dcm", "cut.dcm"):
            continue  # a header does not need them
        with pytest.raises(UnreadableImage) as caught:
            read(tmp_path / name)
        assert caught.value.reason == "damaged or truncated DICOM", name


def test_scan_lists_the_damaged_files(folder: Path, tmp_path: Path, run: Callable[..., str]) -> None:
    printed = run("scan", folder, "-o", tmp_path / "m.parquet")
    assert len(read_manifest(tmp_path / "m.parquet")) == 8
    assert "5" in printed


def test_features_and_index_leave_the_damaged_files_out(
    folder: Path, tmp_path: Path, tiny_backbone: Path, run: Callable[..., str]
) -> None:
    run("features", folder, "--backbone", tiny_backbone, "-o", tmp_path / "f.parquet", "--quiet", code=1)
    assert pq.read_table(tmp_path / "f.parquet")["image"].to_pylist() == [f"{index}.png" for index in range(8)]
    listed = (tmp_path / "f.unreadable.csv").read_text()
    for name in ("mode", "rows", "slope", "frames", "cut"):
        assert f"{name}.dcm,damaged or truncated DICOM" in listed
    run("index", folder, "-b", tiny_backbone, "-o", tmp_path / "idx", "--quiet", code=1)
    assert (tmp_path / "idx" / "index.safetensors").is_file()


def test_predict_lists_the_damaged_files(
    folder: Path, tmp_path: Path, tiny_backbone: Path, lesion_manifest: Path, run: Callable[..., str]
) -> None:
    quick = FitConfig(epochs=1, batch_size=16, min_steps=0)
    backbone, manifest = load_backbone(tiny_backbone), read_manifest(lesion_manifest)
    fit_head(backbone, manifest, tmp_path / "head", ClassifyConfig(fit=quick), cache=tmp_path / "c")
    run("predict", tmp_path / "head", folder, "-b", tiny_backbone, "-o", tmp_path / "out", "--quiet", code=1)
    listed = (tmp_path / "out" / "unreadable.csv").read_text()
    assert all(f"{name}.dcm" in listed for name in ("mode", "rows", "slope", "frames", "cut"))


def test_pretrain_trains_on_the_other_files(
    folder: Path, tiny_pretraining: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    options = ("--set", "run.pca_images=0", "--device", "cpu", "--quiet")
    run("pretrain", tiny_pretraining, "--data", folder, "-o", tmp_path / "run", *options)
    assert (tmp_path / "run" / "backbone").is_dir()


@pytest.mark.parametrize(
    "error", [RecursionError(), MemoryError(), OverflowError("x"), AssertionError(), StopIteration(), SystemError("x")]
)
def test_every_error_of_a_reader_is_an_unreadable_image(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(UnreadableImage), refusing(tmp_path / "a.png"):
        raise error


def test_a_request_to_stop_and_the_death_of_a_data_worker_pass(tmp_path: Path) -> None:
    of_torch = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    for error in (KeyboardInterrupt(), SystemExit(), of_torch):
        with pytest.raises(type(error)), refusing(tmp_path / "a.png"):
            raise error


def test_a_root_that_is_no_text_and_a_huge_number_are_one_line(tmp_path: Path, lesion_manifest: Path) -> None:
    table = pq.read_table(lesion_manifest)
    pq.write_table(table.replace_schema_metadata({b"dinomed.root": b"\xff\xfe"}), tmp_path / "m.parquet")
    with pytest.raises(DinomedError, match="its image folder is not UTF-8 text"):
        read_manifest(tmp_path / "m.parquet")
    for digits in ("9" * 100_000, "0x" + "f" * 100_000):
        with pytest.raises(UsageError, match="line 1: a number of 10"):
            parse_yaml(f"a: {digits}", "x.yaml")


def test_search_names_the_damaged_files(
    folder: Path, user_folder: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    printed = run("search", folder, "--index", user_folder / "idx", "-o", tmp_path / "out", "--quiet", code=1)
    assert "error: 5 images could not be used" in printed
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["image"] for row in report["unreadable"]} == {
        f"{n}.dcm" for n in ("mode", "rows", "slope", "frames", "cut")
    }
    assert [query["image"] for query in report["queries"]] == [f"{index}.png" for index in range(8)]


def test_audit_compares_the_other_files(folder: Path, tmp_path: Path, run: Callable[..., str]) -> None:
    (tmp_path / "test").mkdir()
    for name in ("3.png", "slope.dcm", "mode.dcm"):
        shutil.copy(folder / name, tmp_path / "test")
    Image.new("RGB", (96, 72), (9, 99, 9)).save(tmp_path / "test" / "new.png")
    printed = run("audit", folder, tmp_path / "test", "--json", "-o", tmp_path / "page.html", "--quiet")
    report = json.loads(printed[printed.index("{") : printed.rindex("}") + 1])
    exact = {pair["test"] for pair in report["pairs"] if pair["kind"] == "exact"}
    assert exact == {"3.png", "slope.dcm"}  # a file that cannot be decoded is compared by its bytes
    assert (tmp_path / "page.html").is_file()


def test_audit_does_not_call_a_set_clean_of_which_an_image_cannot_be_read(
    folder: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    rng = np.random.default_rng(9)
    test = tmp_path / "test"
    test.mkdir()
    for index in range(2):
        Image.fromarray(rng.integers(0, 256, (72, 96, 3)).astype(np.uint8)).save(test / f"{index}.png")
    assert "no leak found: " in run("audit", folder, test, "--quiet", code=0)
    whole = (test / "1.png").read_bytes()
    for content in (whole[: len(whole) // 2], b"no image"):  # its header can be read, or nothing
        (test / "1.png").write_bytes(content)
        printed = run("audit", folder, test, "--quiet", code=1)
        assert "no leak found (not all images can be read)" in printed
        assert "error: 1 test images cannot be read" in printed


def test_curate_removes_the_damaged_files(folder: Path, tmp_path: Path, run: Callable[..., str]) -> None:
    out = tmp_path / "c.parquet"
    run("curate", "--pool", folder, "-o", out, "--set", "quality.min_short_side_px=32", "--quiet")
    reasons = pq.read_table(out).select(["image", "reason"]).to_pylist()
    assert {row["image"] for row in reasons if row["reason"] == "unreadable"} == {"slope.dcm", "cut.dcm"}
    assert {row["image"] for row in reasons} == {f"{index}.png" for index in range(8)} | {"slope.dcm", "cut.dcm"}
