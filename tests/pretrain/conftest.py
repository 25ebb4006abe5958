"""A pretraining run small enough for a test: two blocks, 40 synthetic images."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dinomed.config import build_config, merge
from dinomed.datasets.manifest import write_manifest
from dinomed.datasets.scan.scan import scan
from dinomed.datasets.synthetic.lesions import write_lesions
from dinomed.pretrain.config import PretrainConfig

TINY: dict[str, Any] = {
    "backbone": {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8, "drop_path": 0.3, "num_registers": 1},
    "crops": {"global_size": 32, "local_size": 16, "num_local": 2, "blur_kernel": 3},
    "objective": {
        "dino_head": {"prototypes": 24, "hidden": 16, "bottleneck": 8},
        "ibot_head": {"prototypes": 16, "hidden": 16, "bottleneck": 8},
    },
    "optimizer": {"lr": 1e-3, "lr_scaling": "none"},
    "run": {"steps": 6, "batch_size": 4, "workers": 0, "checkpoint_every": 2, "log_every": 1, "pca_images": 2},
}


@pytest.fixture(scope="session")
def tiny() -> Callable[..., PretrainConfig]:
    """Return the tiny config with changes: ``tiny(run={"steps": 3})``."""
    return lambda **changes: build_config(PretrainConfig, merge(TINY, changes), "tiny")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., PretrainConfig], pictures: Path) -> Path:
    """The folder of a finished run of 6 steps of the tiny config. Read-only."""
    from dinomed.pretrain.trainer import pretrain

    return pretrain(tiny(), pictures, tmp_path_factory.mktemp("finished") / "run", device="cpu").folder


@pytest.fixture
def finished_copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def resumed_equals(pictures: Path, tmp_path: Path) -> Callable[[PretrainConfig, Any], bool]:
    """Return whether a run that lost its last checkpoint and was resumed gives the weights of the unbroken one."""
    import torch
    from safetensors.torch import load_file

    from dinomed.pretrain.trainer import pretrain

    def compare(config: PretrainConfig, whole: Any) -> bool:
        cut = shutil.copytree(whole.folder, tmp_path / "cut")
        (cut / "checkpoints" / "step_00000006" / "state.json").unlink()
        shutil.rmtree(cut / "backbone")
        pretrain(config, pictures, cut, device="cpu", resume=True)
        first, second = (load_file(path / "backbone" / "model.safetensors") for path in (whole.folder, cut))
        return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)

    return compare


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of synthetic lesions."""
    folder = tmp_path_factory.mktemp("pictures")
    write_lesions(folder / "lesions", count=40, seed=1, size=(48, 64), broken=0)
    path = folder / "lesions.parquet"
    write_manifest(scan(folder / "lesions", labels=folder / "lesions" / "labels.csv").manifest, path)
    return path
