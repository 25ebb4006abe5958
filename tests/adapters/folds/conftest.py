"""The cache of features, an ensemble of three classifiers, a copy of it, and trainings of two folds."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dinomed.adapters.fitting.config import TrainConfig
from dinomed.adapters.folds.train import FoldsResult, train_folds
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest

LOGISTIC = ClassifyConfig.model_validate({"head": {"name": "logistic"}})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def ensemble(
    backbone: FrozenBackbone, manifest: Manifest, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> FoldsResult:
    """An ensemble of three classifiers. Read-only."""
    return train_folds(backbone, manifest, tmp_path_factory.mktemp("folds") / "cls", LOGISTIC, 3, cache=cache)


@pytest.fixture
def out(ensemble: FoldsResult, tmp_path: Path) -> Path:
    """A copy of the ensemble."""
    return shutil.copytree(ensemble.folder, tmp_path / "out")


@pytest.fixture
def train(backbone: FrozenBackbone, manifest: Manifest, cache: Path) -> Callable[..., Any]:
    """`train_folds` with two folds of the images of the tests."""

    def call(out: Path, config: TrainConfig = LOGISTIC, **options: Any) -> Any:
        return train_folds(backbone, manifest, out, config, 2, cache=cache, **options)

    return call
