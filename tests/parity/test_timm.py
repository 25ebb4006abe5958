"""Our ViT against that of timm with the same random weights, through the converter. timm resizes positions with
antialiasing and no offset."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from dinomed.backbones.config import ViTConfig
from dinomed.backbones.variants import VARIANTS
from dinomed.backbones.vit import Tokens
from dinomed.backbones.weights import build_with_weights, convert

timm = pytest.importorskip("timm", reason="timm is not installed (pip install dinomed[test])")
from timm.layers import SwiGLU, SwiGLUPacked  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

TOLERANCE = 1e-5  # float32: tokens of order 1 after sums in another order (none on the CPU it was measured on)
SIZES = [(224, 224), (518, 518), (224, 308)]
KINDS = {
    "mlp": {},
    "packed": {"mlp_layer": SwiGLUPacked, "mlp_ratio": 2.66667 * 2, "act_layer": nn.SiLU},  # as in timm's ViT-g
    "separate": {"mlp_layer": SwiGLU, "mlp_ratio": 2.66667, "act_layer": nn.SiLU},
}


def all_tokens(tokens: Tokens) -> torch.Tensor:
    return torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], dim=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_registers", [0, 4])
def test_small_models_are_equal_at_all_sizes(
    kind: str, num_registers: int, randomize: Callable[..., None], difference: Callable[..., float]
) -> None:
    theirs = VisionTransformer(
        img_size=518, patch_size=14, embed_dim=96, depth=3, num_heads=3, init_values=1e-5, num_classes=0,
        reg_tokens=num_registers, no_embed_class=num_registers > 0, dynamic_img_size=True, **KINDS[kind],
    ).eval()  # fmt: skip
    randomize(theirs)
    config = ViTConfig(
        embed_dim=96, depth=3, num_heads=3, image_size=518, num_registers=num_registers,
        feed_forward="mlp" if kind == "mlp" else "swiglu",
    )  # fmt: skip
    ours = build_with_weights(config, convert(theirs.state_dict()), "timm").eval()
    for size in SIZES:
        images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            assert difference(all_tokens(ours(images)), theirs.forward_features(images)) < TOLERANCE
            inner = theirs.get_intermediate_layers(images, n=[0, 1], norm=True, return_prefix_tokens=True)
            for tokens, (patches, prefix) in zip(ours.forward_blocks(images, [0, 1]), inner, strict=True):
                assert difference(tokens.patches, patches) < TOLERANCE
                assert difference(torch.cat([tokens.cls[:, None], tokens.registers], 1), prefix) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "timm_name"),
    [
        pytest.param("dinov2_vits14", "vit_small_patch14_dinov2", marks=pytest.mark.long),
        ("dinov2_vits14_reg", "vit_small_patch14_reg4_dinov2"),
    ],
)
def test_the_released_small_architecture_is_equal_at_518(
    name: str, timm_name: str, randomize: Callable[..., None], difference: Callable[..., float]
) -> None:
    theirs = timm.create_model(timm_name, pretrained=False, num_classes=0).eval()
    randomize(theirs)
    ours = build_with_weights(VARIANTS[name].config(), convert(theirs.state_dict()), "timm").eval()
    images = torch.randn(1, 3, 518, 518, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert difference(all_tokens(ours(images)), theirs.forward_features(images)) < TOLERANCE


def test_a_position_embedding_that_timm_resized_fits() -> None:
    """`vit_small_patch14_dinov2` made for 224 px holds a grid of 16; our config follows it."""
    theirs = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, img_size=224)
    ours = build_with_weights(VARIANTS["dinov2_vits14"].config(), convert(theirs.state_dict()), "timm")
    assert ours.config.image_size == 224
    assert torch.equal(ours.pos_embed, theirs.pos_embed)
