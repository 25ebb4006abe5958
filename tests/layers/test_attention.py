"""Packed attention: tokens attend only to their own image, with every back-end."""

import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import softmax

from dinomed.layers.attention import (
    Attention,
    _block_diagonal,
    _one_group,
    _split,
    _try_xformers,
    prepare_for_compilation,
    xformers_works,
)

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


@pytest.fixture
def working_xformers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An xformers whose attention runs on a CPU, since the real one has no CPU kernel."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_bias: object) -> torch.Tensor:
        assert attn_bias == [8, 4]
        return softmax(q @ k.transpose(-1, -2), -1) @ v

    mask = SimpleNamespace(from_seqlens=lambda lengths, device: lengths)
    fmha = SimpleNamespace(memory_efficient_attention=attend, attn_bias=SimpleNamespace(BlockDiagonalMask=mask))
    monkeypatch.setitem(sys.modules, "xformers", SimpleNamespace(ops=SimpleNamespace(fmha=fmha)))
    monkeypatch.setitem(sys.modules, "xformers.ops", SimpleNamespace(fmha=fmha))
    _try_xformers.cache_clear()
    yield
    _try_xformers.cache_clear()


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_trial_of_xformers_depends_neither_on_gradients_nor_on_the_random_state(
    mode: type, working_xformers: None
) -> None:
    """Asked first under `no_grad`, as by a teacher, it once answered False for the rest of the run."""
    before = torch.get_rng_state()
    with mode():
        assert xformers_works(torch.float32, 4, "cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_compiled_graph_does_not_break_at_the_trial_of_xformers(working_xformers: None) -> None:
    def choose(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if xformers_works(x.dtype, 4, "cpu") else x - 1

    prepare_for_compilation()
    compiled = torch.compile(choose, backend="eager", fullgraph=True)
    assert torch.equal(compiled(torch.zeros(3)), torch.ones(3))


def test_the_backbone_is_loaded_without_the_compiler() -> None:
    """`torch._dynamo` takes seconds to import, in every command and every worker."""
    code = "import sys, dinomed.backbones.frozen; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
