"""`dinomed pretrain` and `dinomed distill` on the command line, and other commands on their runs."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from dinomed.apps import cli
from dinomed.datasets.manifest import read_manifest, write_manifest
from dinomed.datasets.synthetic.lesions import write_lesions


def call(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Return exit code, stdout, and stderr without its line breaks."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, " ".join(captured.err.split())


@pytest.fixture(scope="module")
def run(tiny_pretraining: Path, lesion_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "ssl"
    with pytest.raises(SystemExit) as end:
        cli.main(["pretrain", str(tiny_pretraining), "--data", str(lesion_manifest), "-o", str(out), "--device", "cpu"])
    assert not end.value.code
    return out


def test_audit_finds_the_training_images_of_a_run(
    run: Path, lesion_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = read_manifest(lesion_manifest).select(split="train")
    write_manifest(train, tmp_path / "train.parquet")
    code, out, _ = call("audit", run, tmp_path / "train.parquet", "--json", capsys=capsys)
    assert code == 1
    leaked = {pair["test"] for pair in json.loads(out)["pairs"] if pair["kind"] == "exact"}
    assert leaked == set(train.column("image"))
    strangers = write_lesions(tmp_path / "others", count=8, seed=99, size=(36, 48), broken=0)
    code, out, errors = call("audit", run, strangers, "--json", capsys=capsys)
    assert (code, json.loads(out)["pairs"]) == (0, []), errors


@pytest.fixture
def small(tiny_pretraining: Path, lesion_manifest: Path, tmp_path: Path) -> list[object]:
    """The arguments of a new run."""
    return [tiny_pretraining, "--data", lesion_manifest, "-o", tmp_path / "out", "--device", "cpu"]


def test_settings_that_contradict_the_weights_are_refused(
    run: Path, small: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    for command, setting in ((("pretrain", *small, "--from", run), "embed_dim"), (("distill", *small), "in_channels")):
        value = {"embed_dim": 32, "in_channels": 1}[setting]
        options = ["--set", f"backbone.{setting}={value}", "--set", "mean=[0.5]", "--set", "std=[0.5]"]
        extra = ["--teacher", run] if command[0] == "distill" else []
        code, _, errors = call(*command, *extra, *(options if setting == "in_channels" else options[:2]), capsys=capsys)
        assert code == 2
        assert f"backbone.{setting}" in errors
        assert str(value) in errors
        assert {"embed_dim": "16", "in_channels": "3"}[setting] in errors
        assert not (small[4] / "config.yaml").exists()  # type: ignore[operator]


def test_settings_that_equal_the_weights_or_are_free_are_used(
    run: Path, small: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--set", "backbone.embed_dim=16", "--set", "backbone.drop_path=0.25"]
    code, _, errors = call("pretrain", *small, "--from", run, *settings, capsys=capsys)
    assert code == 0, errors
    assert "drop_path: 0.25" in (small[4] / "config.yaml").read_text()  # type: ignore[operator]


def test_the_error_for_a_damaged_teacher_does_not_suggest_overwrite(
    run: Path, small: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(run, teacher)
    for path in teacher.rglob("tensors.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    for command in (("distill", *small, "--teacher", teacher), ("pretrain", *small, "--from", teacher)):
        code, _, errors = call(*command, capsys=capsys)
        assert code == 1
        assert f"{teacher} is damaged" in errors or f"{teacher} cannot be used for initialisation" in errors
        assert "--overwrite" not in errors


def test_resume_and_overwrite_together_are_refused(
    run: Path, tiny_pretraining: Path, lesion_manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, errors = call(
        "pretrain", tiny_pretraining, "--data", lesion_manifest, "-o", run, "--resume", "--overwrite", capsys=capsys
    )
    assert (code, "use one of them" in errors) == (2, True)
    assert (run / "run.json").exists()


def test_the_resume_of_a_complete_run_reports_that_it_is_complete(
    run: Path, tiny_pretraining: Path, lesion_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    complete = tmp_path / "complete"
    shutil.copytree(run, complete)
    options = [tiny_pretraining, "--data", lesion_manifest, "-o", complete, "--device", "cpu", "--resume"]
    code, out, errors = call("pretrain", *options, capsys=capsys)
    assert code == 0, errors
    assert f"{complete} is already complete" in errors
    assert "backbone" in out
    assert "second" not in out


def test_pretrain_takes_a_folder_of_images(
    tiny_pretraining: Path, lesion_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = read_manifest(lesion_manifest).root / "images"
    arguments = ["pretrain", tiny_pretraining, "--data", images, "-o", tmp_path / "run", "--device", "cpu", "--json"]
    code, out, errors = call(*arguments, capsys=capsys)
    assert code == 0, errors
    # all but those of the PCA pictures, as for a manifest without splits
    assert json.loads(out)["images"] == len(list(images.iterdir())) - 2


def test_a_pipe_is_refused_without_waiting(
    small: list[object], tiny_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    images = tmp_path / "images"
    images.mkdir()
    os.mkfifo(images / "a.png")

    def too_long(*_: object) -> None:
        raise AssertionError("it waits for a writer")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(60)
    try:
        small[2] = pipe
        for command in (
            ("pretrain", *small),
            ("features", pipe, "-b", tiny_backbone, "-o", tmp_path / "f.parquet"),
            ("scan", pipe, "-o", tmp_path / "m.parquet"),
            ("scan", images, "-o", tmp_path / "m.parquet"),
        ):
            code, _, errors = call(*command, capsys=capsys)
            assert code == 2
            assert str(pipe) in errors or "holds no image" in errors
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_backbone_without_heads_is_distilled_by_its_features(
    run: Path, small: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("distill", *small, "--teacher", run / "backbone")
    code, _, errors = call(*words, capsys=capsys)
    assert code == 2
    assert "set distill.method=features" in errors
    by_features = (*words, "--set", "distill.method=features", "--json")
    code, out, errors = call(*by_features, "--dry-run", capsys=capsys)
    assert code == 0, errors
    plan = json.loads(out)
    assert plan["config"]["crops"]["num_local"] == 0
    assert plan["estimate"]["head_parameters"] == 17 * 16  # the projection
    code, out, errors = call(*by_features, capsys=capsys)
    assert code == 0, errors
    assert json.loads(out)["losses"].keys() == {"loss", "class", "patch"}


def test_a_dry_run_refuses_the_output_that_the_run_refuses(
    run: Path, tiny_pretraining: Path, lesion_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--data", lesion_manifest, "--device", "cpu", "--dry-run")
    pretrain, distill = ("pretrain", tiny_pretraining), ("distill", tiny_pretraining, "--teacher", run)
    (tmp_path / "file").touch()
    for words, message in (
        ((*pretrain, "-o", run), "already holds a run"),
        ((*pretrain, "-o", run, "--resume", "--set", "run.batch_size=8"), "has other settings"),
        ((*pretrain, "-o", lesion_manifest.parent), "is not empty and holds no config.yaml"),
        ((*pretrain, "-o", tmp_path / "file"), "is a file; give a folder"),
        ((*pretrain, "-o", tmp_path / "new", "--nproc", "3"), "is not divisible by the number of processes (3)"),
        ((*distill, "-o", run, "--overwrite"), "holds the weights that the run needs"),
    ):
        code, out, errors = call(*words, *common, capsys=capsys)
        assert (code, out) == (2, ""), errors
        assert message in errors
    for option in ("--resume", "--overwrite"):
        code, _, errors = call(*pretrain, "-o", run, option, *common, capsys=capsys)
        assert code == 0, errors
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
