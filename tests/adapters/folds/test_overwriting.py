"""Cross-validation in a folder that holds an ensemble or an unfinished training: what is removed, kept and refused."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dinomed.adapters.bundle import WEIGHTS_FILE, read_record
from dinomed.adapters.fit import fit_head
from dinomed.adapters.fitting.config import TrainConfig
from dinomed.adapters.fitting.loop import STATE_FOLDER
from dinomed.adapters.folds import train as folds_train
from dinomed.adapters.folds.plan import build_plan, with_splits
from dinomed.adapters.folds.train import train_folds
from dinomed.adapters.inference.ensemble.record import ENSEMBLE_FILE
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.adapters.tasks.classify.fit import ClassifierFit
from dinomed.adapters.tasks.segment import mask_schema
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.adapters.tasks.segment.fit import SegmenterFit
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.errors import DinomedError, UsageError
from dinomed.io import publish
from dinomed.io.output_folder import STAGE

LOGISTIC = ClassifyConfig.model_validate({"head": {"name": "logistic"}})
KNN = ClassifyConfig.model_validate({"head": {"name": "knn"}})
SHORT = {"epochs": 1, "min_steps": 0, "batch_size": 16}
Train = Callable[..., Any]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leave_unfinished(folder: Path) -> None:
    """Make an ensemble look as if the training had been killed before its end."""
    (folder / ENSEMBLE_FILE).unlink()
    (folder / STAGE).mkdir()


def test_an_ensemble_with_files_of_loggers_can_be_replaced(train: Train, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    config = ClassifyConfig.model_validate({"fit": {**SHORT, "loggers": ["tensorboard"]}})
    result = train(tmp_path / "out", config)
    assert (result.members[0] / "tensorboard").is_dir()
    result = train(tmp_path / "out", config, overwrite=True)
    assert len(list((result.members[0] / "tensorboard").iterdir())) == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ClassifyConfig.model_validate({"image_size": 33}), "image size 33 is not a multiple"),
        (ClassifyConfig.model_validate({"tune": "last:99"}), "tune: last:99, but the head uses only"),
        (ClassifyConfig.model_validate({"fit": {"loggers": ["mlflow"]}}), "fit.loggers=mlflow needs the package"),
        (
            ClassifyConfig.model_validate({"fit": {"precision": "float16", "optimizer": "adamw"}}),
            "fit.precision float16 needs CUDA",
        ),
        (SegmentConfig.model_validate({"window": 32}), "window 32: train has images of"),
    ],
    ids=["image size", "tune", "logger", "precision", "rows"],
)
def test_settings_are_checked_before_anything_is_removed(
    config: TrainConfig, message: str, train: Train, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinomed.loggers.names.find_spec", lambda name: None)
    before = content(out)
    with pytest.raises(UsageError, match=message):
        train(out, config, overwrite=True)
    assert content(out) == before


def test_an_unusable_fold_is_found_before_the_first_training(
    backbone: FrozenBackbone, manifest: Manifest, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = dict.fromkeys(manifest.units())
    several = next(name for name in groups if manifest.units().count(name) > 1)
    alone = next(name for name in groups if name != several)
    rows = [manifest.units().index(alone)]
    rows += [row for row, name in enumerate(manifest.units()) if name == several]
    data = with_splits(manifest.take(rows), ["train"] * len(rows))
    trained = list[Path]()
    monkeypatch.setattr(folds_train, "fit_head", lambda *given, **_: trained.append(given[2]))
    with pytest.raises(UsageError, match="train has only one image with a mask"):
        train_folds(backbone, data, tmp_path / "out", SegmentConfig(), 2, cache=cache)
    assert trained == []
    assert not (tmp_path / "out").exists()


def test_label_maps_are_read_once_before_the_trainings(
    train: Train, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, paths = mask_schema.read_label_map, list[Path]()
    monkeypatch.setattr(
        mask_schema,
        "read_label_map",
        lambda path, *given, **options: paths.append(path) or read(path, *given, **options),
    )

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folds_train, "fit_head", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "out", SegmentConfig.model_validate({"kind": "multiclass"}))
    assert paths
    assert len(paths) == len(set(paths))


def test_a_fold_with_other_files_stays(train: Train, out: Path) -> None:
    (out / "fold_2" / "model.onnx").write_bytes(b"exported")
    before = content(out)
    with pytest.raises(UsageError, match=r"fold_2 cannot be replaced: it holds other files \(model.onnx\)"):
        train(out, overwrite=True)
    assert content(out) == before


def test_the_old_ensemble_is_used_until_the_new_one_is_complete(
    train: Train, out: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [manifest.path(row) for row in range(3)]
    old = load_adapter(out).predict(images)
    fit, trained = folds_train.fit_head, list[str]()

    def interrupt(*given: Any, **options: Any) -> Any:
        trained.append(given[2].name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return fit(*given, **options)

    monkeypatch.setattr(folds_train, "fit_head", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(out, KNN, overwrite=True)
    assert load_adapter(out).predict(images) == old
    with pytest.raises(UsageError, match="already holds a result"):
        train(out, KNN)
    result = train(out, KNN, overwrite=True)  # continued
    assert trained == ["new_fold_1", "new_fold_2", "new_fold_2"]
    assert load_adapter(out).predict(images) != old
    assert sorted(path.name for path in out.iterdir()) == [
        "card.md", "cross_validation.json", "ensemble.json", "fold_1", "fold_2"
    ]  # fmt: skip
    again = train(out.with_name("fresh"), KNN)
    for one, other in zip(result.members, again.members, strict=True):
        assert read_record(one).weights_sha256 == read_record(other).weights_sha256
    assert result.table == again.table


def test_a_replacement_with_other_settings_begins_again(
    train: Train, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, trained = folds_train.fit_head, list[str]()

    def interrupt(*given: Any, **options: Any) -> Any:
        trained.append(given[2].name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return fit(*given, **options)

    monkeypatch.setattr(folds_train, "fit_head", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(out, KNN, overwrite=True)
    (out / ENSEMBLE_FILE).rename(out / "moved.json")
    with pytest.raises(UsageError, match="holds folds of an earlier training whose settings are unknown"):
        train(out, KNN)  # the old folds beside the plan of the new ones
    (out / "moved.json").rename(out / ENSEMBLE_FILE)
    other = ClassifyConfig.model_validate({"head": {"name": "knn", "tokens": "mean"}})
    result = train(out, other, overwrite=True)
    assert trained[2:] == ["new_fold_1", "new_fold_2"]
    assert {read_record(member).head["tokens"] for member in result.members} == {"mean"}


def test_folds_without_a_plan_do_not_enter_an_ensemble(train: Train, out: Path) -> None:
    leave_unfinished(out)
    before = content(out)
    with pytest.raises(UsageError, match="holds folds of an earlier training whose settings are unknown"):
        train(out, KNN)
    assert content(out) == before
    assert train(out, KNN, overwrite=True).table["folds"] == 2


@pytest.mark.parametrize("damaged", [ENSEMBLE_FILE, f"{STAGE}/folds.json"])
@pytest.mark.parametrize("content", ["{", "{}"])
def test_a_damaged_ensemble_or_plan_can_be_replaced(damaged: str, content: str, train: Train, out: Path) -> None:
    if damaged != ENSEMBLE_FILE:
        leave_unfinished(out)
    (out / damaged).write_text(content)
    with pytest.raises(DinomedError, match="overwrite=True"):
        train(out)
    assert train(out, overwrite=True).table["folds"] == 2


def test_a_fold_that_was_killed_while_its_files_were_moved_is_completed(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publish, "move_ready", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "out")
    assert (tmp_path / "out" / "fold_1" / STAGE / publish.READY_FILE).is_file()
    fit, trained = folds_train.fit_head, list[str]()
    monkeypatch.setattr(
        folds_train, "fit_head", lambda *given, **options: trained.append(given[2].name) or fit(*given, **options)
    )
    train(tmp_path / "out")
    assert trained == ["fold_2"]


def test_a_corrected_mask_changes_the_plan(manifest: Manifest, tmp_path: Path) -> None:
    images = replace(manifest, root=shutil.copytree(manifest.root, tmp_path / "images"))
    plans = [build_plan(SegmenterFit(SegmentConfig()), 2, "", images)]
    plans.append(build_plan(SegmenterFit(SegmentConfig()), 2, "", images))
    first, second = images.column("mask")[:2]
    shutil.copyfile(images.root / second, images.root / first)
    plans.append(build_plan(SegmenterFit(SegmentConfig()), 2, "", images))
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]


def test_other_loggers_do_not_change_the_plan(manifest: Manifest) -> None:
    plans = []
    for loggers in ([], ["tensorboard"]):
        config = ClassifyConfig.model_validate({"fit": {"loggers": loggers}})
        plans.append(build_plan(ClassifierFit(config), 2, "", manifest))
    assert plans[0] == plans[1]


def test_the_card_of_tuned_members_names_no_weights_of_one_of_them(train: Train, tmp_path: Path) -> None:
    config = ClassifyConfig.model_validate({"tune": "last:1", "fit": SHORT})
    result = train(tmp_path / "out", config)
    card = (result.folder / "card.md").read_text()
    tuned = read_record(result.members[0]).tuned
    assert tuned is not None
    assert "tuned (last:1): each adapter has its own changed weights" in card
    assert tuned.fingerprint[:16] not in card


def test_a_training_without_folds_does_not_replace_folds(
    train: Train, out: Path, backbone: FrozenBackbone, manifest: Manifest, cache: Path
) -> None:
    leave_unfinished(out)
    before = content(out)
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="holds folds of a cross-validation; give `folds` to continue it"):
            fit_head(backbone, manifest, out, LOGISTIC, cache=cache, overwrite=overwrite)
    assert content(out) == before


@pytest.mark.parametrize("kept", [WEIGHTS_FILE, f"{STAGE}/{STATE_FOLDER}/epoch"])
def test_folds_do_not_replace_an_adapter_whose_training_was_interrupted(
    kept: str, train: Train, tmp_path: Path
) -> None:
    (tmp_path / STAGE).mkdir()
    (tmp_path / kept).parent.mkdir(exist_ok=True)
    (tmp_path / kept).write_bytes(b"weights")
    before = content(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="holds an adapter, or its unfinished training"):
            train(tmp_path, overwrite=overwrite)
    assert content(tmp_path) == before
