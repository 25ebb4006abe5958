"""The two feed-forward layers: sizes of the released models, and the gate on the right half."""

import pytest
import torch
from torch.nn.functional import silu

from dinomed.layers.feed_forward import MLP, SwiGLU


@pytest.mark.parametrize(("dim", "hidden"), [(384, 1024), (1536, 4096), (100, 272)])
def test_swiglu_has_two_thirds_of_the_width_rounded_up_to_eight(dim: int, hidden: int) -> None:
    layer = SwiGLU(dim, 4 * dim)
    assert layer.w12.weight.shape == (2 * hidden, dim)
    assert layer.w3.weight.shape == (dim, hidden)


def test_swiglu_gates_with_its_first_half() -> None:
    layer = SwiGLU(8, 32)
    x = torch.randn(5, 8)
    (w1, w2), (b1, b2) = layer.w12.weight.chunk(2), layer.w12.bias.chunk(2)
    expected = (silu(x @ w1.T + b1) * (x @ w2.T + b2)) @ layer.w3.weight.T + layer.w3.bias
    assert torch.allclose(layer(x), expected, atol=1e-6)  # float32 rounding, values below 1


def test_mlp_uses_the_exact_gelu() -> None:
    layer = MLP(1, 1)
    with torch.no_grad():
        for linear in (layer.fc1, layer.fc2):
            linear.weight.fill_(1.0)
            linear.bias.zero_()
    x = torch.tensor([[1.5]])
    expected = 1.5 * 0.5 * (1 + torch.erf(torch.tensor(1.5 / 2**0.5)))  # the tanh form differs by 2e-4 here
    assert abs(layer(x).item() - expected.item()) < 1e-6


@pytest.mark.parametrize("frozen", [False, True])
def test_recomputed_gelu_gives_the_gradients_of_the_plain_layers_and_keeps_less(frozen: bool) -> None:
    torch.manual_seed(0)
    mlp = MLP(8, 32).double()
    mlp.fc2.weight.requires_grad_(not frozen)
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mlp, (x,))
    plain = mlp.fc2(mlp.act(mlp.fc1(x)))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        ours = mlp(x)
    assert torch.equal(ours, plain)
    assert kept.count(torch.Size([3, 5, 32])) == 1
    wanted = [p for p in (x, *mlp.parameters()) if p.requires_grad]
    upstream = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, wanted, upstream), torch.autograd.grad(plain, wanted, upstream), strict=True
    ):
        torch.testing.assert_close(a, b)  # float64
