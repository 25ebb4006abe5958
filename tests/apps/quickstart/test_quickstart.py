"""The main job on small collections: all of it, and as much of it as the images allow."""

import html
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dinomed
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.apps import cli
from dinomed.apps.ending import command_line
from dinomed.apps.quickstart import run as quickstart
from dinomed.apps.quickstart.report import COLUMNS, demo_arguments
from dinomed.config import load_config
from dinomed.configs import find_config
from dinomed.errors import UsageError
from dinomed.pretrain.config import PretrainConfig

TINY = """
backbone: {embed_dim: 32, depth: 2, num_heads: 2, patch_size: 8}
crops: {global_size: 32, local_size: 16, num_local: 2}
objective:
  dino_head: {prototypes: 32, hidden: 32, bottleneck: 16}
  ibot_head: {prototypes: 32, hidden: 32, bottleneck: 16}
run: {steps: 4, batch_size: 8, workers: 0, log_every: 1, checkpoint_every: 2, pca_images: 3}
"""


@pytest.fixture(autouse=True)
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backbone and a head that train in a second, instead of those that are worth looking at."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    monkeypatch.setattr(quickstart, "CONFIG", str(path))
    head = tmp_path / "head.yaml"
    head.write_text("fit: {epochs: 2, min_steps: 20}\n")
    monkeypatch.setattr(quickstart, "SEGMENT_CONFIG", str(head))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict, str]:
    cli.invoke(["quickstart", "--no-demo", "--json", "--device", "cpu", *arguments])
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def test_the_configs_that_are_shipped_are_valid() -> None:
    config = load_config(PretrainConfig, find_config("configs/pretrain/quickstart.yaml"))
    assert config.run.steps > 100
    load_config(SegmentConfig, find_config("configs/adapters/segment.yaml"))


@pytest.mark.slow
def test_synthetic_lesions_from_pictures_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "quick start"
    results, messages = run(capsys, "--count", "48", "-o", str(folder))
    pretrained, untrained, otsu = results["results"]
    for row in (pretrained, untrained):
        assert set(row) == {"method", *COLUMNS}
        assert all(0 <= row[name] <= 1 for name in COLUMNS)
    assert 0 < otsu["dice"] <= 1
    assert pretrained != {**untrained, "method": pretrained["method"]}  # not the same backbone twice
    for command in ("scan", "pretrain", "probe", "train classify", "train segment", "evaluate", "index"):
        assert f"$ dinomed {command} " in messages
    assert messages.count("--set augment_copies=1") == 2  # the segmenters of both backbones
    report = (folder / "report.html").read_text()
    assert "Classifier on the test split" in report  # the evaluation of both heads is part of the report
    assert "Confusion matrix" in report
    assert "Segmenter on the test split" in report
    assert "Worst cases" in report
    demo = command_line(["demo", "all"], demo_arguments(results))
    assert html.escape(str(demo)) in report
    assert report.count("<main>") == 1  # a part of the evaluation page, not the page
    assert report.count("<polyline") >= 3
    assert "For research use only" in report
    assert "SYN_" not in report  # a file's name may be a patient's
    names = sorted(path.name for path in (folder / "examples").iterdir())
    assert names == [f"example_{n}.jpg" for n in range(1, quickstart.NUM_EXAMPLES + 1)]

    again, messages = run(capsys, "--count", "48", "-o", str(folder))
    assert again["results"] == results["results"]
    assert messages.count("done already") == messages.count("$ dinomed ") - 1  # all but the scan
    assert again["seconds"] < results["seconds"]


def draw(folder: Path, names: list[str], masks: list[str] = ()) -> Path:  # type: ignore[assignment]
    """Pictures of 50x40 with a dark square, and their masks: ``images/NAME.png`` and ``masks/NAME.png``, or split
    folders above them where NAME is ``SPLIT/NAME``."""
    rng = np.random.default_rng(0)
    mask = np.zeros((40, 50), bool)
    mask[10:25, 15:35] = True
    for name in names:
        split, _, stem = name.rpartition("/")
        pixels = rng.integers(150, 255, (40, 50, 3), dtype=np.uint8)
        pixels[mask] //= 4
        for kind, array in (("images", pixels), ("masks", mask)):
            if kind == "images" or name in masks:
                (folder / split / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / split / kind / f"{stem}.png")
    return folder


