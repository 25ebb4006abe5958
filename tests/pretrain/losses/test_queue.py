"""The memory queue of Sinkhorn-Knopp and KoLeo."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.losses.koleo import koleo_loss
from dinomed.pretrain.losses.queue import MemoryQueue
from dinomed.pretrain.losses.targets import sinkhorn_knopp
from dinomed.pretrain.model.dinov2 import DINOv2
from dinomed.pretrain.trainer import pretrain

Tiny = Callable[..., PretrainConfig]


def test_the_newest_rows_are_kept_and_broken_ones_are_not() -> None:
    queue = MemoryQueue(3, 2)
    like = torch.empty(0, 2)
    assert queue.rows(like).shape == (0, 2)
    queue.add(torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
    queue.add(torch.tensor([[3.0, 3.0], [4.0, 4.0]]))
    assert queue.rows(like)[:, 0].tolist() == [3, 4, 1]
    queue.add(torch.tensor([[float("nan"), 0.0]]))
    assert queue.rows(like)[:, 0].tolist() == [3, 4, 1]
    queue.add(torch.arange(10.0).view(5, 2))  # more than fit
    assert queue.rows(like).tolist() == [[0, 1], [2, 3], [4, 5]]


def test_targets_and_koleo_use_the_rows_of_earlier_batches(tiny: Tiny) -> None:
    config = tiny(objective={"queue": 6})
    model = DINOv2(config.backbone, config.objective)
    generator = torch.Generator().manual_seed(0)
    earlier, now = (torch.randn(2, 4, 24, generator=generator) for _ in range(2))
    first = model.make_targets({"dino": earlier}, 0.1)["dino"]
    torch.testing.assert_close(first.flatten(0, 1), sinkhorn_knopp(earlier.flatten(0, 1), 0.1))  # nothing before
    second = model.make_targets({"dino": now}, 0.1)["dino"]
    together = sinkhorn_knopp(torch.cat([now, earlier]).flatten(0, 1), 0.1)
    torch.testing.assert_close(second.flatten(0, 1), together[:8])

    tokens = torch.randn(2, 2, 4, 16, generator=generator)
    plain = sum(koleo_loss(view) for view in tokens[0])
    torch.testing.assert_close(model.koleo_loss(tokens[0]), plain)
    now_tokens = tokens[1].clone().requires_grad_()
    expected = torch.zeros(())
    for view in range(2):
        unit = torch.nn.functional.normalize(torch.cat([tokens[1][view], tokens[0][view]]), dim=-1)
        distances = torch.cdist(unit[:4], unit, compute_mode="donot_use_mm_for_euclid_dist")
        distances[range(4), range(4)] = torch.inf
        expected = expected - distances.min(1).values.log().mean()
    loss = model.koleo_loss(now_tokens)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)  # the loss adds 1e-8 to distances
    loss.backward()
    assert now_tokens.grad is not None


def test_one_image_has_neighbours_in_the_queue() -> None:
    alone, neighbours = torch.randn(1, 8, requires_grad=True), torch.randn(5, 8)
    assert float(koleo_loss(alone).detach()) == 0
    assert float(koleo_loss(alone, neighbours).detach()) != 0


@pytest.mark.parametrize("micro_batch", [pytest.param(None, marks=pytest.mark.long), 3])
def test_a_run_with_a_queue_resumes_exactly(
    resumed_equals: Callable[..., bool], tiny: Tiny, pictures: Path, tmp_path: Path, micro_batch: int | None
) -> None:
    config = tiny(objective={"queue": 8}, run={"micro_batch": micro_batch})
    whole = pretrain(config, pictures, tmp_path / "whole", device="cpu")
    saved = load_file(next((whole.folder / "checkpoints").glob("step_*6")) / "tensors.safetensors")
    assert int(saved["model.queues.first.count"]) == 8
    assert int(saved["model.queues.logits.count"]) == 16  # both views
    assert resumed_equals(config, whole)
