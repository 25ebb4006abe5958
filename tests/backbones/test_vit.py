"""The ViT: packed and separate passes, any channels and sizes, the official state-dict keys."""

import pytest
import torch
from torch import Tensor

from dinomed.backbones.config import ViTConfig
from dinomed.backbones.variants import VARIANTS, build_vit
from dinomed.backbones.vit import Tokens, VisionTransformer
from dinomed.errors import UsageError
from dinomed.layers.rotary_position import rotate, rotation_table

BLOCK_KEYS = [
    "norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias", "ls1.gamma",
    "norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias", "ls2.gamma",
]  # fmt: skip


def tiny(**overrides: object) -> VisionTransformer:
    torch.manual_seed(0)
    fields: dict[str, object] = {"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 8, "image_size": 32}
    return VisionTransformer(ViTConfig.model_validate({**fields, "layerscale": 0.5, **overrides}))


def total(tokens: Tokens) -> Tensor:
    return tokens.cls.square().sum() + tokens.patches.mul(tokens.patches.roll(1, 1)).sum()


@pytest.mark.parametrize(("num_registers", "position"), [(0, "learned"), (4, "learned"), (4, "rope")])
def test_packed_and_separate_passes_have_equal_outputs_and_gradients(num_registers: int, position: str) -> None:
    vit = tiny(num_registers=num_registers, position=position)
    crops = [torch.randn(2, 3, 32, 32), torch.randn(3, 3, 16, 24)]
    masks = [torch.rand(2, 16) < 0.4, None]
    results = []
    for packed in (True, False):
        vit.zero_grad()
        if packed:
            outputs = vit.forward_packed(crops, masks)
        else:
            outputs = [vit(images, mask) for images, mask in zip(crops, masks, strict=True)]
        sum(total(tokens) for tokens in outputs).backward()
        results.append((outputs, {name: p.grad.clone() for name, p in vit.named_parameters() if p.grad is not None}))
    (packed_out, packed_grad), (out, grad) = results
    for a, b in zip(packed_out, out, strict=True):
        assert torch.allclose(a.cls, b.cls, atol=1e-6)  # the same sums, in matrices of another height
        assert torch.allclose(a.patches, b.patches, atol=1e-6)
    assert packed_grad.keys() == grad.keys()
    for name, value in grad.items():
        scale = value.abs().max().clamp(min=1)
        assert torch.allclose(packed_grad[name], value, atol=1e-5 * scale), name  # sums over all tokens, other order


def test_a_mask_replaces_the_patch_and_keeps_its_position() -> None:
    vit = tiny()
    torch.nn.init.normal_(vit.mask_token)
    images, mask = torch.randn(1, 3, 32, 32), torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 5] = True
    plain, masked = vit.embed(images), vit.embed(images, mask)
    assert torch.equal(masked[0, 6], vit.mask_token[0] + vit.pos_embed[0, 6])  # after the class token
    unmasked = [i for i in range(17) if i != 6]
    assert torch.equal(masked[0, unmasked], plain[0, unmasked])


def test_registers_have_no_position_and_stand_after_the_class_token() -> None:
    vit = tiny(num_registers=2)
    torch.nn.init.normal_(vit.register_tokens)
    x = vit.embed(torch.randn(1, 3, 32, 32))
    assert x.shape == (1, 1 + 2 + 16, 32)
    assert torch.equal(x[:, 1:3], vit.register_tokens)
    tokens = vit(torch.randn(2, 3, 32, 32))
    assert (tokens.cls.shape, tokens.registers.shape, tokens.patches.shape) == ((2, 32), (2, 2, 32), (2, 16, 32))


@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels_and_any_divisible_size(channels: int) -> None:
    vit = tiny(in_channels=channels)
    assert vit(torch.randn(1, channels, 40, 24)).patches.shape == (1, 15, 32)
    with pytest.raises(ValueError, match="images have 3 channels"):
        vit(torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match="36x32 is not divisible"):
        vit(torch.randn(1, channels, 36, 32))


def test_chosen_blocks_equal_those_of_the_full_pass() -> None:
    vit = tiny().eval()
    images = torch.randn(1, 3, 32, 32)
    last, first, again = vit.forward_blocks(images, [-1, 0, 2])
    assert torch.equal(last.patches, vit(images).patches)
    assert torch.equal(last.cls, again.cls)
    assert not torch.allclose(first.patches, last.patches, atol=1e-2)
    for blocks in ([3], [-4], []):
        with pytest.raises(ValueError, match="blocks 0 to 2"):
            vit.forward_blocks(images, blocks)


@pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg"])
def test_state_dict_has_the_official_keys(name: str) -> None:
    with torch.device("meta"):
        state = build_vit(name).state_dict()
    ends = ["patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token", "pos_embed", "mask_token"]
    ends += ["norm.weight", "norm.bias", *(["register_tokens"] if name.endswith("_reg") else [])]
    assert set(state) == {*ends, *(f"blocks.{i}.{key}" for i in range(12) for key in BLOCK_KEYS)}
    assert state["pos_embed"].shape == (1, 1 + 37 * 37, 384)
    assert state["mask_token"].shape == (1, 384)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("dinov2_vits14", 22.1), ("dinov2_vitb14", 86.6), ("dinov2_vitl14_reg", 304.4), ("dinov2_vitg14", 1136.5)],
)
def test_released_variants_have_the_published_size(name: str, millions: float) -> None:
    with torch.device("meta"):
        vit = build_vit(name)
    assert sum(p.numel() for p in vit.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_every_variant_is_a_valid_architecture() -> None:
    for name in VARIANTS:
        config = VARIANTS[name].config()
        registers = name.endswith("_reg")
        assert (config.num_registers == 4) == registers
        if name.startswith("dinov2") and not registers:
            assert (config.position_antialias, config.position_offset) == (False, 0.1)
        else:
            assert (config.position_antialias, config.position_offset) == (True, 0.0)
    assert build_vit("vit_micro_patch8", in_channels=1).config.in_channels == 1


def test_an_unknown_variant_suggests_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="unknown backbone 'dinov2_vits15'; did you mean 'dinov2_vits14'"):
        build_vit("dinov2_vits15")


def test_rotary_positions_tell_patches_apart_and_need_no_table() -> None:
    """Without positions the class token would be the same for patches in another order."""
    vit = tiny(position="rope", num_registers=2).eval()
    assert "pos_embed" not in vit.state_dict()
    images = torch.randn(1, 3, 32, 32)
    mirrored = images.flip(-1).unflatten(-1, (4, 8)).flip(-1).flatten(-2)  # the columns of patches in reverse
    with torch.no_grad():
        assert not torch.allclose(vit(images).cls, vit(mirrored).cls, atol=1e-4)
        assert vit(torch.randn(1, 3, 16, 40)).patches.shape == (1, 10, 32)
    with pytest.raises(ValueError, match="`visible` needs a learned position embedding"):
        vit.embed(images, visible=torch.ones(1, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match="heads of a multiple of 4 channels, not 6"):
        ViTConfig(embed_dim=12, num_heads=2, position="rope")


def test_a_rotation_keeps_lengths_and_depends_on_the_distance_alone() -> None:
    """The product of a rotated query and key depends on the difference of their positions (Su et al. 2021)."""
    table = rotation_table(6, 6, 1, 16, 100.0, torch.device("cpu"))
    qkv = torch.randn(16).expand(37, 3, 1, 16).clone()  # one vector in every place
    turned = rotate(qkv, [(1, 37)], [table])
    assert torch.allclose(turned.norm(dim=-1), qkv.norm(dim=-1), atol=1e-5)  # float32, of order 4
    assert torch.equal(turned[0], qkv[0])  # the class token
    assert torch.equal(turned[:, 2], qkv[:, 2])  # values
    q, k = turned[1:, 0, 0], turned[1:, 1, 0]
    product = (q @ k.T).view(6, 6, 6, 6)
    assert torch.allclose(product[0, 0, 2, 3], product[3, 1, 5, 4], atol=1e-4)
    assert not torch.allclose(product[0, 0, 2, 3], product[0, 0, 3, 2], atol=1e-3)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_recomputed_blocks_with_rotary_positions_have_the_same_gradients(rate: float) -> None:
    vit, gradients = tiny(position="rope", drop_path=rate).train(), []
    images = torch.randn(4, 3, 32, 32)
    for recompute in (False, True):
        vit.zero_grad()
        vit.checkpoint_activations = recompute
        torch.manual_seed(1)
        total(vit(images)).backward()
        gradients.append([p.grad.clone() for p in vit.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
