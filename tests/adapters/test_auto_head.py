"""The head auto: every candidate on the same rows, the best on val kept, its table in record and card; two sizes."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from dinomed.adapters.bundle import read_record
from dinomed.adapters.evaluation.evaluate import evaluate
from dinomed.adapters.export.run import export
from dinomed.adapters.export.source import load_source
from dinomed.adapters.fit import fit_head
from dinomed.adapters.fitting import loop, resume
from dinomed.adapters.fitting.build import at_image_size, scaled_size
from dinomed.adapters.fitting.head_fit import FitResult
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.inference.shared import predict_many
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.adapters.tasks.classify.predict import ClassifyPredictor
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.config import build_config, load_config
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.features.extract import extract
from dinomed.images.read import read_image

AUTO = {"head": {"name": "auto", "last": [1, 2]}, "fit": {"epochs": 2, "min_steps": 0}}
TITLES = [
    "knn, cls", "knn, mean", "knn, cls+mean", "logistic, cls", "logistic, mean", "logistic, cls+mean",
    "logistic, last 2 blocks, cls", "logistic, last 2 blocks, mean", "logistic, last 2 blocks, cls+mean",
    "logistic, cls+mean, sizes 1 and 1.5", "attentive", "attentive, 4 registers",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("auto")


@pytest.fixture(scope="module")
def chosen(place: Path, backbone: FrozenBackbone, manifest: Manifest) -> FitResult:
    config = build_config(ClassifyConfig, AUTO, "test")
    return fit_head(backbone, manifest, place / "auto", config, cache=place / "cache")


def test_every_candidate_is_tried_and_the_best_on_val_is_kept(chosen: FitResult, place: Path) -> None:
    assert [row["head"] for row in chosen.tried] == TITLES
    values = [row["auroc"] for row in chosen.tried]
    assert [row["kept"] for row in chosen.tried] == [index == int(np.argmax(values)) for index in range(len(TITLES))]
    assert chosen.validation["auroc"] == max(values)
    # train and val of each pass: one for all pooled heads, one for the second size, one for the patch tokens
    keys = [json.loads(next(folder.glob("*.json")).read_text())["key"] for folder in (place / "cache").iterdir()]
    passes = sorted((key["patches"], key["blocks"]) for key in keys)
    assert passes == [(False, [1, 2])] * 4 + [(True, [2])] * 2


@pytest.mark.parametrize("title", ["logistic, last 2 blocks, mean", "attentive, 4 registers"])
def test_a_candidate_has_the_value_of_the_same_head_by_itself(
    title: str, chosen: FitResult, backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path
) -> None:
    heads = {
        "logistic, last 2 blocks, mean": {"head": {"name": "logistic", "blocks": [-2, -1], "tokens": "mean"}},
        "attentive, 4 registers": {"head": {"name": "attentive", "registers": 4}, "fit": AUTO["fit"]},
    }
    config = build_config(ClassifyConfig, heads[title], "test")
    alone = fit_head(backbone, manifest, tmp_path / "alone", config, cache=tmp_path / "cache")
    (row,) = (row for row in chosen.tried if row["head"] == title)
    assert row["auroc"] == alone.validation["auroc"]


@pytest.mark.parametrize("amx", [False, True])
def test_the_settings_of_the_choice_keep_the_precision_auto(
    amx: bool, backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that they are valid on a device of any kind; the record has the precision of this one."""
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    fit = {"epochs": 1, "min_steps": 0, "precision": "auto"}
    config = build_config(ClassifyConfig, {"head": {"name": "auto", "heads": ["attentive"]}, "fit": fit}, "test")
    result = fit_head(backbone, manifest, tmp_path / "auto", config, cache=tmp_path / "cache")
    written = load_config(ClassifyConfig, result.folder / "adapter.yaml")
    assert written.fit.precision == "auto"
    used = read_record(result.folder).training["config"]
    assert used["fit"]["precision"] == ("bfloat16" if amx else "float32")
    used["fit"]["precision"] = "auto"
    assert written.model_dump(mode="json") == used


def test_record_card_and_settings_describe_the_choice(chosen: FitResult, manifest: Manifest) -> None:
    record = read_record(chosen.folder)
    assert record.training["tried"] == chosen.tried
    assert record.head["name"] != "auto"
    card = (chosen.folder / "card.md").read_text()
    assert "## Heads that were compared" in card
    assert all(f"| {title} |" in card for title in TITLES)
    config = load_config(ClassifyConfig, chosen.folder / "adapter.yaml")
    assert config.head.name == record.head["name"]
    again = evaluate(chosen.folder, manifest, "val", resamples=10)
    assert again["metrics"]["auroc"] == pytest.approx(chosen.validation["auroc"], abs=1e-3)
    assert not any(path.name.startswith(".unfinished") for path in chosen.folder.iterdir())


