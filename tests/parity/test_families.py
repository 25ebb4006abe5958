"""Published families of ViTs: a model with random weights, made and saved by timm or transformers in its real format,
loaded by `load_backbone`. Tokens of an inner and of the last block are compared at the size of the model, at another
size, and for a rectangle.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from dinomed import extract_features
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.backbones.vit import Tokens, VisionTransformer

timm = pytest.importorskip("timm", reason="timm is not installed (pip install dinomed[test])")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install dinomed[test])")
from timm.layers import SwiGLUPacked  # noqa: E402
from timm.models import save_for_hf  # noqa: E402

TOLERANCE = 1e-5  # float32: tokens of order 1 after sums in another order
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]

# name of the family -> architecture of timm, its arguments, and whether dinomed's own ViT computes it
TIMM: dict[str, tuple[str, dict[str, Any], bool]] = {
    "DINO v1": ("vit_small_patch8_224", {"img_size": 64}, True),
    "MAE": ("vit_base_patch16_224", {"img_size": 96, "global_pool": "token"}, True),
    "RETFound, pooled patches": ("vit_large_patch16_224", {"img_size": 96, "global_pool": "avg"}, True),
    "DINOv2, another width": ("vit_small_patch14_dinov2", {"img_size": 112, "num_heads": 2}, True),
    "UNI2, SwiGLU and 8 registers": (
        "vit_giant_patch14_224",
        {
            "img_size": 84, "embed_dim": 96, "init_values": 1e-5, "mlp_ratio": 2.66667 * 2, "mlp_layer": SwiGLUPacked,
            "act_layer": nn.SiLU, "reg_tokens": 8, "no_embed_class": True, "num_heads": 4,
        },
        True,
    ),
    "DINOv3": ("vit_small_patch16_dinov3", {"img_size": 96}, True),
    "DINOv3 with biases": ("vit_small_patch16_dinov3_qkvb", {"img_size": 96}, True),
    "EVA-02": ("eva02_tiny_patch14_224", {"img_size": 84}, False),
    "SigLIP 2": ("vit_base_patch16_siglip_224", {"img_size": 96}, False),
    "CLIP": ("vit_base_patch16_clip_quickgelu_224", {"img_size": 96}, False),
    "registers and no class token": ("vit_little_patch16_reg1_gap_256", {"img_size": 96}, False),
}  # fmt: skip


def save_timm(name: str, arguments: dict[str, Any], folder: Path, randomize: Callable[..., None]) -> nn.Module:
    """Make a small model of a real architecture, with its classifier, and save it as timm does for its hub."""
    small = {"embed_dim": 64, "depth": 3, "num_heads": 2, **arguments}
    model = timm.create_model(name, pretrained=False, num_classes=3, dynamic_img_size=True, **small).eval()
    randomize(model)
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": MEAN, "std": STD, "interpolation": "bilinear"}
    plain = {key: value for key, value in small.items() if isinstance(value, int | float | str | bool)}
    if plain.keys() != small.keys():  # classes as arguments: its publishers write a config that does not name them
        config = {"architecture": name, "model_args": plain, "pretrained_cfg": model.pretrained_cfg}
        (folder / "config.json").write_text(json.dumps(config))
        save_file(model.state_dict(), folder / "model.safetensors")
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        return model
    save_for_hf(model, folder, model_config={"architecture": name, "model_args": plain}, safe_serialization="both")
    return model


def all_tokens(tokens: Tokens, *, cls: bool = True) -> Tensor:
    first = [tokens.cls[:, None]] if cls else []
    return torch.cat([*first, tokens.registers, tokens.patches], dim=1)


def sizes_of(backbone: FrozenBackbone) -> list[tuple[int, int]]:
    side, patch = backbone.preprocessing.image_size, backbone.patch_size
    return [(side, side), (side + 2 * patch, side + 2 * patch), (side, side + 3 * patch)]


def timm_tokens(model: Any, images: Tensor, block: int) -> Tensor:
    """Tokens of a block after the final norm, which stands in `fc_norm` for models that pool patches."""
    prefix = model.num_prefix_tokens
    out = model.forward_intermediates(
        images, indices=[block], return_prefix_tokens=prefix > 0, output_fmt="NLC", intermediates_only=True
    )[0]
    whole = torch.cat([out[1], out[0]], dim=1) if prefix else out
    return model.fc_norm(whole) if isinstance(model.norm, nn.Identity) else model.norm(whole)


@pytest.mark.parametrize("family", TIMM)
def test_a_folder_of_timm_gives_the_same_tokens(
    family: str, tmp_path: Path, randomize: Callable[..., None], difference: Callable[..., float]
) -> None:
    name, arguments, own = TIMM[family]
    theirs = save_timm(name, arguments, tmp_path, randomize)
    backbone = load_backbone(tmp_path, image_size=arguments["img_size"])
    assert isinstance(backbone.model, VisionTransformer) == own
    assert (list(backbone.preprocessing.mean), list(backbone.preprocessing.std)) == (MEAN, STD)
    assert backbone.preprocessing.interpolation == "bilinear"
    has_class = theirs.cls_token is not None
    for size in sizes_of(backbone):
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            for block, tokens in zip((1, 2), backbone(images, (1, -1)), strict=True):
                expected = timm_tokens(theirs, images, block)
                assert difference(all_tokens(tokens, cls=has_class), expected) < TOLERANCE
                if not has_class:
                    pooled = theirs.attn_pool(expected) if theirs.attn_pool is not None else tokens.patches.mean(1)
                    assert difference(tokens.cls, pooled) < TOLERANCE


@pytest.mark.parametrize("family", ["MAE", "DINOv3", "SigLIP 2"])
def test_images_whose_proportions_are_kept_have_the_features_of_the_library_for_the_same_rectangle(
    family: str, tmp_path: Path, randomize: Callable[..., None], difference: Callable[..., float]
) -> None:
    name, arguments, _ = TIMM[family]
    theirs = save_timm(name, arguments, tmp_path, randomize)
    backbone = load_backbone(tmp_path, image_size=arguments["img_size"], aspect="keep")
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3)).astype(np.uint8)
    unit = torch.from_numpy(image).permute(2, 0, 1)
    resized = resize(unit, [96, 128], interpolation=InterpolationMode.BILINEAR, antialias=True).float() / 255
    pixels = (resized - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        expected = timm_tokens(theirs, pixels[None], 2)
    features = extract_features(backbone, [image])
    patches = expected[:, theirs.num_prefix_tokens :].mean(dim=1)
    assert difference(torch.from_numpy(features.mean), patches) < TOLERANCE
    if theirs.cls_token is not None:
        assert difference(torch.from_numpy(features.cls), expected[:, 0]) < TOLERANCE


def test_a_model_of_one_size_says_so(tmp_path: Path, randomize: Callable[..., None], difference: Any) -> None:
    """timm's BEiT has biases for the distances in one grid; timm resizes them when it loads, not when it computes."""
    from dinomed.errors import UsageError

    small = {"embed_dim": 64, "depth": 3, "num_heads": 2, "img_size": 96}
    theirs = timm.create_model("beit_base_patch16_224", pretrained=False, num_classes=3, **small).eval()
    randomize(theirs)
    config = {"architecture": "beit_base_patch16_224", "model_args": small}
    save_for_hf(theirs, tmp_path, model_config=config, safe_serialization=True)
    backbone = load_backbone(tmp_path)
    assert backbone.preprocessing.image_size == 96
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert difference(all_tokens(backbone(images)[0]), timm_tokens(theirs, images, 2)) < TOLERANCE
    with pytest.raises(UsageError, match="takes images of 96 px only, not of 128 px"):
        load_backbone(tmp_path, image_size=128)
    with pytest.raises(UsageError, match=r"beit.*takes squares of 96 px only, no rectangles.*use `aspect=pad`"):
        load_backbone(tmp_path, aspect="keep")


