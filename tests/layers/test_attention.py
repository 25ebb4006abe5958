"""Packed attention: tokens attend only to their own image, with every back-end."""

import pytest
import torch
from torch.nn.functional import softmax

from dinomed.layers.attention import Attention, _block_diagonal, _one_group, _split, xformers_works

GROUPS = [(2, 5), (3, 2)]  # two images of five tokens, three of two
T = sum(B * N for B, N in GROUPS)


def test_packed_attention_equals_attention_with_a_block_diagonal_mask() -> None:
    """The oracle writes the softmax out, over all tokens at once, with -inf between images."""
    torch.manual_seed(0)
    layer = Attention(dim=8, num_heads=2)
    x = torch.randn(T, 8)
    q, k, v = layer.qkv(x).view(T, 3, 2, 4).permute(1, 2, 0, 3)  # each heads, tokens, 4
    image_of = torch.repeat_interleave(torch.arange(5), torch.tensor([5, 5, 2, 2, 2]))
    scores = (q @ k.transpose(1, 2) / 2.0).masked_fill(image_of[:, None] != image_of[None], float("-inf"))
    expected = layer.proj((softmax(scores, -1) @ v).transpose(0, 1).reshape(T, 8))
    assert torch.allclose(layer(x, GROUPS), expected, atol=1e-6)  # float32 rounding of values of order 1


def test_the_number_of_heads_must_divide_the_dimension() -> None:
    with pytest.raises(ValueError, match="10 is not divisible by 4 heads"):
        Attention(dim=10, num_heads=4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: xformers has no CPU kernel")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_xformers_equals_sdpa(dtype: torch.dtype) -> None:
    heads, dim = 3, 64
    if not xformers_works(dtype, dim):
        pytest.skip(f"xformers' block-diagonal attention does not run here in {dtype}")
    torch.manual_seed(0)
    qkv = torch.randn(T, 3, heads, dim, dtype=dtype, device="cuda")
    weight = torch.randn(T, heads * dim, dtype=dtype, device="cuda")
    outputs, gradients = [], []
    for backend in ("sdpa", "xformers"):
        x = qkv.clone().requires_grad_()
        if backend == "sdpa":
            out = torch.cat([_one_group(part, group) for part, group in _split(x, GROUPS)])
        else:
            out = _block_diagonal(x, GROUPS).reshape(T, heads * dim)
        (out * weight).sum().backward()
        outputs.append(out.float())
        gradients.append(x.grad.float())
    # Values of order 1 (outputs) and 10 (gradients), in types of 11 and 8 bits: a few units in the last place.
    tolerance = 8 * torch.finfo(dtype).eps
    assert torch.allclose(*outputs, atol=tolerance)
    assert torch.allclose(*gradients, atol=10 * tolerance)