def test_the_choice_does_not_use_test(
    chosen: FitResult, place: Path, backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path
) -> None:
    labels, splits = manifest.column("label"), manifest.column("split")
    rolled = [
        labels[i - 1] if split == "test" else label for i, (label, split) in enumerate(zip(labels, splits, strict=True))
    ]
    table = manifest.table.drop_columns(["label"]).append_column("label", pa.array(rolled))
    config = build_config(ClassifyConfig, AUTO, "test")
    result = fit_head(backbone, Manifest(table, manifest.root), tmp_path / "x", config, cache=place / "cache")

    def without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]

    assert without_time(result.tried) == without_time(chosen.tried)


def test_an_interrupted_choice_is_resumed_in_each_candidate(
    place: Path, backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    head, fit = {"name": "auto", "heads": ["attentive"]}, {"epochs": 2, "min_steps": 0, "loggers": ["tensorboard"]}
    config = build_config(ClassifyConfig, {"head": head, "fit": fit}, "test")
    whole = fit_head(backbone, manifest, tmp_path / "whole", config, cache=place / "cache")
    monkeypatch.setattr(resume, "MAX_TIME_SHARE", 1.0)  # after every epoch
    save, saved = loop._Fit.save, list[int]()

    def stop_in_the_second_candidate(self: Any) -> None:
        save(self)
        saved.append(self.epoch)
        if saved == [1, 2, 1]:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop._Fit, "save", stop_in_the_second_candidate)
    with pytest.raises(KeyboardInterrupt):
        fit_head(backbone, manifest, tmp_path / "cut", config, cache=place / "cache")
    assert "the same command resumes after epoch 1" in capsys.readouterr().err
    again = fit_head(backbone, manifest, tmp_path / "cut", config, cache=place / "cache")
    resumed = re.findall(r"resuming after epoch (\d)", capsys.readouterr().err)
    assert (resumed, saved) == (["2", "1"], [1, 2, 1, 2])
    assert read_record(again.folder).weights_sha256 == read_record(whole.folder).weights_sha256
    for result in (whole, again):
        assert sorted(path.name for path in result.folder.iterdir()) == sorted(
            ["adapter.json", "adapter.safetensors", "adapter.yaml", "card.md", "log.jsonl", "tensorboard"]
        )


def test_groups_are_chosen_among_the_heads_that_read_pooled_tokens(
    place: Path, backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path
) -> None:
    rows = zip(manifest.column("split"), manifest.column("label"), manifest.column("group"), strict=True)
    table = manifest.table.drop_columns(["group"]).append_column("group", pa.array(["-".join(row) for row in rows]))
    data = Manifest(table, manifest.root)
    config = build_config(ClassifyConfig, {**AUTO, "unit": "group", "pool": "concat", "frames": 2}, "test")
    result = fit_head(backbone, data, tmp_path / "groups", config, cache=tmp_path / "cache")
    assert [row["head"] for row in result.tried] == TITLES[:9]
    assert evaluate(result.folder, data, "val", resamples=10)["metrics"]["nll"] == pytest.approx(
        result.validation["nll"], abs=1e-3
    )


def test_the_linear_segmenter_is_chosen_among_several_blocks(
    backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path
) -> None:
    fit = {"epochs": 1, "min_steps": 0, "batch_size": 8, "refit": "never"}
    settings = {"head": {"name": "auto"}, "image_size": 32, "fit": fit, "augment": "light", "augment_copies": 1}
    config = build_config(SegmentConfig, settings, "test")
    result = fit_head(backbone, manifest, tmp_path / "seg", config, cache=tmp_path / "cache")
    titles = [row["head"] for row in result.tried]
    assert titles == ["linear", "linear, last 2 blocks", "linear, last 3 blocks", "linear, blocks 0, 1, 2"]
    assert result.validation["dice"] == max(row["dice"] for row in result.tried)
    assert len(list((tmp_path / "cache").iterdir())) == 2  # train with its copies, and val
    explicit = build_config(SegmentConfig, {**settings, "head": {"blocks": [-2, -1]}}, "test")
    alone = fit_head(backbone, manifest, tmp_path / "own", explicit, cache=tmp_path / "own_cache")
    assert result.tried[1]["dice"] == alone.validation["dice"]