SMALL = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 128, "image_size": 96,
    "patch_size": 16,
}  # fmt: skip
# name of the family -> model, config, further settings, and whether dinomed's own ViT computes it
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], bool]] = {
    "ViT (DINO v1, Phikon)": ("ViTModel", "ViTConfig", {}, True),
    "MAE": ("ViTMAEModel", "ViTMAEConfig", {"mask_ratio": 0.0}, True),
    "DINOv3": ("DINOv3ViTModel", "DINOv3ViTConfig", {"num_register_tokens": 4}, True),
    "DINOv3 with a gated MLP": (
        "DINOv3ViTModel", "DINOv3ViTConfig", {"num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu"},
        True,
    ),
    "CLIP": ("CLIPVisionModel", "CLIPVisionConfig", {}, False),
    "SigLIP": ("SiglipVisionModel", "SiglipVisionConfig", {}, False),
    "BEiT": ("BeitModel", "BeitConfig", {"use_relative_position_bias": True}, False),
}  # fmt: skip


def transformers_tokens(model: Any, images: Tensor, block: int) -> Tensor:
    """Tokens of a block after the final norm, with all patches in their order."""
    more: dict[str, Any] = {"output_hidden_states": True}
    if "DINOv3" not in type(model).__name__:
        more["interpolate_pos_encoding"] = True
    if "MAE" in type(model).__name__:  # it shuffles the patches by noise
        patches = images.shape[-2] * images.shape[-1] // 256
        more["noise"] = torch.arange(patches).float().expand(len(images), -1)
    norm = next(getattr(model, name) for name in ("post_layernorm", "norm", "layernorm") if hasattr(model, name))
    if isinstance(norm, nn.Identity):
        norm = model.pooler.layernorm
    hidden = model(images, **more).hidden_states
    return norm(hidden[block + 1])


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_a_folder_of_transformers_gives_the_same_tokens(
    family: str, tmp_path: Path, randomize: Callable[..., None], difference: Callable[..., float]
) -> None:
    model_name, config_name, more, own = TRANSFORMERS[family]
    config = getattr(transformers, config_name)(**{**SMALL, **more})
    theirs = getattr(transformers, model_name)(config).eval()
    randomize(theirs)
    theirs.save_pretrained(tmp_path, max_shard_size="60KB")  # in several shards with an index
    assert (tmp_path / "model.safetensors.index.json").is_file()
    processor = {"image_mean": MEAN, "image_std": STD, "size": {"height": 96, "width": 96}, "resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    backbone = load_backbone(tmp_path)
    assert isinstance(backbone.model, VisionTransformer) == own
    assert backbone.preprocessing.model_dump(include={"mean", "std", "image_size", "interpolation"}) == {
        "mean": tuple(MEAN), "std": tuple(STD), "image_size": 96, "interpolation": "bilinear",
    }  # fmt: skip
    for size in sizes_of(backbone):
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            for block, tokens in zip((1, 2), backbone(images, (1, -1)), strict=True):
                expected = transformers_tokens(theirs, images, block)
                assert difference(all_tokens(tokens, cls=family != "SigLIP"), expected) < TOLERANCE
                if family == "SigLIP":
                    assert difference(tokens.cls, theirs.head(expected)) < TOLERANCE


@pytest.mark.parametrize("family", [name for name, (_, _, own) in TIMM.items() if own])
def test_a_file_of_weights_alone_gives_the_same_tokens(
    family: str, tmp_path: Path, randomize: Callable[..., None], difference: Callable[..., float]
) -> None:
    """The architecture is inferred from the tensors; the number of heads is the usual one of the width, here one."""
    name, arguments, _ = TIMM[family]
    theirs = save_timm(name, {**arguments, "num_heads": 1}, tmp_path, randomize)
    for file in ("model.safetensors", "pytorch_model.bin"):
        place = tmp_path / f"alone-{file}"
        shutil.copy(tmp_path / file, place)
        backbone = load_backbone(place, mean=MEAN, std=STD, image_size=arguments["img_size"])
        images = torch.randn(1, 3, *sizes_of(backbone)[2], generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = timm_tokens(theirs, images, 2)
            assert difference(all_tokens(backbone(images)[0]), expected) < TOLERANCE


def test_official_names_of_dinov3_give_the_same_tokens(
    tmp_path: Path, randomize: Callable[..., None], difference: Callable[..., float]
) -> None:
    """The file that its authors publish: storage tokens, periods, and a key bias that a mask takes away."""
    theirs = save_timm(*TIMM["DINOv3 with biases"][:2], tmp_path, randomize)
    official = {}
    for key, value in theirs.state_dict().items():
        if key.startswith("head.") or key.endswith("v_bias"):
            continue
        if key.endswith("q_bias"):
            mask = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(len(value))
            values = theirs.state_dict()[key.replace("q_bias", "v_bias")]
            name = key.replace("q_bias", "qkv.bias")
            official[name], official[f"{name}_mask"] = torch.cat([value, torch.full_like(value, 7.0), values]), mask
            continue
        name = key.replace("reg_token", "storage_tokens")
        official[name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")] = value
    official["rope_embed.periods"] = torch.ones(16)
    official["mask_token"] = torch.randn(1, 64)
    save_file({key: value.contiguous() for key, value in official.items()}, tmp_path / "official.safetensors")
    backbone = load_backbone(tmp_path / "official.safetensors", mean=MEAN, std=STD)
    # the tensors do not show that the model has 2 heads
    vit = VisionTransformer(backbone.vit.config.model_copy(update={"num_heads": 2})).eval()
    vit.load_state_dict(backbone.vit.state_dict())
    images = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        # a bias of the keys changes no attention: the softmax is over the keys of one query
        assert difference(all_tokens(vit(images)), timm_tokens(theirs, images, 2)) < TOLERANCE
