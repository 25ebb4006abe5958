"""The second training on train and val, and the moving average of the weights."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import nn

import dinomed
from dinomed.adapters.bundle import read_record
from dinomed.adapters.fit import fit_head
from dinomed.adapters.fitting import loop, resume
from dinomed.adapters.fitting.config import BackboneTuneConfig
from dinomed.adapters.fitting.optimizers import WARM_UP, WeightAverage
from dinomed.adapters.folds.train import train_folds
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.io.tensor_file import read_tensors

FIRST, SECOND = "log.jsonl", "log_refit.jsonl"


def segmenter(**fit: Any) -> SegmentConfig:
    fit = {"epochs": 3, "batch_size": 16, "min_steps": 0, **fit}
    return SegmentConfig.model_validate({"image_size": 48, "augment": "light", "augment_copies": 1, "fit": fit})


@pytest.fixture(scope="module")
def backbone(tiny_backbone: Path) -> FrozenBackbone:
    return load_backbone(tiny_backbone)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_a_segmenter_with_few_val_groups_is_trained_again_on_all_images(
    backbone: FrozenBackbone, manifest: Manifest, cache: Path, tmp_path: Path
) -> None:
    """The weights are those of a head that has the images of val in train; metrics and threshold are of the first."""
    twice = fit_head(backbone, manifest, tmp_path / "twice", segmenter(), cache=cache)
    once = fit_head(backbone, manifest, tmp_path / "once", segmenter(refit="never"), cache=cache)
    train, val = manifest.select(split="train"), manifest.select(split="val")
    both = pa.concat_tables([train.table, val.table])
    both = both.set_column(both.column_names.index("split"), "split", pa.array(["train"] * both.num_rows))
    test = manifest.select(split="test").table  # other images, that only stand for val
    place = test.column_names.index("split")
    test = test.set_column(place, "split", pa.array(["val"] * test.num_rows)).cast(both.schema)
    joined = Manifest(pa.concat_tables([both, test]), manifest.root)
    expected = fit_head(backbone, joined, tmp_path / "joined", segmenter(refit="never"), cache=cache)

    records = {result.folder.name: read_record(result.folder) for result in (twice, once, expected)}
    assert records["twice"].weights_sha256 != records["once"].weights_sha256
    weights = [torch_weights(result.folder) for result in (twice, expected)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert records["twice"].training["refitted_on"] == len(train) + len(val)
    assert "refitted_on" not in records["once"].training
    assert twice.validation == once.validation
    assert (twice.threshold, once.threshold) == (0.5, 0.5)
    assert "0.5, fixed" in (twice.folder / "card.md").read_text()
    assert records["twice"].training["data"]["train"]["images"] == len(train)
    assert "trained again" in (twice.folder / "card.md").read_text()
    logs = [read_log(result.folder, name) for result, name in ((twice, SECOND), (expected, FIRST), (twice, FIRST))]
    assert [[row["train_loss"] for row in log] for log in logs[:2]] == [[row["train_loss"] for row in logs[1]]] * 2
    assert [row["train_loss"] for row in logs[2]] == [row["train_loss"] for row in read_log(once.folder, FIRST)]
    assert not (once.folder / SECOND).exists()
    assert "trained again" not in (once.folder / "card.md").read_text()


def test_the_second_training_of_a_tuned_backbone_starts_from_the_frozen_one(
    backbone: FrozenBackbone, manifest: Manifest, cache: Path, tmp_path: Path
) -> None:
    """It ends with the weights of a fit that has the images of val in train from the beginning."""
    config = segmenter(epochs=1).model_copy(update={"tune": BackboneTuneConfig.model_validate("last:1")})
    refitted = fit_head(backbone, manifest, tmp_path / "twice", config, cache=cache)
    train, val, test = (manifest.select(split=name).table for name in ("train", "val", "test"))
    place = train.column_names.index("split")
    rows = [
        part.set_column(place, "split", pa.array([name] * part.num_rows)).cast(train.schema)
        for part, name in ((train, "train"), (val, "train"), (test, "val"))
    ]
    joined = Manifest(pa.concat_tables(rows), manifest.root)
    never = config.model_copy(update={"fit": config.fit.model_copy(update={"refit": "never"})})
    expected = fit_head(backbone, joined, tmp_path / "joined", never, cache=cache)
    tuned = [
        {name: t for name, t in read_tensors(result.folder / "adapter.safetensors").items() if "backbone." in name}
        for result in (refitted, expected)
    ]
    assert tuned[0]
    assert tuned[0].keys() == tuned[1].keys()
    assert all(torch.equal(tuned[0][name], tuned[1][name]) for name in tuned[0])
    assert refitted.refitted_on == len(manifest.select(split="train")) + len(manifest.select(split="val"))
    plan = dinomed.plan_training("segment", backbone, manifest, settings=["augment=light", "image_size=48"])
    assert plan.refitted_on == refitted.refitted_on


def torch_weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for name, t in read_tensors(folder / "adapter.safetensors").items() if name.startswith("head.")}


def test_the_head_that_auto_chooses_is_trained_again(
    backbone: FrozenBackbone, manifest: Manifest, cache: Path, tmp_path: Path
) -> None:
    config = SegmentConfig.model_validate(segmenter(epochs=1).model_dump() | {"head": {"name": "auto"}})
    result = fit_head(backbone, manifest, tmp_path / "seg", config, cache=cache)
    kept = next(row for row in result.tried if row["kept"])
    assert result.validation["dice"] == kept["dice"]  # of the head that did not see val
    assert (
        read_record(result.folder).training["refitted_on"] == result.refitted_on > len(manifest.select(split="train"))
    )


def test_many_val_groups_choose_the_epoch_and_nothing_is_trained_again(
    backbone: FrozenBackbone, manifest: Manifest, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinomed.adapters.fitting.head_fit.FEW_VAL_GROUPS", 1)
    record = read_record(fit_head(backbone, manifest, tmp_path / "seg", segmenter(), cache=cache).folder)
    assert "refitted_on" not in record.training
    always = segmenter(refit="always", keep="last")
    assert (
        "refitted_on" in read_record(fit_head(backbone, manifest, tmp_path / "a", always, cache=cache).folder).training
    )


def test_members_of_a_cross_validation_are_never_trained_on_their_fold(
    backbone: FrozenBackbone, manifest: Manifest, cache: Path, tmp_path: Path
) -> None:
    result = train_folds(backbone, manifest, tmp_path / "folds", segmenter(epochs=1), folds=2, cache=cache)
    assert all("refitted_on" not in read_record(member).training for member in result.members)
    with pytest.raises(UsageError, match=r"fit\.refit=always"):
        train_folds(backbone, manifest, tmp_path / "other", segmenter(refit="always"), folds=2, cache=cache)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ClassifyConfig.model_validate({"fit": {"refit": "always"}}), "is for the task segment"),
        (segmenter(refit="always", keep="best"), r"set fit\.keep=last"),
    ],
)
def test_a_refit_that_has_no_meaning_is_refused(
    config: Any, message: str, backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        fit_head(backbone, manifest, tmp_path / "head", config, cache=tmp_path / "cache")


def test_an_interrupted_second_training_is_resumed(
    backbone: FrozenBackbone, manifest: Manifest, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(resume, "MAX_TIME_SHARE", 1.0)  # after every epoch
    config = segmenter(average=0.9, warmup=0.4)
    whole = fit_head(backbone, manifest, tmp_path / "whole", config, cache=cache).folder
    keep = loop._Fit.save

    def cut(self: Any) -> None:
        keep(self)
        if self.epoch == 2 and "refit" in self.state.folder.parts:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop._Fit, "save", cut)
        with pytest.raises(KeyboardInterrupt):
            fit_head(backbone, manifest, tmp_path / "cut", config, cache=cache)
    capsys.readouterr()
    again = fit_head(backbone, manifest, tmp_path / "cut", config, cache=cache).folder
    messages = capsys.readouterr().err
    assert "resuming after epoch 3" in messages
    assert "resuming after epoch 2" in messages
    assert read_record(again).weights_sha256 == read_record(whole).weights_sha256
    assert {path.name for path in again.iterdir()} == {path.name for path in whole.iterdir()}
    for name in (FIRST, SECOND):  # no line is lost or twice
        assert [row["epoch"] for row in read_log(again, name)] == [1, 2, 3]
        assert [row["train_loss"] for row in read_log(again, name)] == [
            row["train_loss"] for row in read_log(whole, name)
        ]
    fit_head(backbone, manifest, again, segmenter(epochs=1, refit="never"), cache=cache, overwrite=True)
    assert not (again / SECOND).exists()


def test_averaged_weights_are_those_of_the_formula_and_include_batch_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    average = WeightAverage(model, 0.8)
    expected = {name: tensor.double().clone() for name, tensor in model.state_dict().items()}
    for step in range(1, 60):
        with torch.no_grad():
            model(torch.randn(2, 3, 4, 4) + step)
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update()
        decay = min(0.8, (step + 1) / (step + WARM_UP))
        for name, tensor in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
    now = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with average.applied():
        for name, tensor in model.state_dict().items():
            if name == "1.num_batches_tracked":
                assert tensor == 59
            else:  # float32 sums of 59 steps against float64
                assert torch.allclose(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert all(torch.equal(tensor, now[name]) for name, tensor in model.state_dict().items())


def test_the_validated_and_the_kept_weights_are_the_averaged_ones(
    backbone: FrozenBackbone, manifest: Manifest, cache: Path, tmp_path: Path
) -> None:
    plain, averaged = (
        fit_head(backbone, manifest, tmp_path / str(decay), segmenter(refit="never", average=decay), cache=cache)
        for decay in (0.0, 0.97)
    )
    assert read_record(plain.folder).weights_sha256 != read_record(averaged.folder).weights_sha256
    logs = [(result.folder / "log.jsonl").read_text().splitlines() for result in (plain, averaged)]
    losses, scores = ([[value_of(row, name) for row in log] for log in logs] for name in ("train_loss", "val_dice"))
    assert losses[0] == losses[1]  # the training is the same
    assert scores[0] != scores[1]


def read_log(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def value_of(row: str, name: str) -> float:
    return float(json.loads(row)[name])