def label(folder: Path, classes: dict[str, str]) -> None:
    rows = "".join(f"{name},{value}\n" for name, value in classes.items())
    (folder / "labels.csv").write_text("image,label\n" + rows)


def commands(messages: str) -> set[str]:
    """The first word of each command that was run."""
    return {line.split()[2] for line in messages.splitlines() if line.startswith("$ dinomed ")}


@pytest.mark.slow
def test_without_labels_and_masks_a_backbone_is_pretrained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = draw(tmp_path / "own", [f"{i:02}" for i in range(12)])
    results, messages = run(capsys, "--data", str(pictures), "-o", str(tmp_path / "out"))
    assert results["segment"] is None
    assert commands(messages) == {"scan", "pretrain", "index"}
    plan = messages.index("Plan: pretrain on 12 images, index for similar cases. Not done: classification (no labels")
    assert "segmentation (no masks" in messages[plan:].splitlines()[0]
    assert plan < messages.index("$ dinomed pretrain")
    assert [set(row) for row in results["results"]] == [{"method"}, {"method"}]
    report = (tmp_path / "out" / "report.html").read_text()
    assert "Results on the test split" not in report
    assert "Not done: classification" in report
    assert "<polyline" in report


@pytest.mark.slow
def test_masks_in_train_only_give_a_segmenter_without_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"train/{i:02}" for i in range(8)] + [f"test/{i:02}" for i in range(10, 13)]
    pictures = draw(tmp_path / "own", names, masks=names[:8])
    results, messages = run(capsys, "--data", str(pictures), "-o", str(tmp_path / "out"))
    assert "segment, from 8 masks (not measured on test)" in messages
    assert "metrics of the segmentation (no mask in test)" in results["scope"]
    assert commands(messages) == {"scan", "pretrain", "train", "index"}
    assert (Path(results["segment"]) / "adapter.json").is_file()
    assert len(list(Path(results["examples"]).iterdir())) == 3  # of test, though it has no masks


@pytest.mark.slow
def test_labels_alone_give_a_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{i:02}" for i in range(20)]
    pictures = draw(tmp_path / "own", names)
    label(pictures, {name: "ab"[i % 2] for i, name in enumerate(names)})
    results, messages = run(capsys, "--data", str(pictures), "-o", str(tmp_path / "out"))
    assert "classify 2 classes (measured on test)" in messages
    assert results["segment"] is None
    assert 0 <= results["classifier"]["balanced_accuracy"] <= 1
    assert 0 <= results["results"][0]["knn_auroc"] <= 1


@pytest.mark.slow
def test_one_class_is_not_classified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{i:02}" for i in range(10)]
    pictures = draw(tmp_path / "own", names)
    label(pictures, dict.fromkeys(names, "nevus"))
    results, messages = run(capsys, "--data", str(pictures), "-o", str(tmp_path / "out"))
    assert "classification (the training images have one class only" in messages
    assert results["classifier"] is None


def test_three_images_are_too_few_and_nothing_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = draw(tmp_path / "own", ["a", "b", "c"])
    with pytest.raises(SystemExit) as end:
        cli.main(["quickstart", "--data", str(pictures), "-o", str(tmp_path / "out"), "--no-demo"])
    messages = capsys.readouterr().err
    assert end.value.code == 2
    assert f"error: {pictures}: 3 readable images" in messages
    assert "needs at least 4" in messages
    assert "$ dinomed pretrain" not in messages


def test_an_output_among_the_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = draw(tmp_path / "own", ["a", "b", "c"])
    with pytest.raises(SystemExit) as end:
        cli.main(["quickstart", "--data", str(pictures), "-o", str(pictures / "runs"), "--no-demo"])
    assert end.value.code == 2
    assert "is inside the folder of images" in capsys.readouterr().err
    assert not (pictures / "runs").exists()


