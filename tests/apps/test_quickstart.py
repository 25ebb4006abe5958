"""The main job on small collections: all of it, and as much of it as the images allow."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinomed.adapters.config import SegmentConfig
from dinomed.apps import cli, quickstart
from dinomed.config import load_config
from dinomed.configs import find_config
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
    results, told = run(capsys, "--count", "48", "-o", str(folder))
    pretrained, untrained, otsu = results["results"]
    for row in (pretrained, untrained):
        assert set(row) == {"method", *quickstart.COLUMNS}
        assert all(0 <= row[name] <= 1 for name in quickstart.COLUMNS)
    assert 0 < otsu["dice"] <= 1
    assert pretrained != {**untrained, "method": pretrained["method"]}  # not the same backbone twice
    for command in ("scan", "pretrain", "probe", "train classify", "train segment", "evaluate"):
        assert f"$ dinomed {command} " in told
    report = (folder / "report.html").read_text()
    assert report.count("data:image/jpeg") == 7  # six segmented pictures and the PCA
    assert report.count("<polyline") >= 3
    assert "For research use only" in report
    assert len(list((folder / "examples").iterdir())) == quickstart.NUM_EXAMPLES

    again, told = run(capsys, "--count", "48", "-o", str(folder))
    assert again["results"] == results["results"]
    assert told.count("done already") == told.count("$ dinomed ") - 1  # all but the scan
    assert again["seconds"] < results["seconds"]


@pytest.mark.slow
def test_own_pictures_without_labels_are_pretrained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    own = tmp_path / "own"
    own.mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(own / f"{i}.png")
    results, told = run(capsys, "--data", str(own), "-o", str(tmp_path / "out"))
    assert results["segmenter"] is None
    assert "no labels" in told
    assert "no masks" in told
    assert [set(row) for row in results["results"]] == [{"method"}, {"method"}]
    report = (tmp_path / "out" / "report.html").read_text()
    assert "Results on the test split" not in report
    assert "<polyline" in report


def test_another_seed_draws_other_lesions(tmp_path: Path) -> None:
    def draw(seed: int) -> bytes:
        folder = quickstart._draw_lesions(quickstart.Plan(tmp_path, count=6, seed=seed))
        return b"".join(path.read_bytes() for path in sorted((folder / "images").iterdir()))

    first = draw(0)
    assert draw(0) == first
    assert draw(1) != first
    (tmp_path / "lesions" / "labels.csv").unlink()  # cut short: the table is written last
    assert draw(0) == first


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


@pytest.mark.parametrize(
    ("files", "asked", "options"),
    [
        (["a.jpg"], {}, []),
        (["labels.csv"], {}, ["--labels", "labels.csv"]),
        (["labels.csv"], {"labels": "other.csv", "group": "patient"}, ["--labels", "other.csv", "--group", "patient"]),
        ([], {"labels": "folders", "seed": 3}, ["--labels", "folders", "--seed", "3"]),
    ],
)
def test_own_labels_are_found_or_given(tmp_path: Path, files: list, asked: dict, options: list) -> None:
    for name in files:
        (tmp_path / name).write_text("")
    plan = quickstart.Plan(tmp_path / "out", data=tmp_path, **asked)
    assert quickstart._scan_options(plan, tmp_path) == options


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [({"a": 5, "b": 5}, {"a": 1, "b": 1}, True), ({"a": 5}, {"a": 1}, False), ({"a": 5, "b": 5}, {"a": 2}, False)],
)
def test_two_classes_are_needed_in_both_splits(train: dict, test: dict, expected: bool) -> None:
    splits = {"train": {"classes": train}, "test": {"classes": test}}
    assert quickstart._has_labels({"splits": splits}) is expected
    assert quickstart._has_labels({"splits": {}}) is False
