"""The end of a command's output: the paths it wrote, and a next command that the command line accepts."""

import os
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import dinomed
from dinomed.apps import cli, ending
from dinomed.apps.api import demo as demo_api
from dinomed.apps.ending import (
    after_corrections,
    after_manifest,
    after_training,
    command_line,
    demo_step,
    free_path,
    print_end,
)
from dinomed.apps.quickstart import run as quickstart_run
from dinomed.backbones.frozen import check_image_size
from dinomed.backbones.variants import VARIANTS
from dinomed.config import parse_overrides
from dinomed.datasets.manifest import build_manifest, read_manifest, write_manifest

Run = Callable[..., tuple[int, str, str]]
SEGMENT = "dinomed train segment --backbone ssl --data derm.parquet --output seg3"
FAST = ("--set", "fit.epochs=1", "--set", "fit.min_steps=0")


@pytest.fixture
def place(user_folder: Path, tiny_pretraining: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the artefacts of a user in it."""
    (tmp_path / "tiny.yaml").symlink_to(tiny_pretraining)
    for path in user_folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "seg2").symlink_to(user_folder / "seg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parse(line: str) -> Any:
    """Read a printed command as its command does, and return its values."""
    words = shlex.split(line)
    assert words[0] == "dinomed"
    depth = 2 if isinstance(cli.COMMANDS[words[1]], dict) else 1
    with cli.find_command(words[1:]).make_context(" ".join(words[1 : depth + 1]), words[depth + 1 :]) as context:
        return {"command": " ".join(words[1 : depth + 1]), **context.params}


def check_end(out: str, mark: str = "") -> dict[str, Any]:
    """Check the last lines of an output, and return the values of the next command; `then`: lines after it."""
    lines = out.splitlines()
    then: list[str] = []
    while lines[-1].startswith((f"{mark}Then (", f"{mark}Or, ")):
        then.insert(0, lines.pop())
    assert len(then) <= 2
    written = [line.removeprefix(f"{mark}Wrote: ") for line in lines if line.startswith(f"{mark}Wrote: ")]
    assert [path for path in written if not Path(path).exists()] == []
    assert lines[-1].startswith(f"{mark}Next: dinomed "), out
    assert [line for line in lines if "Wrote: " in line or "Next: " in line] == lines[-len(written) - 1 :]
    return {**parse(lines[-1].removeprefix(f"{mark}Next: ")), "written": written, "then": then}


FEATURES = ("derm.parquet", "-b", "ssl")
COMMANDS: list[tuple[tuple[str, ...], str, dict[str, str], list[str]]] = [
    (("scan", "lesions", "--labels", "labels.csv", "--group", "lesion_id", "-o", "new.parquet"), "pretrain",
     {"data": "new.parquet", "out": "runs/ssl"}, ["new.parquet"]),
    (("scan", "lesions", "--labels", "labels.csv", "--mask", "none", "-o", "a b.parquet"), "pretrain",
     {"data": "a b.parquet"}, ["a b.parquet"]),
    (("scan", "lesions", "--mask", "none", "-o", "bare.parquet"), "pretrain",
     {"data": "bare.parquet"}, ["bare.parquet"]),
    (("features", *FEATURES, "--image-size", "40", "-o", "f.parquet"), "probe",
     {"backbone": "ssl", "data": "derm.parquet", "image_size": "40"}, ["f.parquet"]),
    (("features", "lesions/images", "-b", "ssl", "-o", "g.parquet"), "show map",
     {"data": "lesions/images"}, ["g.parquet"]),
    (("probe", "ssl", "--data", "derm.parquet"), "train classify", {"backbone": "ssl", "data": "derm.parquet"}, []),
    (("train", "classify", "-b", "ssl", "--data", "derm.parquet", "-o", "c", *FAST), "evaluate",
     {"data": "derm.parquet", "out": "c_test"}, ["c"]),
    (("evaluate", "cls", "--data", "derm.parquet", "--resamples", "10", "-o", "e"), "demo classify",
     {"adapter": "cls"}, ["e", "e/report.html"]),
    (("evaluate", "seg", "seg2", "--data", "derm.parquet", "--resamples", "10"), "demo segment",
     {"adapter": "seg"}, []),
    (("predict", "seg", "lesions/images", "-o", "p"), "demo segment", {"adapter": "seg"}, ["p", "p/index.html"]),
    (("features", "A", "-b", "ssl", "-o", "h.parquet"), "show map", {}, ["h.parquet"]),
    (("index", *FEATURES, "-o", "i"), "search",
     {"index": "i", "images": "derm.parquet", "evaluate": "True"}, ["i"]),
    (("index", "lesions/images", "-b", "ssl", "-o", "i"), "demo retrieve", {"index": "i"}, ["i"]),
    (("search", "lesions/images", "-i", "idx", "-k", "2", "-o", "s"), "demo retrieve", {"index": "idx"}, ["s"]),
    (("search", "derm.parquet", "-i", "idx", "--evaluate"), "demo retrieve", {"index": "idx"}, []),
    (("export", "cls", "--format", "safetensors", "-o", "x"), "doctor", {"path": "x"}, ["x"]),
    (("show", "pca", "lesions/images", "-b", "ssl", "-o", "pca.png"), "show similarity",
     {"backbone": "ssl"}, ["pca.png"]),
    (("show", "match", "A", "B", "-b", "ssl", "-o", "m.png"), "show similarity", {"backbone": "ssl"}, ["m.png"]),
    (("show", "attention", "A", "-b", "ssl", "-o", "pca.png"), "show pca", {"out": "pca_2.png"}, ["pca.png"]),
    (("show", "similarity", "A", "-b", "ssl", "-o", "s.png"), "show similarity", {"out": "similarity.html"}, ["s.png"]),
    (("show", "map", *FEATURES, "--method", "pca", "-o", "map.png"), "show map",
     {"out": "map.html", "method": "pca"}, ["map.png"]),
    (("show", "map", *FEATURES, "--method", "pca", "-o", "map.html"), "index", {"data": "derm.parquet"}, ["map.html"]),
    (("curate", "--pool", "derm.parquet", "-o", "k.parquet", "--set", "quality.min_short_side_px=32"), "pretrain",
     {"data": "k.parquet"}, ["k.parquet", "k.html"]),
    (("audit", "derm.parquet", "--labels", "label", "-b", "ssl", "--folds", "2", "-o", "l.html"), "show map",
     {"data": "derm.parquet", "color": "label"}, ["l.html"]),
    (("pretrain", "tiny.yaml", "--data", "derm.parquet", "-o", "r", "--device", "cpu"), "probe",
     {"backbone": "r", "data": "derm.parquet"}, ["r"]),
    (("config", "schema", "classify", "-o", "c.json"), "config show", {"job": "classify"}, ["c.json"]),
    (("doctor", "derm.parquet"), "pretrain", {"data": "derm.parquet"}, []),
    (("doctor", "cls"), "demo classify", {"adapter": "cls"}, []),
    (("doctor", "idx"), "demo retrieve", {"index": "idx"}, []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "following", "values", "written"), COMMANDS, ids=[" ".join(line[:3]) for line, *_ in COMMANDS]
)
def test_a_command_ends_with_its_paths_and_a_valid_next_command(
    place: Path, run: Run, line: tuple[str, ...], following: str, values: dict[str, str], written: list[str]
) -> None:
    pictures = sorted((place / "lesions" / "images").iterdir())
    names = {"A": pictures[0], "B": pictures[1]}
    code, out, err = run(*(names.get(word, word) for word in line))
    assert code == 0, err
    end = check_end(out)
    assert end["command"] == following
    assert {name: str(end[name]) for name in values} == values
    assert end["written"] == written


def test_a_video_and_a_volume_end_with_their_manifest(place: Path, run: Run, tmp_path: Path) -> None:
    cv2, nibabel = pytest.importorskip("cv2"), pytest.importorskip("nibabel")
    rng = np.random.default_rng(0)
    video = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5.0, (64, 48))
    for _ in range(6):
        video.write(np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8))
    video.release()
    code, out, err = run("frames", "v.avi", "-o", "frames", "--min-tissue", 0, "--fps", 0)
    assert code == 0, err
    end = check_end(out)
    assert (end["command"], str(end["data"])) == ("pretrain", "frames/manifest.csv")
    assert end["written"] == ["frames/manifest.csv", "frames/dropped.csv"]
    voxels = rng.integers(0, 200, (16, 16, 4)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii")
    code, out, err = run("slices", "a.nii", "-o", "slices")
    assert code == 0, err
    end = check_end(out)
    assert (end["command"], end["written"]) == ("pretrain", ["slices/manifest.csv"])
    (tmp_path / "labels").mkdir()
    nibabel.save(nibabel.Nifti1Image((voxels > 100).astype(np.uint8), np.eye(4)), tmp_path / "labels" / "a.nii")
    code, out, err = run("slices", "a.nii", "--masks", "labels", "-o", "slices2")
    assert code == 0, err
    end = check_end(out)
    assert (end["command"], str(end["folder"])) == ("scan", "slices2")
    code, out, err = run(*shlex.split(out.splitlines()[-1].removeprefix("Next: dinomed ")))
    assert code == 0, err
    end = check_end(out)
    assert end["command"] == "pretrain"
    assert end["then"][0].startswith("Then (train segment for the masks): dinomed train segment ")


def test_a_leak_ends_with_a_curation_and_a_set_without_one_with_nothing(place: Path, run: Run) -> None:
    manifest = read_manifest("derm.parquet")
    write_manifest(manifest.select(split="train"), "train.parquet")
    write_manifest(manifest.select(split="train").take([0, 1]), "test.parquet")
    code, out, err = run("audit", "train.parquet", "test.parquet", "--set", "near=false")
    assert code == 1, err
    end = check_end(out)
    assert (end["command"], [str(path) for path in end["exclude"]]) == ("curate", ["test.parquet"])
    code, out, err = run("audit", "derm.parquet", "--set", "near=false", "-o", "page.html")
    assert code == 0, err
    assert out.splitlines()[-1] == "Wrote: page.html"


@pytest.mark.parametrize(
    "line",
    [
        ("train", "classify", "-b", "ssl", "--data", "derm.parquet", "--label", "a,b", "-o", "c", *FAST),
        ("pretrain", "tiny.yaml", "--data", "derm.parquet", "-o", "r"),
        ("curate", "--pool", "derm.parquet", "-o", "k.parquet"),
    ],
    ids=["train", "pretrain", "curate"],
)
def test_a_dry_run_ends_with_the_run_as_a_comment(place: Path, run: Run, line: tuple[str, ...]) -> None:
    manifest = read_manifest("derm.parquet")
    if "--label" in line:
        columns = {name: manifest.column(name) for name in manifest.columns}
        binary = ["1" if value == columns["label"][0] else "0" for value in columns["label"]]
        (place / "derm.parquet").unlink()
        write_manifest(build_manifest(columns | {"a": binary, "b": binary}, manifest.root), "derm.parquet")
    code, out, err = run(*line, "--dry-run")
    assert code == 0, err
    end = check_end(out, "# ")
    words = shlex.split(out.splitlines()[-1])[3:]
    assert "--dry-run" not in words
    given = parse(shlex.join(["dinomed", *line]))
    assert {name: end[name] for name in given} == given


def test_nothing_is_added_to_json_and_with_quiet_and_no_manifest_is_read_for_it(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_file(data: Any) -> None:
        raise AssertionError("the next command is computed")

    monkeypatch.setattr(ending, "read_file", read_file)
    for options in (("--json",), ("--quiet",)):
        code, out, _ = run("index", "derm.parquet", "-b", "ssl", "-o", f"i{options[0]}", *options)
        assert code == 0
        assert not re.search("Wrote:|Next:", out)


def test_a_quickstart_and_the_machine_end_with_a_demo_and_a_quickstart(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = {
        "segment": "seg", "classify": None, "index": "idx", "examples": "lesions", "report": "derm.parquet",
        "images": 60, "data": "lesions", "results": [], "classifier": None, "classes": {}, "scope": "",
    }  # fmt: skip
    monkeypatch.setattr(quickstart_run, "quickstart", lambda *_, **__: results)
    code, out, err = run("quickstart", "--no-demo", "-o", "lesions")
    assert code == 0, err
    end = check_end(out)
    assert (end["command"], str(end["segment"]), end["classify"]) == ("demo all", "seg", None)
    code, out, _ = run("doctor")
    assert check_end(out)["command"] == "quickstart"


def test_corrections_of_a_demo_end_with_a_training(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(**_: Any) -> None:
        (place / "saved").mkdir()
        (place / "saved" / "corrections.parquet").write_bytes(b"")
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(demo_api, "demo", serve)
    code, out, _ = run("demo", "segment", "--adapter", "seg", "--save", "saved")
    assert code == 130
    end = check_end(out)
    assert (end["command"], str(end["data"])) == ("train segment", "saved/corrections.parquet")
    assert dinomed.load_backbone(end["backbone"]).fingerprint == dinomed.load_backbone("ssl").fingerprint
    given = after_corrections("m.parquet", "seg", "moved")
    assert given[1]["backbone"] == "moved"


def test_a_demo_that_does_not_start_names_no_corrections(place: Path, run: Run) -> None:
    (place / "saved").mkdir()
    (place / "saved" / "corrections.parquet").write_bytes(b"")
    code, out, err = run("demo", "segment", "--adapter", "moved", "--save", "saved")
    assert code == 2
    assert out == ""
    assert "moved" in err


def test_splits_of_one_manifest_end_with_no_curation(place: Path, run: Run) -> None:
    manifest = read_manifest("derm.parquet")
    columns = {name: manifest.column(name) for name in manifest.columns}
    columns["sha256"] = [columns["sha256"][0]] * len(manifest)  # each image is a copy of the first
    (place / "derm.parquet").unlink()
    write_manifest(build_manifest(columns, root=manifest.root), "derm.parquet")
    splits = ("--train-split", "train", "--test-split", "test")
    code, out, _ = run("audit", "derm.parquet", "derm.parquet", *splits, "--set", "near=false")
    assert code == 1
    assert "Next" not in out


def test_numbers_of_a_backbone_have_all_digits_and_values_are_no_paths() -> None:
    mean = (0.48145466, 0.4578275, 0.40821073)
    assert "--mean 0.48145466,0.4578275,0.40821073" in str(command_line(["probe"], {"backbone": "x", "mean": mean}))
    line = command_line(["train", "classify"], {"backbone": "x", "data": Path("-m.csv"), "out": "o", "separator": "-"})
    assert line is not None
    assert "--data ./-m.csv" in line
    assert "--separator -" in line


def test_a_scan_proposes_a_pretraining_before_heads_for_masks_and_labels(place: Path, run: Run) -> None:
    scan = ("scan", "lesions", "--labels", "labels.csv", "--group", "lesion_id")
    code, out, err = run(*scan, "-o", "new.parquet")
    assert code == 0, err
    end = check_end(out)
    task, weights = end["then"]
    words, _, line = task.partition(": ")
    assert words == "Then (train segment for the masks, train classify for the labels)"
    training = parse(line)
    assert (training["command"], training["backbone"]) == ("train segment", str(end["out"]))  # nothing is downloaded
    assert "--weights FILE" in weights
    code, out, err = run(*scan, "--mask", "none", "-o", "classes.parquet")
    assert code == 0, err
    assert check_end(out)["then"][0].startswith("Then (train classify for the labels): dinomed train classify ")
    code, out, err = run("scan", "lesions", "--mask", "none", "-o", "bare.parquet")
    assert code == 0, err
    assert check_end(out)["then"] == []


def test_label_maps_are_trained_with_their_classes(place: Path) -> None:
    manifest = read_manifest("derm.parquet")
    assert "--set kind=multiclass" in after_manifest("m.parquet", manifest, masks=True, label_maps=True).lines[0]
    assert "kind=" not in after_manifest("m.parquet", manifest, masks=True).lines[0]


def test_the_head_for_few_masks_is_proposed_up_to_its_number_of_masks(
    lesion_manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(lesion_manifest)
    training = parse(after_manifest("m.parquet", manifest, masks=True).lines[0].partition(": ")[2])
    assert (training["head"], training["settings"]) == ("hybrid_unet", ["image_size=128"])
    pretraining = dinomed.resolve_config("pretrain", config=ending.CONFIG)
    assert ending.MASK_SIZE % pretraining["backbone"]["patch_size"] == 0
    monkeypatch.setattr(ending, "FEW_MASKS", 3)
    training = parse(after_manifest("m.parquet", manifest, masks=True).lines[0].partition(": ")[2])
    assert (training["head"], training["settings"]) == (parse(SEGMENT)["head"], parse(SEGMENT)["settings"])
    assert "image_size" not in after_manifest("m.parquet", manifest, masks=True).lines[1]


@pytest.mark.parametrize("label_maps", [False, True])
def test_the_options_of_a_published_backbone_fit_the_proposed_training(lesion_manifest: Path, label_maps: bool) -> None:
    manifest = read_manifest(lesion_manifest)
    lines = after_manifest("m.parquet", manifest, masks=True, label_maps=label_maps).lines
    options = lines[1].partition(": ")[2].partition(";")[0]
    training = parse(f"{lines[0].partition(': ')[2]} {options}")  # as a user adds them
    assert (training["backbone"], training["head"]) == ("dinov2_vits14", "hybrid_unet")
    size = parse_overrides(training["settings"])["image_size"]
    assert size == 126
    check_image_size(size, VARIANTS[training["backbone"]].patch_size)


def test_data_without_a_test_split_and_other_tasks_end_with_the_demo_of_all(place: Path, tmp_path: Path) -> None:
    write_manifest(read_manifest("derm.parquet").select(split="train"), "train.parquet")
    assert after_training("depth", "runs/depth", "train.parquet") == demo_step("depth", "runs/depth")
    assert command_line(*demo_step("depth", "runs/depth")) == "dinomed demo all --adapter runs/depth"


def test_a_path_that_a_terminal_cannot_show_is_in_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    print_end(["a\x1b[31m"], (["doctor"], {"path": "a\x1b[31m"}))
    assert capsys.readouterr().out == "Wrote: a\\x1b[31m\n"


def test_a_proposed_output_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "map.html").touch()
    (tmp_path / "map_2.html").touch()
    assert free_path(tmp_path / "map.html") == tmp_path / "map_3.html"
    assert free_path(tmp_path / "new.html") == tmp_path / "new.html"
    values = SimpleNamespace(**parse("dinomed " + "show pca ./-x.png -b ssl -o pca.png"))
    assert [str(path) for path in values.images] == ["-x.png"]
