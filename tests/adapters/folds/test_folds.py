"""Cross-validation: folds by group, out-of-fold predictions, resuming, and the ensemble of the folds."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from dinomed.adapters.bundle import read_record
from dinomed.adapters.fitting.config import TrainConfig
from dinomed.adapters.folds import train as folds_train
from dinomed.adapters.folds.plan import assign_folds
from dinomed.adapters.folds.train import FoldsResult, train_folds
from dinomed.adapters.inference.ensemble.record import ENSEMBLE_FILE
from dinomed.adapters.inference.loader import load_adapter, read_seen_hashes
from dinomed.adapters.inference.shared import Backbones, predict_many
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.adapters.tasks.classify.fit import ClassifierFit
from dinomed.adapters.tasks.depth.config import DepthConfig
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.adapters.training_images import FamiliarityCheck
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.features.familiarity.fit import NUM_CONTROLS

LOGISTIC = ClassifyConfig.model_validate({"head": {"name": "logistic"}})
SHORT = {"epochs": 1, "min_steps": 0, "batch_size": 16}
DENSE: dict[str, Any] = {"image_size": 32, "fit": SHORT, "augment": "none"}
ROUNDING = 2e-6
"""Probabilities are float32, and their mean is computed from logarithms: two roundings of 6e-8, times the size of the
logarithm of a probability of 1e-6, which is 14."""


def images_of(manifest: Manifest, splits: Sequence[str]) -> list[np.ndarray]:
    from dinomed.images.read import read_image

    chosen = [row for row, split in enumerate(manifest.column("split")) if split in splits]
    return [read_image(manifest.path(row)) for row in chosen]


def probabilities(folder: Path, images: Iterable[Any]) -> np.ndarray:
    """The probabilities of an adapter, float32 (images, classes)."""
    predictions = load_adapter(folder).predict(images)
    return np.array([list(each.probabilities.values()) for each in predictions], np.float32)


def test_no_group_is_in_two_folds_and_test_is_in_none(manifest: Manifest) -> None:
    folded = assign_folds(ClassifierFit(LOGISTIC), manifest, 4, 0)
    test = set(manifest.select(split="test").column("image"))
    assert not test & set(folded.images.column("image"))
    assert len(folded.images) == len(manifest) - len(test)
    assert set(folded.folds) == {0, 1, 2, 3}
    groups: dict[str, set[int]] = {}
    for group, fold in zip(folded.images.units(), folded.folds, strict=True):
        groups.setdefault(group, set()).add(fold)
    assert all(len(folds) == 1 for folds in groups.values())
    assert max(map(len, (folded.part(fold, inside=True) for fold in range(4)))) < len(folded.images) / 2


def test_without_splits_the_folds_are_made_of_all_images(manifest: Manifest) -> None:
    plain = replace(manifest, table=manifest.table.drop_columns(["split"]))
    assert len(assign_folds(ClassifierFit(LOGISTIC), plain, 3, 0).images) == len(manifest)


def test_each_image_has_the_prediction_of_the_member_that_did_not_see_it(
    ensemble: FoldsResult, manifest: Manifest
) -> None:
    evaluated: Any = ensemble.out_of_fold
    folded = assign_folds(ClassifierFit(LOGISTIC), manifest, 3, LOGISTIC.seed)
    row = 0
    for fold, folder in enumerate(ensemble.members):
        val = folded.part(fold, inside=True)
        record = read_record(folder)
        assert record.training["data"]["val"]["manifest"] == val.fingerprint
        values = [
            list(each.probabilities.values()) for each in load_adapter(folder).predict(map(val.path, range(len(val))))
        ]
        assert evaluated.manifest.column("image")[row : row + len(val)] == val.column("image")
        assert np.array_equal(evaluated.probabilities[row : row + len(val)], values)
        row += len(val)
    assert row == len(folded.images) == len(evaluated.probabilities)
    by_fold = [each["values"]["auroc"] for each in ensemble.table["by_fold"]]
    assert by_fold == pytest.approx([read_record(folder).validation["auroc"] for folder in ensemble.members])
    interval = ensemble.table["intervals"]["auroc"]
    assert interval["low"] <= interval["value"] <= interval["high"]


@pytest.mark.parametrize(
    "config",
    [
        LOGISTIC,
        ClassifyConfig.model_validate({"tune": "last:1", "fit": SHORT}),
        *(
            pytest.param(ClassifyConfig.model_validate(settings), marks=pytest.mark.long)
            for settings in (
                {"head": {"name": "knn", "blocks": (0, 2)}, "scales": (1.0, 1.5)},
                {"label": ("label_a", "sex_a"), "head": {"name": "linear"}},
                {"unit": "group", "pool": "concat", "frames": 2, "head": {"name": "logistic"}},
            )
        ),
    ],
    ids=["logistic", "tuned", "two sizes", "several labels", "groups"],
)
def test_a_probability_of_the_ensemble_is_the_mean_of_those_of_its_members(
    config: ClassifyConfig, backbone: FrozenBackbone, manifest: Manifest, cache: Path, tmp_path: Path
) -> None:
    names = {"label_a": ("label", "regular"), "sex_a": ("sex", "female")}
    table = manifest.table
    for name, (column, value) in names.items():
        table = table.append_column(name, pa.array([str(int(each == value)) for each in manifest.column(column)]))
    data = replace(manifest, table=table)
    result = train_folds(backbone, data, tmp_path / "out", config, 2, cache=cache)
    images = images_of(manifest, ["test"])
    whole, *members = (probabilities(place, images) for place in (result.folder, *result.members))
    assert np.abs(members[0] - members[1]).max() > 1e-3
    assert np.abs(whole - np.mean(members, axis=0, dtype=np.float64)).max() <= ROUNDING


def test_heads_with_other_blocks_and_sizes_are_averaged_too(
    backbone: FrozenBackbone, manifest: Manifest, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[dict[str, Any]] = [
        {"head": {"name": "logistic", "blocks": (-1,)}, "scales": (1.0, 1.5)},
        {"head": {"name": "attentive", "blocks": (1,)}, "fit": {**SHORT, "optimizer": "adamw"}},
        {"head": {"name": "knn", "blocks": (0, 2), "tokens": "mean"}},
    ]
    fit = folds_train.fit_head
    used = iter(heads)  # as if `--head auto` had kept another head in each fold

    def fit_other(*arguments: Any, **options: Any) -> Any:
        return fit(*arguments[:-1], ClassifyConfig.model_validate(next(used)), **options)

    monkeypatch.setattr(folds_train, "fit_head", fit_other)
    result = train_folds(backbone, manifest, tmp_path / "out", LOGISTIC, 3, cache=cache)
    images = images_of(manifest, ["test"])
    whole, *members = (probabilities(place, images) for place in (result.folder, *result.members))
    assert np.abs(whole - np.mean(members, axis=0, dtype=np.float64)).max() <= ROUNDING


@pytest.mark.parametrize(
    "config",
    [
        SegmentConfig.model_validate(DENSE),
        DepthConfig.model_validate(DENSE),
        SegmentConfig.model_validate({**DENSE, "aspect": "pad"}),
        *(
            pytest.param(SegmentConfig.model_validate({**DENSE, **settings}), marks=pytest.mark.long)
            for settings in (
                {"head": {"name": "multi_view", "blocks": (0, 2)}},
                {"window": 32, "crop": 0.5, "flips": True},
                {"tune": "last:1"},
            )
        ),
    ],
    ids=["linear", "depth", "padded", "fused views", "windows", "tuned"],
)
def test_a_map_of_the_ensemble_is_the_mean_of_those_of_its_members(
    config: TrainConfig, backbone: FrozenBackbone, manifest: Manifest, cache: Path, tmp_path: Path
) -> None:
    if config.task == "depth":
        manifest = with_depths(manifest, tmp_path)
    result = train_folds(backbone, manifest, tmp_path / "out", config, 2, cache=cache)
    images = images_of(manifest, ["test"])[:3]
    predictors: list[Any] = [load_adapter(place) for place in (result.folder, *result.members)]
    for image in [*images, images[0][:, :24]]:
        whole, *members = (predictor.maps(image) for predictor in predictors)
        assert np.array_equal(predict_many(predictors[:1], [image])[0][0], whole)
        assert whole.shape == members[0].shape
        assert np.abs(members[0] - members[1]).max() > 1e-4
        scale = max(1.0, float(np.abs(whole).max()))  # of depths
        assert np.abs(whole - np.mean(members, axis=0, dtype=np.float64)).max() <= ROUNDING * scale


def with_depths(manifest: Manifest, folder: Path) -> Manifest:
    """A copy of the images with depth maps: the grey values, of other ranges in each image."""
    from dinomed.images.read import read_image

    shutil.copytree(manifest.root, folder / "images")
    copied, paths = replace(manifest, root=folder / "images"), []
    for row in range(len(copied)):
        paths.append(f"depth_{row}.npy")
        np.save(copied.root / paths[-1], read_image(copied.path(row)).mean(axis=2).astype(np.float32) + 1 + row)
    return replace(copied, table=copied.table.append_column("depth", pa.array(paths)))


def test_the_features_of_an_image_are_computed_once_for_all_folds(
    backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, forward = list[int](), FrozenBackbone.forward
    monkeypatch.setattr(FrozenBackbone, "forward", lambda *given: seen.append(len(given[1])) or forward(*given))
    assign = folds_train.evaluate_out_of_fold
    passes, checked = [], []
    monkeypatch.setattr(FamiliarityCheck, "outputs_of_features", lambda *given: checked.append(given[1]) or [])
    monkeypatch.setattr(folds_train, "evaluate_out_of_fold", lambda *given: passes.append(sum(seen)) or assign(*given))
    result = train_folds(backbone, manifest, tmp_path / "out", LOGISTIC, 3, cache=tmp_path / "cache")
    images = sum(read_record(result.members[0]).training["data"][name]["images"] for name in ("train", "val"))
    controls = 3 * NUM_CONTROLS  # images with inverted colours, for the check of unlike images of each member
    assert images <= passes[0] <= images + controls
    assert sum(seen) - passes[0] == images  # the out-of-fold predictions
    assert checked == []  # they do not hold whether an image is unlike the training images


def test_an_ensemble_shares_the_pass_with_its_members(ensemble: FoldsResult, manifest: Manifest) -> None:
    predictors = [load_adapter(place, load=Backbones()) for place in (ensemble.folder, *ensemble.members)]
    images = images_of(manifest, ["test"])[:4]
    whole, *members = predict_many(predictors, images)
    for row, image in enumerate(whole):
        for name, value in image.items():
            assert abs(value - np.mean([each[row][name] for each in members], dtype=np.float64)) <= ROUNDING


def test_the_backbone_runs_once_for_all_members(
    ensemble: FoldsResult, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = load_adapter(ensemble.folder)
    calls = []
    forward = FrozenBackbone.forward
    monkeypatch.setattr(FrozenBackbone, "forward", lambda *given: calls.append(1) or forward(*given))
    predictor.check = None
    predictor.predict(images_of(manifest, ["test"])[:2])
    assert len(calls) == 1


def test_after_an_interruption_in_the_third_fold_only_this_one_is_trained(
    ensemble: FoldsResult, backbone: FrozenBackbone, manifest: Manifest, cache: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    fit, trained = folds_train.fit_head, list[str]()

    def interrupt(backbone: Any, rows: Any, out: Path, *given: Any, **options: Any) -> Any:
        trained.append(out.name)
        if out.name == "fold_3" and len(trained) == 3:
            raise KeyboardInterrupt
        return fit(backbone, rows, out, *given, **options)

    monkeypatch.setattr(folds_train, "fit_head", interrupt)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train_folds(backbone, manifest, out, LOGISTIC, 3, cache=cache)
    assert not (out / ENSEMBLE_FILE).exists()
    with pytest.raises(UsageError, match="unfinished training of 3 folds with another number of folds;"):
        train_folds(backbone, manifest, out, LOGISTIC, 4, cache=cache)
    other = ClassifyConfig.model_validate({"head": {"name": "knn"}})
    with pytest.raises(UsageError, match="with other settings; give the same, or add `overwrite=True`"):
        train_folds(backbone, manifest, out, other, 3, cache=cache)
    fewer = manifest.take(range(len(manifest) - 1))
    with pytest.raises(UsageError, match="with other images, labels or masks;"):
        train_folds(backbone, fewer, out, LOGISTIC, 3, cache=cache)
    trained[:] = ["", "", ""]
    monkeypatch.setattr(
        folds_train, "fit_head", lambda *given, **options: trained.append(given[2].name) or fit(*given, **options)
    )
    result = train_folds(backbone, manifest, out, LOGISTIC, 3, cache=cache)
    assert trained[3:] == ["fold_3"]
    for new, old in zip(result.members, ensemble.members, strict=True):
        assert read_record(new).weights_sha256 == read_record(old).weights_sha256
    assert (out / "cross_validation.json").read_bytes() == (ensemble.folder / "cross_validation.json").read_bytes()
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in ensemble.folder.iterdir())
    with pytest.raises(UsageError, match="already holds a result"):
        train_folds(backbone, manifest, out, LOGISTIC, 3, cache=cache)
    trained.clear()
    train_folds(backbone, manifest, out, other, 2, cache=cache, overwrite=True)
    assert trained == ["new_fold_1", "new_fold_2"]
    assert sorted(place.name for place in out.glob("*fold_*")) == ["fold_1", "fold_2"]


def test_an_ensemble_knows_the_images_of_all_folds(ensemble: FoldsResult, manifest: Manifest) -> None:
    seen = read_seen_hashes(ensemble.folder)
    assert len(seen.find(manifest, manifest).images) == len(manifest.select(split="train")) + len(
        manifest.select(split="val")
    )


def test_the_mean_of_logits_is_that_of_probabilities() -> None:
    from dinomed.adapters.tasks.classify.answer import Answer, mean_logits

    logits = [torch.tensor([[30.0, -40.0, 2.0]]), torch.tensor([[-3.0, 5.0, 80.0]])]
    for multilabel in (False, True):
        answers = [Answer(multilabel=multilabel, temperature=value) for value in (0.5, 3.0)]
        expected = torch.stack([a.probabilities(x.double()) for a, x in zip(answers, logits, strict=True)]).mean(0)
        combined = Answer(multilabel=multilabel).probabilities(mean_logits(answers, logits))
        assert torch.allclose(combined, expected, rtol=1e-5, atol=0)  # float32 logits of up to 80


def test_folds_of_padded_images_become_an_ensemble_of_padded_images(
    backbone: FrozenBackbone, manifest: Manifest, cache: Path, tmp_path: Path
) -> None:
    config = LOGISTIC.model_copy(update={"aspect": "pad"})
    first = train_folds(backbone, manifest, tmp_path / "out", config, 2, cache=cache)
    assert load_adapter(first.folder).backbone.preprocessing.aspect == "pad"
