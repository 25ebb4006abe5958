"""`configs/pretrain/continue_lora.yaml` on the command line: a dry run, a run, its interruption, resume and result."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dinomed.backbones.config import ViTConfig
from dinomed.backbones.load import load_backbone, save_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "pretrain" / "continue_lora.yaml"
# the sizes of the recipe are for a GPU
SMALL = [
    "crops.global_size=56", "crops.local_size=28", "crops.num_local=2", "run.batch_size=8", "run.micro_batch=4",
    "run.precision=float32", "run.workers=0", "run.checkpoint_every=2", "run.keep_checkpoints=5", "run.steps=6",
    "objective.dino_head.hidden=32", "objective.ibot_head.hidden=32",
]  # fmt: skip
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random backbone with the architecture of the released ones: patch 14, their resizing of positions."""
    folder = tmp_path_factory.mktemp("released") / "start"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ViTConfig(
            embed_dim=32, depth=3, num_heads=2, patch_size=14, image_size=70, position_offset=0.1,
            position_antialias=False,
        )  # fmt: skip
        save_backbone(folder, VisionTransformer(config), Preprocessing(image_size=70))
    return folder


def _words(data: Path, *options: object) -> list[object]:
    sets = [word for setting in SMALL for word in ("--set", setting)]
    return ["pretrain", CONFIG, "--data", data, "--device", "cpu", *sets, *options]


def test_the_recipe_from_end_to_end(released: Path, lesion_manifest: Path, tmp_path: Path, run: Run) -> None:
    pytest.importorskip("peft")
    words = _words(lesion_manifest, "--from", released)
    code, out, err = run(*words, "-o", tmp_path / "dry", "--dry-run", "--json")
    assert code == 0, err
    plan = json.loads(out)
    backbone = plan["config"]["backbone"]
    assert (backbone["embed_dim"], backbone["depth"], backbone["image_size"]) == (32, 3, 70)  # those of the weights
    assert plan["estimate"]["backbone_parameters"] == sum(p.numel() for p in load_backbone(released).vit.parameters())
    assert plan["config"]["tune"]["lora"]["rank"] == 8
    assert plan["config"]["start"]["warmup"] == 0.2
    assert not (tmp_path / "dry").exists()

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    code, _, err = run(*words, "-o", whole)
    assert code == 0, err
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step_00000006")
    code, _, err = run(*words, "-o", cut, "--resume")
    assert code == 0, err
    assert "at step 4 of 6" in err
    first, again, before = (load_backbone(folder).vit.state_dict() for folder in (whole, cut, released))
    assert first.keys() == before.keys()  # plain: the adapters are merged
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    moved = {name for name, tensor in first.items() if not torch.equal(tensor, before[name])}
    assert moved - {"mask_token"} == {f"blocks.{i}.attn.{layer}.weight" for i in range(3) for layer in ("qkv", "proj")}

    code, out, err = run("probe", whole, "--data", lesion_manifest, "--json", "--quiet")
    assert code == 0, err
    assert 0 <= json.loads(out)["knn"]["auroc"] <= 1
    code, _, err = run(*words, "-o", cut, "--resume", "--set", "tune.lora.rank=4")
    assert code == 2
    assert "tune.lora.rank: 8 -> 4" in err


def test_a_dry_run_refuses_the_same_settings_as_the_run(
    lesion_manifest: Path, released: Path, tmp_path: Path, run: Run
) -> None:
    out = ("-o", tmp_path / "dry", "--dry-run")
    code, _, err = run(*_words(lesion_manifest, *out))
    assert code == 2
    assert "name them with --from" in err
    code, _, err = run(*_words(lesion_manifest, "--from", released, "--set", "backbone.embed_dim=96", *out))
    assert code == 2
    assert "--set backbone.embed_dim=96 contradicts the weights of" in err


def test_a_dry_run_downloads_nothing(
    lesion_manifest: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> Path:
        raise AssertionError(f"{name} would be downloaded")

    monkeypatch.setattr("dinomed.backbones.load.cached_weights", refuse)
    words = ["--from", "dinov2_vitb14", "-o", tmp_path / "dry", "--dry-run", "--json"]
    code, out, err = run(*_words(lesion_manifest, *words))
    assert code == 0, err
    backbone = json.loads(out)["config"]["backbone"]
    assert (backbone["embed_dim"], backbone["image_size"], backbone["position_offset"]) == (768, 518, 0.1)
