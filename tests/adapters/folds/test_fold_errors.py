"""Folds and ensembles that are refused, each in one line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from dinomed.adapters.bundle import read_record
from dinomed.adapters.folds.plan import with_splits
from dinomed.adapters.folds.train import FoldsResult, train_folds
from dinomed.adapters.inference.ensemble.record import ENSEMBLE_FILE, MAX_MEMBERS
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.errors import DinomedError, UsageError

LOGISTIC = ClassifyConfig.model_validate({"head": {"name": "logistic"}})


def test_a_missing_and_a_changed_member_are_named(
    ensemble: FoldsResult, backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path
) -> None:
    place = tmp_path / "a" / "b"  # as deep as the original, so that the path of the backbone holds
    shutil.copytree(ensemble.folder, place)
    shutil.rmtree(place / "fold_2")
    with pytest.raises(DinomedError, match="lacks its member fold_2"):
        load_adapter(place)
    shutil.copytree(place / "fold_1", place / "fold_2")
    with pytest.raises(DinomedError, match="fold_2 is another adapter than the member"):
        load_adapter(place)
    data = json.loads((place / ENSEMBLE_FILE).read_text())
    data["adapter"]["threshold"] = 0.25
    (place / ENSEMBLE_FILE).write_text(json.dumps(data))
    with pytest.raises(DinomedError, match="does not match its checksum"):
        load_adapter(place)


@pytest.mark.parametrize("folds", [-1, 0, 1, 1000])
def test_too_few_and_too_many_folds_are_refused(
    folds: int, backbone: FrozenBackbone, manifest: Manifest, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"`folds={folds}`: the images have .* give 2 to"):
        train_folds(backbone, manifest, tmp_path / "out", LOGISTIC, folds, cache=cache)
    assert not (tmp_path / "out").exists()


def test_more_folds_than_an_ensemble_has_members_are_refused(
    backbone: FrozenBackbone, manifest: Manifest, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"^`folds=1001`: an ensemble has at most {MAX_MEMBERS} members; give fewer"):
        train_folds(backbone, manifest, tmp_path / "out", LOGISTIC, 1001, cache=cache)


def test_a_class_of_one_group_is_refused_before_the_training(
    backbone: FrozenBackbone, manifest: Manifest, cache: Path, tmp_path: Path
) -> None:
    first = manifest.select(split="train").units()[0]
    labels = ["rare" if unit == first else label
              for unit, label in zip(manifest.units(), manifest.column("label"), strict=True)]  # fmt: skip
    place = manifest.table.column_names.index("label")
    data = replace(manifest, table=manifest.table.set_column(place, "label", pa.array(labels)))
    with pytest.raises(UsageError, match="images of class 'rare' are in one fold only"):
        train_folds(backbone, data, tmp_path / "out", LOGISTIC, 2, cache=cache)


def test_a_group_of_test_in_train_is_refused(
    backbone: FrozenBackbone, manifest: Manifest, cache: Path, tmp_path: Path
) -> None:
    units, splits = manifest.units(), manifest.column("split")
    double = next(i for i, unit in enumerate(units) if units.count(unit) > 1 and splits[i] == "val")
    splits[double] = "test"
    with pytest.raises(UsageError, match=r"in val and \S+ in test: images of one group must be in one split"):
        train_folds(backbone, with_splits(manifest, splits), tmp_path / "out", LOGISTIC, 2, cache=cache)


def test_members_of_other_classes_are_not_averaged(ensemble: FoldsResult) -> None:
    from dinomed.adapters.inference.ensemble.record import check_members

    records = [read_record(folder) for folder in ensemble.members]
    records[1] = records[1].model_copy(update={"classes": ("a", "b", "c")})
    with pytest.raises(UsageError, match=r"members x and y have different classes: .* and a, b, c"):
        check_members("out", ["x", "y"], records[:2])
    records[1] = records[1].model_copy(update={"task": "segment"})
    with pytest.raises(UsageError, match="different tasks: classify and segment"):
        check_members("out", ["x", "y"], records[:2])
