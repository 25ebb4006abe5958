"""The table of all heads: rows of every kind, continuing after an interruption, and drawn images."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import read_manifest
from dinomed.metrics.segmentation import Overlap

SCRATCH = "U-Net from scratch, as long as the"


@pytest.fixture(scope="module")
def head_table(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("head_table")


@pytest.fixture
def table(
    head_table: ModuleType, lesion_manifest: Path, tiny_backbone: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """What the script prints of the lesions and the tiny backbone, given more options."""

    def run(*words: object) -> str:
        head_table.main([str(word) for word in (lesion_manifest, "-b", tiny_backbone, *words)])
        return capsys.readouterr().out

    return run


def _rows(text: str) -> dict[str, list[str]]:
    """Name of the row -> its cells."""
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return {cells[1]: cells[2:-1] for cells in ([cell.strip() for cell in line.split("|")] for line in lines)}


def test_features_are_prepared_with_the_aspect_of_the_config(
    head_table: ModuleType, lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[FrozenBackbone] = []
    monkeypatch.setattr(head_table, "extract_splits", lambda backbone, *rest: used.append(backbone))
    config = SegmentConfig.model_validate({"aspect": "pad", "image_size": 48, "augment": "none"})
    head_table.prepare_features(config, load_backbone(tiny_backbone), read_manifest(lesion_manifest), tmp_path)
    assert [(each.preprocessing.image_size, each.preprocessing.aspect) for each in used] == [(48, "pad")]


@pytest.mark.long
@pytest.mark.slow
def test_segmenters_are_compared_with_a_network_from_scratch(
    table: Callable[..., str], tiny_backbone: Path, tmp_path: Path
) -> None:
    common = (
        "--untrained", tiny_backbone, "--untrained-heads", "linear", "--tune-heads", "linear",
        "--heads", "linear", "pspnet", "--images", 16, 8, 8, "--unet", "--unet-size", 32, "-o", tmp_path / "t",
        "--set", "fit.epochs=2", "--set", "fit.min_steps=0", "--set", "fit.batch_size=8", "--set", "image_size=48",
        "--set", "linear:fit.epochs=3",
    )  # fmt: skip
    rows = _rows(table(*common))
    tuned = ["linear, tune lora", "linear, tune last:1"]
    scratch = [f"{SCRATCH} slowest head", f"{SCRATCH} middle head"]
    assert list(rows) == ["linear", "pspnet", "linear, untrained backbone", *tuned, *scratch]
    # 32 channels: BatchNorm's two and a 1x1 convolution of one class
    assert rows["linear"][0] == "97"
    # a block of 32 channels: two LayerNorms, qkv, projection, MLP of four times the width
    assert rows["linear, tune last:1"][0] == f"97 + {2 * 64 + 32 * 96 + 96 + 32 * 32 + 32 + 2 * 32 * 128 + 128 + 32:,}"
    assert rows["linear, untrained backbone"][2:] == rows["linear"][2:]  # the same weights were given
    results = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "t").glob("*.json")}
    assert len(results) == len(rows)
    head, network = results["segment-pspnet-0"], results["segment-U-Net-from-scratch-as-long-as-the-slowest-head-0"]
    assert network["metrics"]["n"] == head["metrics"]["n"] >= 8
    assert network["made_of"]["images"] == head["made_of"]["images"]
    assert network["steps"] >= 1
    assert [result["made_of"]["config"]["fit"]["epochs"] for result in (results["segment-linear-0"], head)] == [3, 2]
    for result in results.values():
        dice = result["intervals"]["dice"]
        assert dice["value"] == pytest.approx(result["metrics"]["dice"])
        assert dice["low"] <= dice["value"] <= dice["high"]

    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "t").glob("segment-*.json")}
    table(*common, "--set", "pspnet:fit.learning_rate=1e-4")
    changed = {path.stem for path, when in kept.items() if path.stat().st_mtime_ns != when}
    assert "segment-pspnet-0" in changed
    assert changed <= {"segment-pspnet-0", *(name for name in results if "U-Net" in name)}


def test_classifiers_with_two_seeds_have_ranges(table: Callable[..., str], tmp_path: Path) -> None:
    rows = _rows(
        table(
            "--task", "classify", "--heads", "knn", "attentive", "--seeds", 0, 1, "--set", "attentive:fit.epochs=2",
            "-o", tmp_path,
        )
    )  # fmt: skip
    assert list(rows) == ["knn", "attentive"]
    assert rows["knn"][0] == "0"
    for cells in rows.values():
        first, second = cells[2].split("), ")
        assert 0 <= float(second) <= 1
        assert 0 <= float(first.split()[0]) <= 1


def test_whole_groups_of_every_split_are_drawn(head_table: ModuleType, lesion_manifest: Path) -> None:
    manifest = read_manifest(lesion_manifest)
    part = head_table.draw(manifest, [10, 5, 5])
    for split, wanted in (("train", 10), ("val", 5), ("test", 5)):
        groups = part.select(split=split).column("group")
        whole = [group for group in manifest.select(split=split).column("group") if group in set(groups)]
        assert sorted(groups) == sorted(whole)
        assert wanted <= len(groups) < wanted + max(map(whole.count, whole))
    assert head_table.draw(manifest, [10, 5, 5]).fingerprint == part.fingerprint
    assert head_table.draw(manifest, []) is manifest


def test_a_held_out_value_becomes_the_test_split(head_table: ModuleType, lesion_manifest: Path) -> None:
    manifest = read_manifest(lesion_manifest)
    value = manifest.column("label")[0]
    held = head_table.hold_out(manifest, "label", value)
    assert set(held.select(split="test").column("label")) == {value}
    assert len(held.select(split="test")) == manifest.column("label").count(value)
    parts = [{*held.select(split=split).column("group")} for split in ("train", "val")]
    assert not parts[0] & parts[1]


@pytest.mark.long
def test_a_network_from_scratch_learns_within_its_time(head_table: ModuleType, lesion_manifest: Path) -> None:
    from alternatives import compare_unet, fit_unet

    manifest = read_manifest(lesion_manifest).select(split="train")
    few, short = fit_unet(manifest, 32, np.random.default_rng(0), 0, epochs=1)
    many, steps = fit_unet(manifest, 32, np.random.default_rng(0), 0, epochs=8)
    assert steps == 8 * short
    overlaps: list[list[Overlap]] = [compare_unet(model, manifest, 32) for model in (few, many)]
    before, after = (np.mean([overlap.dice for overlap in each]) for each in overlaps)
    assert after > max(before, 0.5)
    _, limited = fit_unet(manifest, 32, np.random.default_rng(0), 0, seconds=1e-6)
    assert limited == 1  # one step is the least


@pytest.mark.parametrize("words", [("--images", 3, 4), ("--unet", "--task", "classify")])
def test_invalid_options_are_refused(
    table: Callable[..., str], words: tuple[object, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        table(*words)
    assert stop.value.code == 2
    assert str(words[0]) in capsys.readouterr().err.splitlines()[-1]
