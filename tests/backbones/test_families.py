"""Backbones of other libraries: statistics, references, exports that are read back, and bad input."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dinomed.adapters.export.libraries import write_timm, write_transformers
from dinomed.adapters.reference import find_backbone, refer_to
from dinomed.backbones.config import ViTConfig
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone, save_backbone
from dinomed.backbones.preprocessing import IMAGENET_MEAN, Preprocessing
from dinomed.backbones.published import PUBLISHED
from dinomed.backbones.vit import VisionTransformer
from dinomed.errors import DinomedError, UsageError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def vit(**overrides: object) -> VisionTransformer:
    torch.manual_seed(0)
    settings = {"embed_dim": 64, "depth": 2, "num_heads": 1, "patch_size": 8, "image_size": 32, **overrides}
    model = VisionTransformer(ViTConfig(**settings))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def save_tiny(folder: Path, **overrides: object) -> FrozenBackbone:
    save_backbone(folder, vit(**overrides), Preprocessing(image_size=32, mean=MEAN, std=STD))
    return load_backbone(folder)


@pytest.mark.parametrize("kind", [{}, {"num_registers": 4}, {"feed_forward": "swiglu"}, {"layerscale": None}])
def test_an_export_to_timm_is_read_back(tmp_path: Path, kind: dict) -> None:
    backbone = save_tiny(tmp_path / "own", **kind)
    (tmp_path / "timm").mkdir()
    write_timm(backbone, tmp_path / "timm")
    again = load_backbone(tmp_path / "timm")
    assert again.preprocessing == backbone.preprocessing
    images = torch.randn(2, 3, 32, 32)
    for ours, theirs in zip(backbone(images, (0, -1)), again(images, (0, -1)), strict=True):
        assert torch.allclose(ours.cls, theirs.cls, atol=1e-5)  # the same sums; timm adds the class position first
        assert torch.allclose(ours.patches, theirs.patches, atol=1e-5)


def test_an_export_to_transformers_is_read_back(tmp_path: Path) -> None:
    backbone = save_tiny(tmp_path / "own", position_antialias=False, position_offset=0.1)
    (tmp_path / "theirs").mkdir()
    write_transformers(backbone, tmp_path / "theirs")
    assert load_backbone(tmp_path / "theirs").fingerprint == backbone.fingerprint


def test_unknown_statistics_are_a_warning_that_says_what_is_assumed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file(vit().state_dict(), tmp_path / "weights.safetensors")
    backbone = load_backbone(tmp_path / "weights.safetensors")
    assert backbone.preprocessing.mean == IMAGENET_MEAN
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "name no mean and std; assumed are mean 0.485,0.456,0.406" in warning
    caplog.clear()
    stated = load_backbone(tmp_path / "weights.safetensors", mean=MEAN, std=STD)
    assert (stated.preprocessing.mean, stated.preprocessing.std) == (MEAN, STD)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert stated.fingerprint != backbone.fingerprint


@pytest.mark.parametrize("mean", [None, MEAN])
def test_an_adapter_finds_a_bare_file_with_its_statistics_again(
    tmp_path: Path, mean: tuple[float, ...] | None, caplog: pytest.LogCaptureFixture
) -> None:
    save_file(vit().state_dict(), tmp_path / "weights.safetensors")
    statistics = {} if mean is None else {"mean": mean, "std": STD}
    backbone = load_backbone(tmp_path / "weights.safetensors", image_size=32, **statistics)
    (tmp_path / "adapter").mkdir()
    reference = refer_to(backbone, tmp_path / "adapter")
    caplog.clear()
    reading = Preprocessing(image_size=32)
    again = find_backbone(tmp_path / "adapter", reference, reading)
    assert again.fingerprint == backbone.fingerprint
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    moved = (tmp_path / "weights.safetensors").rename(tmp_path / "moved.safetensors")
    assert find_backbone(tmp_path / "adapter", reference, reading, moved).fingerprint == backbone.fingerprint


def test_mean_and_std_are_refused_where_they_are_wrong(tmp_path: Path) -> None:
    save_tiny(tmp_path / "own")
    save_file(vit().state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(UsageError, match="records its mean and std; leave `mean` and `std` out"):
        load_backbone(tmp_path / "own", mean=MEAN, std=(0.2, 0.2, 0.2))
    load_backbone(tmp_path / "own", mean=MEAN, std=STD)  # an adapter on a bare file, whose backbone is now this folder
    with pytest.raises(UsageError, match="give both `mean` and `std`, or neither"):
        load_backbone(tmp_path / "weights.safetensors", mean=MEAN)
    with pytest.raises(UsageError, match="`mean` and `std` cannot be used: 3 channels need as many values"):
        load_backbone(tmp_path / "weights.safetensors", mean=(0.5,), std=(0.2,))
    nan, infinite = float("nan"), "`mean` and `std` cannot be used: Input should be a finite number"
    for mean, std, message in (
        (MEAN, (0.2, nan, 0.2), infinite),
        ((0.5, 0.5, nan), STD, infinite),
        (MEAN, (0.2, 0.2, 0.0), "std must be positive, and both at most 100"),
        (MEAN, (0.2, 0.2, 101.0), "std must be positive, and both at most 100"),
    ):
        with pytest.raises(UsageError, match=message):
            load_backbone(tmp_path / "weights.safetensors", mean=mean, std=std)
    with pytest.raises(UsageError, match="a part of a backbone folder of dinomed; give the folder"):
        load_backbone(tmp_path / "own" / "model.safetensors")


@pytest.mark.parametrize("channels", [1, 4])
def test_channels_of_a_file_are_inferred(tmp_path: Path, channels: int) -> None:
    save_file(vit(in_channels=channels).state_dict(), tmp_path / "weights.safetensors")
    backbone = load_backbone(tmp_path / "weights.safetensors", image_size=32)
    assert (backbone.preprocessing.channels, backbone.vit.config) == (
        channels, vit(in_channels=channels).config.model_copy(),
    )  # fmt: skip


def test_the_interpolation_of_a_model_changes_pixels_and_fingerprint() -> None:
    image = np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8)
    cubic, linear = Preprocessing(image_size=32), Preprocessing(image_size=32, interpolation="bilinear")
    assert not torch.equal(cubic(image), linear(image))
    assert FrozenBackbone(vit(), cubic, "x").fingerprint != FrozenBackbone(vit(), linear, "x").fingerprint


def test_a_size_that_the_patch_does_not_divide_becomes_the_next_lower_one(tmp_path: Path) -> None:
    """SigLIP so400m reads 384 px with patches of 14 px: its convolution sees 378 px."""
    backbone = save_tiny(tmp_path / "own")
    (tmp_path / "timm").mkdir()
    write_timm(backbone, tmp_path / "timm")
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    config["pretrained_cfg"]["input_size"] = [3, 37, 37]
    (tmp_path / "timm" / "config.json").write_text(json.dumps(config))
    assert load_backbone(tmp_path / "timm").preprocessing.image_size == 32


class Payload:
    def __reduce__(self) -> tuple:
        return print, ("this code must not run",)


BAD_CONFIGS = {
    "resnet": ({"architecture": "resnet18"}, "resnet18 is no ViT|weights of another architecture"),
    "unknown to timm": ({"architecture": "vit_smal_patch16_224"}, "has no architecture 'vit_smal_patch16_224'"),
    "unknown arguments": (
        {"architecture": "vit_small_patch16_224", "model_args": {"no_such_thing": 1}}, "timm cannot build",
    ),
    "another architecture": ({"architecture": "vit_base_patch16_siglip_224"}, "weights of another architecture"),
    "a language model": ({"model_type": "bert"}, "a bert model, which dinomed cannot use; it reads .*beit.* of timm"),
    "another kind": ({"model_type": "wav2vec2"}, "is of a wav2vec2 model, which dinomed cannot use"),
    "nothing": ({"a": 1}, "names no model"),
    "other sizes": ({"model_type": "vit", "hidden_size": 64, "num_hidden_layers": 9}, "depth 2, its config.json"),
    "text for a number": ({"model_type": "dinov3_vit", "rope_theta": "wide"}, "its config cannot be used"),
    "clip": ({"model_type": "clip_vision_model", "hidden_size": 64}, "weights are missing|transformers cannot read it"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_CONFIGS)
def test_a_folder_of_another_family_gives_one_line(tmp_path: Path, kind: str) -> None:
    config, message = BAD_CONFIGS[kind]
    save_file(vit(layerscale=None).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DinomedError, match=message) as caught:
        load_backbone(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_vit_gives_one_line(tmp_path: Path) -> None:
    save_file({"layer1.weight": torch.zeros(2, 2)}, tmp_path / "cnn.safetensors")
    with pytest.raises(UsageError, match="no weights of a ViT"):
        load_backbone(tmp_path / "cnn.safetensors")
    state = {key: value for key, value in vit().state_dict().items() if key != "cls_token"}
    save_file(state, tmp_path / "pooled.safetensors")
    with pytest.raises(UsageError, match="a ViT without a class token"):
        load_backbone(tmp_path / "pooled.safetensors")
    (tmp_path / "weights.pth").write_bytes(pickle.dumps({"a": Payload()}))
    with pytest.raises(DinomedError, match="cannot be read without running code from it"):
        load_backbone(tmp_path / "weights.pth")
    torch.save(vit().state_dict(), tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    for size in (5000, len(content) // 2, len(content) - 10):
        (tmp_path / "cut.pth").write_bytes(content[:size])
        with pytest.raises(DinomedError, match=r"cut\.pth: cut off.*; copy or download it again"):
            load_backbone(tmp_path / "cut.pth")


def sharded(folder: Path) -> Path:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, image_size=32, patch_size=8
    )
    transformers.ViTModel(config).save_pretrained(folder, max_shard_size="60KB")
    return sorted(folder.glob("model-*.safetensors"))[1]


def test_damaged_shards_give_one_line(tmp_path: Path) -> None:
    shard = sharded(tmp_path)
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(DinomedError, match=rf"{shard.name}: a damaged safetensors file .*; copy or download"):
        load_backbone(tmp_path)
    shard.unlink()
    with pytest.raises(DinomedError, match=rf"1 of \d+ shards are missing \({shard.name}\)"):
        load_backbone(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(DinomedError, match=r"refused: '\.\./outside\.safetensors' is not the name"):
        load_backbone(tmp_path)
    index.write_text("{}")
    with pytest.raises(DinomedError, match="no table of shards"):
        load_backbone(tmp_path)


def test_what_another_family_cannot_do_is_said_by_name(tmp_path: Path) -> None:
    from dinomed.adapters.fitting.config import BackboneTuneConfig
    from dinomed.adapters.fitting.tune import LearningBackbone, check_tune
    from dinomed.pretrain.model.config import InitialisationConfig
    from dinomed.pretrain.model.initialisation import read_initialisation

    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.CLIPVisionConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, image_size=32, patch_size=8
    )
    transformers.CLIPVisionModel(config).save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path, mean=MEAN, std=STD)
    refused = "is a clip_vision_model .transformers. model, which dinomed uses frozen"
    with pytest.raises(UsageError, match=refused):
        LearningBackbone(backbone, BackboneTuneConfig(last=1), (1,), 0)
    for tune in ("last:1", "lora:8"):  # before images are read
        with pytest.raises(UsageError, match=refused):
            check_tune(BackboneTuneConfig.model_validate(tune), backbone, 1)
    check_tune(BackboneTuneConfig(), backbone, 1)
    with pytest.raises(UsageError, match=refused):
        write_timm(backbone, tmp_path)
    with pytest.raises(UsageError, match=refused):
        read_initialisation(InitialisationConfig(weights=str(tmp_path)))


def test_the_statistics_of_rows_of_timm_are_those_of_timm() -> None:
    timm = pytest.importorskip("timm")
    known = {
        "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "CLIP": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        "0.5 and 0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    }
    rows = [row for row in PUBLISHED if row.name.startswith("timm/")]
    assert len(rows) >= 6
    for row in rows:
        config = timm.get_pretrained_cfg(row.name.removeprefix("timm/"))
        assert (config.mean, config.std) == known[row.values], row.name


def test_the_table_of_published_backbones_and_its_page_agree() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "backbones.md").read_text(encoding="utf-8")
    for row in PUBLISHED:
        cells = (f"`{row.name}`", row.domain, row.architecture, f"{row.parameters} M", row.licence, row.access)
        line = f"| {' | '.join(cells)} | {row.engine} | {row.values} | `{row.command}` | {row.tested} |\n"
        assert line in page, row.name
    assert len({row.name for row in PUBLISHED}) == len(PUBLISHED)
    assert sum(bool(row.start) for row in PUBLISHED) >= 2
