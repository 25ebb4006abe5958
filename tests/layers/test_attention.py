"""Packed attention: tokens attend only to their own image, with every back-end."""

import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import softmax

from dinomed.errors import UsageError
from dinomed.layers import packed_attention
from dinomed.layers.attention import Attention
from dinomed.layers.packed_attention import (
    KERNEL_VARIABLE,
    KERNELS,
    attend,
    choose_kernel,
    kernel_works,
    prepare_for_compilation,
)

GROUPS = [(2, 5), (3, 2)]  # two images of five tokens, three of two
T = sum(B * N for B, N in GROUPS)
CACHED = (
    kernel_works,
    packed_attention._choose_kernel,
    packed_attention._block_diagonal_mask,
    packed_attention._starts,
)


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
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: these kernels have no CPU kernel")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kernel", ["xformers", "varlen"])
def test_a_kernel_equals_sdpa(kernel: str, dtype: torch.dtype) -> None:
    heads, dim = 3, 64
    if not kernel_works(kernel, dtype, dim, "cuda"):
        pytest.skip(f"{kernel} does not run here in {dtype}")
    torch.manual_seed(0)
    qkv = torch.randn(T, 3, heads, dim, dtype=dtype, device="cuda")
    weight = torch.randn(T, heads, dim, dtype=dtype, device="cuda")
    outputs, gradients = [], []
    for name in ("sdpa", kernel):
        x = qkv.clone().requires_grad_()
        out = KERNELS[name](x, GROUPS).reshape(T, heads, dim)
        (out * weight).sum().backward()
        outputs.append(out.float())
        gradients.append(x.grad.float())
    # Values of order 1 (outputs) and 10 (gradients), in types of 11 and 8 bits: a few units in the last place.
    tolerance = 8 * torch.finfo(dtype).eps
    assert torch.allclose(*outputs, atol=tolerance)
    assert torch.allclose(*gradients, atol=10 * tolerance)


def masked_softmax(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Attention of each sequence to itself, each (T, H, D)."""
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    scores = torch.einsum("thd,shd->hts", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(sequence[:, None] != sequence[None], float("-inf"))
    return torch.einsum("hts,shd->thd", softmax(scores, -1), v)


@pytest.fixture
def kernels_for_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stand-ins for xformers and varlen with their signatures, since the real ones have no CPU kernel."""

    def memory_efficient(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_bias: list[int]) -> torch.Tensor:
        return masked_softmax(q[0], k[0], v[0], attn_bias)[None]

    def varlen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor, starts_k: torch.Tensor,
               longest: int, longest_k: int) -> torch.Tensor:  # fmt: skip
        lengths = starts.diff().tolist()
        assert not starts.is_inference()  # the real kernel keeps it for its backward pass
        assert starts.dtype == torch.int32
        assert starts[0] == 0
        assert longest == longest_k == max(lengths)
        assert torch.equal(starts, starts_k)
        return masked_softmax(q, k, v, lengths)

    def from_seqlens(lengths: list[int], device: torch.device) -> list[int]:
        assert not torch.is_inference_mode_enabled()  # the mask is kept for later backward passes
        return lengths

    mask = SimpleNamespace(from_seqlens=from_seqlens)
    fmha = SimpleNamespace(
        memory_efficient_attention=memory_efficient, attn_bias=SimpleNamespace(BlockDiagonalMask=mask)
    )
    monkeypatch.setitem(sys.modules, "xformers", SimpleNamespace(ops=SimpleNamespace(fmha=fmha)))
    monkeypatch.setitem(sys.modules, "xformers.ops", SimpleNamespace(fmha=fmha))
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", SimpleNamespace(varlen_attn=varlen))
    forget_choices()
    yield
    forget_choices()


def forget_choices() -> None:
    for function in CACHED:
        function.cache_clear()


@pytest.mark.parametrize("kernel", ["xformers", "varlen"])
def test_the_variable_chooses_a_kernel_that_gets_the_right_sequences(
    kernel: str, kernels_for_cpu: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dinomed")
    torch.manual_seed(0)
    qkv = torch.randn(T, 3, 2, 4)
    expected = attend(qkv, GROUPS)
    monkeypatch.setenv(KERNEL_VARIABLE, kernel)
    with torch.inference_mode():
        attend(qkv, GROUPS)
    x = qkv.clone().requires_grad_()
    out = attend(x, GROUPS)
    out.sum().backward()
    assert torch.allclose(out, expected, atol=1e-6)  # float32 rounding of values of order 1
    assert caplog.messages.count(f"kernel of packed attention: {kernel}") == 1


def test_the_choice_is_that_of_the_variable_or_the_first_kernel_that_works(
    kernels_for_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KERNEL_VARIABLE, raising=False)
    works = {"varlen", "sdpa"}
    monkeypatch.setattr(packed_attention, "kernel_works", lambda name, *_: name in works)
    assert choose_kernel(torch.bfloat16, 64, "cuda") == "varlen"
    assert choose_kernel(torch.bfloat16, 64, "cpu") == "sdpa"
    works |= {"xformers"}
    assert choose_kernel(torch.float16, 64, "cuda") == "xformers"
    monkeypatch.setenv(KERNEL_VARIABLE, "sdpa")
    assert choose_kernel(torch.float16, 64, "cuda") == "sdpa"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flash", "DINOMED_ATTENTION=flash: choose auto, sdpa, xformers, varlen"),
        ("varlen", "DINOMED_ATTENTION=varlen does not work on cpu in float32; choose auto or sdpa"),
        ("xformers", "DINOMED_ATTENTION=xformers does not work on cpu in float32; choose auto or sdpa"),
    ],
)
def test_a_kernel_that_does_not_exist_or_work_is_refused(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KERNEL_VARIABLE, name)
    with pytest.raises(UsageError) as refused:
        Attention(dim=8, num_heads=2)(torch.zeros(T, 8), GROUPS)
    assert str(refused.value) == message


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_trial_of_a_kernel_depends_neither_on_gradients_nor_on_the_random_state(
    mode: type, kernels_for_cpu: None
) -> None:
    """Asked first under `no_grad`, as by a teacher, it once answered False for the rest of the run."""
    before = torch.get_rng_state()
    with mode():
        assert kernel_works("xformers", torch.float32, 4, "cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_compiled_graph_does_not_break_at_the_choice(kernels_for_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNEL_VARIABLE, "xformers")

    def choose(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if choose_kernel(x.dtype, 4, "cpu") == "xformers" else x - 1

    prepare_for_compilation()
    compiled = torch.compile(choose, backend="eager", fullgraph=True)
    assert torch.equal(compiled(torch.zeros(3)), torch.ones(3))


def test_the_backbone_is_loaded_without_the_compiler() -> None:
    """`torch._dynamo` takes seconds to import, in every command and every worker."""
    code = "import sys, dinomed.backbones.frozen; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
