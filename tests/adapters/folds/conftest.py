"""The cache of features, and an ensemble of three classifiers."""

from pathlib import Path

import pytest

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
