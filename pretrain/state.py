"""Everything a run needs to go on exactly where it was: weights, optimiser, position in the data.

Random numbers need no place here: those of a step are drawn from the seed and the step (`seed_step`).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinomed.distributed import on_main, rank
from dinomed.errors import DinomedError
from dinomed.io.checkpoint import DamagedCheckpoints, describe_tensors, fill, newest_checkpoint, write_checkpoint
from dinomed.pretrain.model.dinov2 import DINOv2
from dinomed.pretrain.optim.optimizer import OptimizerDriver

_DEPTH = 3  # a stream of random numbers of its own; the data's are in `data.py`


def checkpoint_name(step: int) -> str:
    return f"step_{step:08d}"


def seed_step(seed: int, step: int) -> None:
    """What a step draws (stochastic depth) depends on the seed, the step and the rank, and on nothing before it."""
    torch.manual_seed(int(np.random.default_rng([seed, _DEPTH, step, rank()]).integers(2**63)))


def save_state(
    root: Path,
    step: int,
    model: DINOv2,
    optimizer: OptimizerDriver,
    scaler: torch.amp.GradScaler,
    more: dict[str, Any],
) -> None:
    """Write a checkpoint after `step` finished steps; all ranks call it together."""
    tensors = _prefixed("model", model.state_dict()) | _prefixed("optimizer", optimizer.state())
    write_checkpoint(root, checkpoint_name(step), tensors, {"step": step, "scaler": scaler.state_dict(), "more": more})


def load_state(
    root: Path, model: DINOv2, optimizer: OptimizerDriver, scaler: torch.amp.GradScaler
) -> tuple[int, dict[str, Any]]:
    """Restore the newest readable checkpoint in place, whatever number of processes wrote it; returns the number of
    finished steps (0 if there is none) and the `more` that was saved with it."""
    try:
        found = on_main(lambda: newest_checkpoint(root))
    except DamagedCheckpoints as error:
        raise DinomedError(f"{error}; start anew with --overwrite") from None
    if found is None:
        return 0, {}
    folder, state = found
    there = describe_tensors(folder)
    moments = [name.removeprefix("optimizer.") for name in there if name.startswith("optimizer.")]
    tensors = _prefixed("model", model.state_dict()) | _prefixed("optimizer", optimizer.make_state(moments))
    missing = sorted(tensors.keys() - set(there))
    if missing:
        raise DinomedError(f"{folder} lacks {len(missing)} tensors of this run, such as {missing[0]}")
    fill(tensors, folder)
    if state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    return int(state["step"]), state["more"]


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
