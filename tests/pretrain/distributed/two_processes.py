"""Program that torchrun runs in the tests: `python -m torch.distributed.run ... two_processes.py FOLDER`."""

import json
import sys
from pathlib import Path

import torch

from dinomed.distributed import gather_objects, gather_rows, max_over_ranks, on_main, process_group, rank, world_size
from dinomed.errors import UsageError
from dinomed.pretrain.distributed.parallel import average_gradients
from dinomed.pretrain.losses.targets import sinkhorn_knopp


def operations() -> dict[str, object]:
    """Run each collective operation with values that differ between the ranks."""
    rows = torch.arange(6.0).reshape(3, 2) + 10 * rank()
    rows.requires_grad_()
    gathered = gather_rows(rows)
    # each rank weights all rows with its own factor: the gradient of a row is the sum of the factors
    (gathered.sum() * (1 + rank())).backward()

    def fail() -> None:
        raise UsageError("only rank 0 was asked")

    try:
        on_main(fail)
        message = "nothing"
    except UsageError as error:
        message = str(error)
    assert rows.grad is not None
    side = torch.nn.ModuleDict({name: torch.nn.Linear(2, 1, bias=False) for name in ("both", "one", "frozen")})
    side["frozen"].requires_grad_(False)
    side["both"].weight.grad = torch.tensor([[1.0, 2.0]]) * (1 + rank())
    if rank() == 1:  # on this rank only, such as for a head without images on rank 0
        side["one"].weight.grad = torch.tensor([[6.0, 8.0]])
    average_gradients(side)
    return {
        "averaged": {name: None if p.grad is None else p.grad.tolist() for name, p in side.named_parameters()},
        "gathered": gathered.tolist(),
        "gradient": rows.grad.tolist(),
        "max": max_over_ranks(rank() * 5, torch.device("cpu")),
        "objects": gather_objects(f"rank {rank()}"),
        "main": on_main(lambda: rank()),
        "error": message,
        "size": world_size(),
    }


def targets(temperature: float = 0.005) -> dict[str, object]:
    """Compute the targets of this rank's share of rows whose logits have different levels, under autocast."""
    logits = torch.linspace(-0.9, 0.9, 7)[:, None] + 0.1 * torch.rand(7, 12, generator=torch.Generator().manual_seed(0))
    shares = {"uneven": logits.split([2, 5]), "one": (logits[:0], logits)}
    with torch.autocast("cpu", torch.bfloat16):
        of_rank = {name: sinkhorn_knopp(parts[rank()].clone(), temperature).tolist() for name, parts in shares.items()}
    return {"logits": logits.tolist(), "temperature": temperature, **of_rank}


if __name__ == "__main__":
    with process_group(torch.device("cpu"), timeout_s=60):
        results = {**operations(), "targets": targets()}
        Path(sys.argv[1], f"{rank()}.json").write_text(json.dumps(results))
