"""The convolutional patch embedding: what a token reads, masked pixels that reach no token, and its sizes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm
from torch.utils.flop_counter import FlopCounterMode

from dinomed.backbones.config import ViTConfig
from dinomed.backbones.vit import VisionTransformer
from dinomed.layers.patch_embedding import ConvolutionalPatchEmbedding, hide_patches
from dinomed.pretrain.monitoring.cost_estimate import _embedding_layers

PATCH, DIM, SIDE = 8, 32, 4  # a grid of 4 x 4 patches of 8 px


def vit(**changes: object) -> VisionTransformer:
    torch.manual_seed(0)
    fields = {"embed_dim": DIM, "depth": 2, "num_heads": 2, "patch_size": PATCH, "image_size": 32, "layerscale": None}
    return VisionTransformer(ViTConfig.model_validate({**fields, "stem": "convolutional", **changes})).double().eval()


def reading(tokens: Callable[[Tensor], Tensor], images: Tensor, chosen: list[int]) -> Tensor:
    """Return which patches (bool, SIDE * SIDE) the chosen tokens of an image depend on, by their gradients."""
    pixels = images.clone().requires_grad_()
    weights = torch.randn(len(chosen), DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (tokens(pixels)[0, chosen] * weights).sum().backward()
    assert pixels.grad is not None
    patches = pixels.grad[0].abs().sum(0).unfold(0, PATCH, PATCH).unfold(1, PATCH, PATCH)
    return patches.sum((2, 3)).flatten() > 0


def test_it_equals_its_definition() -> None:
    """Three halvings of 8, 16 and 32 channels, written out with the functions of torch."""
    stem = vit().patch_embed
    images = x = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    weights = dict(stem.named_parameters())
    for index in range(3):
        x = conv2d(x, weights[f"convs.{index}.weight"], weights[f"convs.{index}.bias"], 2, 1)
        assert x.shape[1:] == (8 * 2**index, 32 // 2 ** (index + 1), 48 // 2 ** (index + 1))
        norm = weights[f"norms.{index}.weight"], weights[f"norms.{index}.bias"]
        x = gelu(layer_norm(x.movedim(1, 3), x.shape[1:2], *norm)).movedim(3, 1)
    tokens = torch.einsum("bchw,dc->bhwd", x, weights["proj.weight"][:, :, 0, 0]) + weights["proj.bias"]
    torch.testing.assert_close(stem(images), tokens.flatten(1, 2), rtol=1e-12, atol=1e-12)


def test_a_token_reads_its_patch_and_as_many_pixels_on_each_side() -> None:
    """Otherwise a map of the tokens is shifted against the image."""
    pixels = torch.randn(1, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    vit().patch_embed(pixels)[0, 5].sum().backward()  # second row, second column: pixels 8 to 15
    assert pixels.grad is not None
    for axis in (0, 1):
        read = pixels.grad[0].abs().sum(0).sum(axis).nonzero().flatten()
        assert read.tolist() == list(range(8 - 7, 16 + 7))


@pytest.mark.parametrize("way", ["masks", "visible"])
def test_no_token_depends_on_a_masked_pixel(way: str) -> None:
    """Also not the tokens after the attention; and each visible pixel still counts."""
    model, images = vit(), torch.randn(1, 3, 32, 32, dtype=torch.float64)
    hidden = torch.zeros(1, SIDE * SIDE, dtype=torch.bool)
    hidden[0, [5, 6, 9, 15]] = True
    given = (hidden, None) if way == "masks" else (None, ~hidden)
    count = 17 if way == "masks" else 13

    def tokens(pixels: Tensor) -> Tensor:
        output = model.forward_packed([pixels], [given[0]], [given[1]])[0]
        return torch.cat([output.cls[:, None], output.patches], dim=1)

    assert torch.equal(reading(tokens, images, list(range(count))), ~hidden[0])
    assert reading(model.patch_embed, images, [10])[hidden[0]].any()  # without hiding, a visible token reads them


def test_hidden_patches_are_zero_and_others_unchanged() -> None:
    images = torch.randn(2, 3, 16, 24)
    hidden = torch.tensor([[True, False, False, False, False, False], [False, False, False, False, False, True]])
    shown = hide_patches(images, hidden, PATCH)
    assert not shown[0, :, :8, :8].any()
    assert not shown[1, :, 8:, 16:].any()
    shown[0, :, :8, :8], shown[1, :, 8:, 16:] = images[0, :, :8, :8], images[1, :, 8:, 16:]
    assert torch.equal(shown, images)


def test_packed_and_separate_passes_are_equal() -> None:
    model, masks = vit(), torch.rand(2, 16, generator=torch.Generator().manual_seed(0)) < 0.4
    crops = [torch.randn(2, 3, 32, 32, dtype=torch.float64), torch.randn(3, 3, 16, 24, dtype=torch.float64)]
    packed = model.forward_packed(crops, [masks, None])
    for output, images, mask in zip(packed, crops, (masks, None), strict=True):
        torch.testing.assert_close(output.patches, model(images, mask).patches, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("patch", "channels"), [(2, 1), (8, 3), (16, 4)])
def test_the_estimate_counts_its_operations(patch: int, channels: int) -> None:
    config = ViTConfig(
        embed_dim=64, num_heads=2, patch_size=patch, image_size=4 * patch, in_channels=channels, stem="convolutional"
    )
    stem = ConvolutionalPatchEmbedding(patch, channels, 64)
    with FlopCounterMode(display=False) as counter:
        stem(torch.randn(1, channels, 2 * patch, 2 * patch))
    counted = 4 * 2 * sum(pixels * values * width for pixels, values, width in _embedding_layers(config))
    assert counter.get_total_flops() == counted


def test_wrong_images_and_sizes_are_refused() -> None:
    stem = vit().patch_embed
    with pytest.raises(ValueError, match="images have 1 channels"):
        stem(torch.zeros(1, 1, 32, 32), torch.zeros(1, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match="36x32 is not divisible"):
        stem(torch.zeros(1, 3, 36, 32), torch.zeros(1, 16, dtype=torch.bool))
    for changes, message in (
        ({"patch_size": 14, "image_size": 28}, "patch_size 14 is not a power of 2"),
        ({"patch_size": 1, "image_size": 8}, "patch_size 1 is not a power of 2"),
        ({"patch_size": 16, "embed_dim": 12}, "embed_dim 12 is not divisible by 8, half of the patch size"),
    ):
        with pytest.raises(ValueError, match=message):
            vit(**changes)
