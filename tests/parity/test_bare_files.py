"""Files of weights in the layout of CAE (PanDerm), compared with timm's BEiT of absolute positions."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dinomed.backbones.load import load_backbone
from dinomed.errors import UsageError

beit = pytest.importorskip("timm.models.beit", reason="timm is not installed (pip install dinomed[test])")

TOLERANCE = 1e-5  # float32: tokens of order 1 after sums in another order
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def make(pooled: bool, randomize: Callable[..., None]) -> torch.nn.Module:
    """A BEiT of timm with absolute positions, LayerScale, and biases of queries and values only."""
    model = beit.Beit(
        img_size=64, patch_size=16, embed_dim=64, depth=3, num_heads=1, qkv_bias=True, init_values=0.1,
        use_abs_pos_emb=True, use_rel_pos_bias=False, num_classes=3, global_pool="avg" if pooled else "token",
    ).eval()  # fmt: skip
    randomize(model)
    return model


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("prefix", ["", "encoder.", "module.encoder."])
def test_weights_of_a_cae_give_the_tokens_of_timm(
    prefix: str, pooled: bool, tmp_path: Path, randomize: Callable[..., None], difference: Callable[..., float]
) -> None:
    theirs = make(pooled, randomize)
    state = {f"{prefix}{key}": value for key, value in theirs.state_dict().items()}
    assert {f"{prefix}blocks.0.attn.q_bias", f"{prefix}blocks.0.gamma_1"} <= set(state)
    if prefix:  # parts of the pretraining that are not the backbone
        state |= {f"{part}.norm.weight": torch.ones(64) for part in ("teacher", "regressor_and_decoder")}
    file = tmp_path / "checkpoint.pth"
    torch.save({"model": state}, file)
    backbone = load_backbone(file, mean=MEAN, std=STD, image_size=64)
    assert backbone.vit.config.layerscale is not None
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    norm = theirs.fc_norm if pooled else theirs.norm
    with torch.no_grad():
        hidden = theirs.forward_intermediates(
            images, indices=[0, 2], return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
        for tokens, (patches, prefix_tokens) in zip(backbone(images, (0, 2)), hidden, strict=True):
            expected = norm(torch.cat([prefix_tokens, patches], dim=1))
            assert difference(torch.cat([tokens.cls[:, None], tokens.patches], dim=1), expected) < TOLERANCE


def test_relative_position_biases_are_refused_by_name(tmp_path: Path, randomize: Callable[..., None]) -> None:
    state = make(False, randomize).state_dict()
    state["blocks.0.attn.relative_position_bias_table"] = torch.zeros(52, 1)
    save_file({f"encoder.{key}": value.contiguous() for key, value in state.items()}, tmp_path / "beit.safetensors")
    with pytest.raises(UsageError, match=r"relative position biases .*as in BEiT.* give a folder with its config"):
        load_backbone(tmp_path / "beit.safetensors")
    del state["blocks.0.attn.relative_position_bias_table"], state["blocks.0.attn.v_bias"]
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "cut.safetensors")
    with pytest.raises(UsageError, match=r"weights of another architecture: .*q_bias"):
        load_backbone(tmp_path / "cut.safetensors", mean=MEAN, std=STD)
