"""A batch in slices gives the gradients of the whole batch."""

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from dinomed.datasets.manifest import read_manifest
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.data.stream import Collate, CropStream, RawBatch
from dinomed.pretrain.model.accumulation import forward_backward
from dinomed.pretrain.model.dinov2 import DINOv2, ViewBatch
from dinomed.pretrain.trainer import pretrain

Tiny = Callable[..., PretrainConfig]


@pytest.fixture
def raw(tiny: Tiny, pictures: Path) -> RawBatch:
    """Seven images, cropped and masked."""
    config, manifest = tiny(), read_manifest(pictures)
    paths, names = [str(manifest.path(i)) for i in range(len(manifest))], manifest.column("image")
    stream = CropStream(paths, names, config.crops, 3, seed=0)
    return Collate(config.masks, (4, 4), 0)([stream[i] for i in range(7)])


def to_batch(raw: RawBatch) -> ViewBatch:
    views, local = (x.permute(0, 3, 1, 2).double() / 255 - 0.5 for x in (raw.globals, raw.locals))
    return ViewBatch(views, local, raw.masks, raw.masked, raw.mask_weights.double())


def gradients(
    config: PretrainConfig, slices: list[RawBatch]
) -> tuple[dict[str, float], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return losses, the student's gradients, and the centres, in float64 to compare only the arithmetic."""
    torch.manual_seed(0)
    model = DINOv2(config.backbone, config.objective).double().train()
    model.centers.float()  # kept in float32, whatever the weights are
    loads = [partial(to_batch, part) for part in slices]
    losses = forward_backward(model, loads, 0.04, contextlib.nullcontext, torch.Tensor.backward)
    student_gradients = {name: p.grad for name, p in model.student.named_parameters() if p.grad is not None}
    values = {name: float(value.detach()) for name, value in {"total": losses.total, **losses.terms}.items()}
    return values, student_gradients, dict(model.centers.named_buffers())


@pytest.mark.parametrize(
    "objective",
    [
        {},
        {"targets": "centering"},
        {"koleo_views": "first"},
        {"koleo_weight": 0},
        {"dino_weight": 0},
        {"dino_weight": 0, "ibot_weight": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [1, 3, 4])
def test_slices_give_the_gradients_of_the_whole_batch(
    tiny: Tiny, raw: RawBatch, objective: dict[str, object], size: int
) -> None:
    config = tiny(objective=objective, backbone={"drop_path": 0})
    values, wanted, centers = gradients(config, [raw])
    sliced, sliced_gradients, sliced_centers = gradients(config, raw.split(size))
    # float64: what is left is the order of sums
    assert sliced == pytest.approx(values, rel=1e-6)
    assert sliced_gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        # losses are computed in float32 on purpose, also from float64 scores
        torch.testing.assert_close(
            sliced_gradients[name], gradient, rtol=1e-4, atol=1e-6 * float(gradient.abs().max()) + 1e-9
        )
    torch.testing.assert_close(sliced_centers, centers)


def test_plain_accumulation_gives_other_gradients(tiny: Tiny, raw: RawBatch) -> None:
    """Plain accumulation is the mean of the gradients of the slices."""
    config = tiny(backbone={"drop_path": 0})
    _, wanted, _ = gradients(config, [raw])
    alone = [gradients(config, [part])[1] for part in raw.split(4)]
    name = "backbone.blocks.0.attn.qkv.weight"
    plain = (4 * alone[0][name] + 3 * alone[1][name]) / 7
    assert (plain - wanted[name]).norm() > 0.05 * wanted[name].norm()


def test_koleo_uses_the_stochastic_depth_of_the_second_forward_pass(tiny: Tiny, raw: RawBatch) -> None:
    """Both forward passes must drop the same paths; else the KoLeo gradient belongs to other tokens."""
    config = tiny(objective={"dino_weight": 0, "ibot_weight": 0}, backbone={"drop_path": 0.5})
    torch.manual_seed(0)
    model = DINOv2(config.backbone, config.objective).double().train()
    seen: list[torch.Tensor] = []
    backbone = model.student["backbone"]
    backbone.norm.register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach()))
    loads = [partial(to_batch, part) for part in raw.split(4)]
    forward_backward(model, loads, 0.04, contextlib.nullcontext, torch.Tensor.backward)
    without_graph, with_graph = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert len(without_graph) == 4  # global and local views of two slices
    assert all(torch.equal(a, b) for a, b in zip(without_graph, with_graph, strict=True))


def test_slices_hold_every_view_mask_and_name_once(raw: RawBatch) -> None:
    parts = raw.split(3)
    assert [len(part.names) for part in parts] == [3, 3, 1]
    assert [name for part in parts for name in part.names] == raw.names
    for view in range(2):
        whole = raw.globals[view * 7 : (view + 1) * 7]
        rows = [part.globals[view * len(part.names) : (view + 1) * len(part.names)] for part in parts]
        assert torch.equal(torch.cat(rows), whole)
    assert sum(len(part.masked) for part in parts) == len(raw.masked)
    assert sum(float(part.mask_weights.sum()) for part in parts) == pytest.approx(float(raw.mask_weights.sum()))
    assert raw.split(None) == [raw]
    assert raw.split(7) == [raw]


def test_a_run_in_slices_equals_a_run_with_whole_batches(tiny: Tiny, pictures: Path, tmp_path: Path) -> None:
    # Without KoLeo, whose logarithm magnifies rounding until runs part; its slices are compared above, in float64.
    changes = {"backbone": {"drop_path": 0.0}, "objective": {"koleo_weight": 0}}
    whole = pretrain(tiny(**changes), pictures, tmp_path / "whole", device="cpu")
    sliced = pretrain(tiny(**changes, run={"micro_batch": 3}), pictures, tmp_path / "sliced", device="cpu")
    # float32: other batch shapes, other order of sums, over six steps
    assert sliced.losses == pytest.approx(whole.losses, rel=1e-3)
