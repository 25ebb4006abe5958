"""Mean and std of weights that name none: `--mean`, `--std` of `pretrain` and `distill`, and what the run records."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dinomed.apps.api.pretraining import plan_pretraining
from dinomed.apps.cli import command_words, main
from dinomed.backbones.config import ViTConfig
from dinomed.backbones.load import load_backbone, save_backbone
from dinomed.backbones.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.config import to_yaml
from dinomed.errors import UsageError
from dinomed.pretrain.config import PretrainConfig

Tiny = Callable[..., PretrainConfig]
MEAN, STD = (0.5, 0.25, 0.125), (0.5, 0.4, 0.3)
WORDS = ("--mean", "0.5,0.25,0.125", "--std", "0.5,0.4,0.3")


@pytest.fixture(scope="module")
def bare_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights alone, whose statistics nothing tells."""
    vit = VisionTransformer(ViTConfig(embed_dim=64, depth=2, num_heads=1, patch_size=8, image_size=32, layerscale=None))
    path = tmp_path_factory.mktemp("bare") / "vit.pth"
    torch.save({"model": vit.state_dict()}, path)
    return path


@pytest.fixture
def config_file(tiny: Tiny, tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(tiny(run={"steps": 1, "pca_images": 0})))
    return path


def call(*words: object) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert not end.value.code


@pytest.mark.parametrize("command", ["pretrain", "distill"])
def test_a_run_records_the_statistics_that_were_given(
    command: str, bare_file: Path, config_file: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ("--from",) if command == "pretrain" else ("--set", "distill.method=features", "--teacher")
    words = (command, config_file, "--data", pictures, "--device", "cpu", "--json", *source, bare_file, *WORDS)
    words = (*words, "-o", tmp_path / "run")
    call(*words, "--dry-run")
    plan = json.loads(capsys.readouterr().out)["config"]
    assert (plan["mean"], plan["std"]) == (list(MEAN), list(STD))
    call(*words)
    assert "name no mean and std" not in capsys.readouterr().err
    preprocessing = load_backbone(tmp_path / "run").preprocessing
    assert (preprocessing.mean, preprocessing.std) == (MEAN, STD)


def test_without_them_a_warning_says_what_is_assumed(
    bare_file: Path, config_file: Path, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_pretraining(config_file, pictures, start=bare_file)
    assert (plan.config.mean, plan.config.std) == (IMAGENET_MEAN, IMAGENET_STD)
    (warning,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert "its files name no mean and std; assumed are mean 0.485,0.456,0.406" in warning
    assert warning.endswith("give those of its pretraining by `mean` and `std`")


def test_statistics_that_nothing_needs_are_refused(
    bare_file: Path, config_file: Path, pictures: Path, tmp_path: Path
) -> None:
    both = {"mean": MEAN, "std": STD}
    with pytest.raises(UsageError, match=r"name these with `start`, or, without initial weights, set `mean` and `std`"):
        plan_pretraining(config_file, pictures, **both)
    with pytest.raises(UsageError, match="give both `mean` and `std`, or neither"):
        plan_pretraining(config_file, pictures, start=bare_file, mean=MEAN)
    with pytest.raises(UsageError, match="the released weights of dinov2_vits14 have a known mean and std"):
        plan_pretraining(config_file, pictures, start="dinov2_vits14", **both)
    with pytest.raises(UsageError, match="`mean` and `std` cannot be used"):
        plan_pretraining(config_file, pictures, start=bare_file, mean=(0.5,), std=(0.5,))
    with pytest.raises(UsageError, match=r"with distill\.method=features; a run records its own"):
        plan_pretraining(config_file, pictures, teacher=tmp_path, **both)
    vit = load_backbone(bare_file).vit
    assert isinstance(vit, VisionTransformer)
    save_backbone(tmp_path / "named", vit, Preprocessing(image_size=32))
    with pytest.raises(UsageError, match="records its mean and std; leave `mean` and `std` out"):
        plan_pretraining(config_file, pictures, start=tmp_path / "named", **both)


def test_several_processes_get_the_same_words() -> None:
    words = command_words(["pretrain"], {"config": "c", "data": "d", "out": "o", "mean": MEAN, "std": STD})
    assert words[-4:] == list(WORDS)
