"""Training state in checkpoints: weights, optimiser and step, so that a resumed run continues exactly.

The state of the random generators is not saved: every step seeds them from the seed and the step (`seed_step`).
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

_DEPTH = 3  # number of the random stream of stochastic depth; `data/stream.py` has the streams of the data


def checkpoint_name(step: int) -> str:
    """Return the folder name of the checkpoint after `step` steps."""
    return f"step_{step:08d}"


def seed_step(seed: int, step: int) -> None:
    """Seed the random generator of a step (for stochastic depth) from the seed, the step and the rank."""
    torch.manual_seed(int(np.random.default_rng([seed, _DEPTH, step, rank()]).integers(2**63)))


def save_state(
    root: Path,
    step: int,
    model: DINOv2,
    optimizer: OptimizerDriver,
    scaler: torch.amp.GradScaler,
    extra: dict[str, Any],
) -> None:
    """Write a checkpoint after `step` finished steps. All ranks must call this function."""
    tensors = _add_prefix("model", model.state_dict()) | _add_prefix("optimizer", optimizer.state())
    write_checkpoint(
        root, checkpoint_name(step), tensors, {"step": step, "scaler": scaler.state_dict(), "extra": extra}
    )


def load_state(
    root: Path, model: DINOv2, optimizer: OptimizerDriver, scaler: torch.amp.GradScaler
) -> tuple[int, dict[str, Any]]:
    """Load the newest readable checkpoint in place; the number of processes that wrote it may differ.

    Returns:
        The number of finished steps (0 if there is no checkpoint), and the `extra` entries that were saved with it.

    Raises:
        DinomedError: all checkpoints are damaged, or the newest one lacks tensors of the model.
    """
    try:
        checkpoint = on_main(lambda: newest_checkpoint(root))
    except DamagedCheckpoints as error:
        raise DinomedError(f"{error}; start again with `overwrite=True`") from None
    if checkpoint is None:
        return 0, {}
    folder, state = checkpoint
    saved_tensors = describe_tensors(folder)
    moments = [name.removeprefix("optimizer.") for name in saved_tensors if name.startswith("optimizer.")]
    tensors = _add_prefix("model", model.state_dict()) | _add_prefix("optimizer", optimizer.make_state(moments))
    missing = sorted(tensors.keys() - set(saved_tensors))
    if missing:
        raise DinomedError(
            f"checkpoint {folder} lacks {len(missing)} tensors of this run, such as {missing[0]}; "
            "start again with `overwrite=True`"
        )
    fill(tensors, folder)
    if state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    return int(state["step"]), state["extra"]


def _add_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