def test_another_seed_draws_other_lesions(tmp_path: Path) -> None:
    def drawn(seed: int) -> bytes:
        quickstart.draw_lesions(tmp_path / "lesions", 6, seed)
        return b"".join(path.read_bytes() for path in sorted((tmp_path / "lesions" / "images").iterdir()))

    first = drawn(0)
    assert drawn(0) == first
    assert drawn(1) != first
    (tmp_path / "lesions" / "labels.csv").unlink()  # cut short: the table is written last
    assert drawn(0) == first


@pytest.mark.parametrize("kind", ["missing", "empty", "a file"])
def test_a_folder_without_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    data = tmp_path / "data"
    if kind == "empty":
        data.mkdir()
    elif kind == "a file":
        data.write_text("x")
    with pytest.raises(SystemExit) as end:
        cli.main(["quickstart", "--data", str(data), "-o", str(tmp_path / "out"), "--no-demo"])
    assert end.value.code == 2
    assert str(data) in capsys.readouterr().err


def test_a_folder_of_something_else_is_not_written_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(SystemExit) as end:
        cli.main(["quickstart", "-o", str(tmp_path), "--no-demo"])
    assert end.value.code == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.long
def test_of_two_processes_in_one_folder_the_second_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "dinomed", "quickstart", "--no-demo", "-o", str(out)]
    with subprocess.Popen([*command, "--count", "4000"], stderr=subprocess.DEVNULL) as first:
        try:
            while not (out / "lesions.json").exists() and first.poll() is None:
                time.sleep(0.05)
            drawn = set((out / "lesions").rglob("*"))
            second = subprocess.run([*command, "--count", "40"], capture_output=True, text=True, timeout=300)
            assert first.poll() is None  # still at work, so the second one did meet it
        finally:
            first.terminate()
    assert second.returncode == 1
    assert second.stdout == ""
    assert second.stderr == f"error: {out} is in use by another process; wait, or use another folder\n"
    assert json.loads((out / "lesions.json").read_text())["count"] == 4000  # the second one wrote nothing
    assert drawn <= set((out / "lesions").rglob("*"))
    assert first.returncode == 143


@pytest.mark.parametrize(
    ("files", "arguments", "options"),
    [
        ([], {}, []),
        (["labels.csv"], {}, ["--labels", "labels.csv"]),
        (["labels.csv"], {"labels": "other.csv", "group": "patient"}, ["--labels", "other.csv", "--group", "patient"]),
        ([], {"labels": "folders", "seed": 3}, ["--labels", "folders", "--seed", "3"]),
        ([], {"mask": "none"}, ["--mask", "none"]),
    ],
)
def test_labels_of_a_folder_are_used_unless_others_are_named(
    tmp_path: Path, files: list, arguments: dict, options: list, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "data").mkdir()
    for name in files:
        (tmp_path / "data" / name).write_text("")

    def stop(**_: object) -> None:
        raise UsageError("stopped")

    monkeypatch.setattr(quickstart, "_scan", stop)
    with pytest.raises(UsageError, match="stopped"):
        quickstart.quickstart(tmp_path / "out", data=tmp_path / "data", **arguments)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("$ dinomed scan")]
    words = shlex.split(line)[3:]
    assert words[0] == str(tmp_path / "data")
    del words[words.index("--output") : words.index("--output") + 2]
    assert sorted(words[1:]) == sorted(options)


def test_the_demo_shows_all_results_and_is_printed_as_its_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: dict = {}
    monkeypatch.setattr(dinomed, "demo", lambda **arguments: shown.update(arguments), raising=False)
    quickstart.show_demo({"segment": "q/segment", "classify": None, "index": "q/index", "examples": "q/examples"})
    assert shown == {"segment": "q/segment", "index": "q/index", "examples": "q/examples", "device": "auto"}
    words = shlex.split(capsys.readouterr().err.split("$ ")[1])
    assert words[:3] == ["dinomed", "demo", "all"]
    assert {*zip(words[3::2], words[4::2], strict=True)} == {
        ("--segment", "q/segment"), ("--index", "q/index"), ("--examples", "q/examples")
    }  # fmt: skip