def test_two_sizes_are_concatenated_in_training_and_prediction(
    place: Path, backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path
) -> None:
    head = {"name": "linear", "blocks": [-2, -1], "tokens": "cls+mean"}
    config = build_config(ClassifyConfig, {"head": head, "scales": [1.0, 1.5]}, "test")
    folder = fit_head(backbone, manifest, tmp_path / "sizes", config, cache=place / "cache").folder
    predictor = load_adapter(folder)
    assert isinstance(predictor, ClassifyPredictor)
    test = manifest.select(split="test").take(range(3))
    images = [read_image(test.path(row)) for row in range(3)]
    parts = [
        extract(at_image_size(backbone, scaled_size(backbone, scale)), test, cache=tmp_path / "c", blocks=(-2, -1))
        for scale in (1.0, 1.5)
    ]
    cls, mean = (
        np.concatenate([tokens.reshape(3, 2, -1) for tokens in kind], axis=2).reshape(3, -1)
        for kind in ([part.cls for part in parts], [part.mean for part in parts])
    )
    head_of = predictor.adapter
    x = (np.concatenate([cls, mean], axis=1) - head_of.shift.numpy()) * head_of.scale.numpy()
    logits = x @ head_of.linear.weight.detach().numpy().T + head_of.linear.bias.detach().numpy()
    expected = predictor.answer.probabilities(torch.from_numpy(logits)).numpy()
    for image, row in zip(images, expected, strict=True):
        assert list(predictor.probabilities(image).values()) == pytest.approx(row.tolist(), abs=1e-4)
    (shared,) = predict_many([predictor], images)
    assert [list(output.values()) for output in shared] == [pytest.approx(row.tolist(), abs=1e-4) for row in expected]
    assert [list(p.probabilities.values()) for p in predictor.predict(images)] == [
        pytest.approx(row.tolist(), abs=1e-4) for row in expected
    ]
    with pytest.raises(UsageError, match="it reads the image at several sizes"):
        export(load_source(str(folder)), "onnx", tmp_path / "onnx")
    assert "read at 1 and 1.5 times the image size" in (folder / "card.md").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": {"name": "auto"}, "augment": "light"}, "head auto tries heads on features that are computed once"),
        ({"head": {"name": "auto"}, "scales": [1, 2]}, "set head.second_scale"),
        ({"head": {"name": "attentive"}, "scales": [1, 2]}, "only for heads on pooled tokens"),
        ({"scales": [1, 2], "unit": "group"}, "only for heads on pooled tokens"),
        ({"scales": [9]}, "factors from 0.25 to 4"),
    ],
)
def test_impossible_combinations_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_config(ClassifyConfig, settings, "test")


def test_settings_that_a_candidate_cannot_have_are_refused_in_one_line(
    backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="head auto tries heads on features that are computed once"):
        build_config(SegmentConfig, {"head": {"name": "auto"}, "tune": "last:1"}, "test")
    config = build_config(ClassifyConfig, {"head": {"name": "auto"}, "fit": {"optimizer": "lbfgs"}}, "test")
    with pytest.raises(UsageError, match=r"head auto, attentive: fit\.optimizer: lbfgs takes all images"):
        fit_head(backbone, manifest, tmp_path / "no", config, cache=tmp_path)
    assert not (tmp_path / "no").exists()


def test_the_command_prints_the_table_and_refuses_a_task_without_a_choice(
    run: Any, tiny_backbone: Path, lesion_manifest: Path, place: Path, tmp_path: Path
) -> None:
    shared = ("-b", tiny_backbone, "--data", lesion_manifest, "--cache", place / "cache", "--device", "cpu")
    few = ("--set", "head.heads=[knn]")
    code, out, err = run("train", "classify", *shared, "--head", "auto", *few, "-o", tmp_path / "cls")
    assert code == 0, err
    assert all(title in out for title in TITLES[:3])
    progress = [line for line in err.splitlines() if line.startswith("head ")]
    assert progress == [f"head {number} of 3: {title}" for number, title in enumerate(TITLES[:3], start=1)]
    assert "kept" in out
    code, _, err = run("train", "depth", *shared, "--head", "auto", "-o", tmp_path / "depth")
    assert code == 2
    assert "depth has no head 'auto'" in err
