"""Everything a run needs to go on exactly where it was: weights, optimiser, random states, position in the data."""

from pathlib import Path
from typing import Any

import torch

from dinomed.checkpoint import read_newest_checkpoint, write_checkpoint
from dinomed.pretrain.method import DINOv2
from dinomed.pretrain.optimizer import OptimizerDriver


def checkpoint_name(step: int) -> str:
    return f"step_{step:08d}"


def save_state(
    root: Path, step: int, model: DINOv2, optimizer: OptimizerDriver, scaler: torch.amp.GradScaler, device: torch.device
) -> None:
    """Write a checkpoint after `step` finished steps."""
    moments = {
        f"{index}.{name}": value
        for index, values in optimizer.adamw.state_dict()["state"].items()
        for name, value in values.items()
    }
    random = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(device)
    files = {"model": model.state_dict(), "optimizer": moments, "random": random}
    write_checkpoint(root, checkpoint_name(step), files, {"step": step, "scaler": scaler.state_dict()})


def load_state(
    root: Path, model: DINOv2, optimizer: OptimizerDriver, scaler: torch.amp.GradScaler, device: torch.device
) -> int:
    """Restore the newest readable checkpoint in place; returns the number of finished steps (0 if there is none)."""
    found = read_newest_checkpoint(root)
    if found is None:
        return 0
    files, state = found
    model.load_state_dict(files["model"])
    moments: dict[int, dict[str, Any]] = {}
    for key, value in files["optimizer"].items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = value
    groups = optimizer.adamw.state_dict()["param_groups"]  # set anew before every step
    optimizer.adamw.load_state_dict({"state": moments, "param_groups": groups})
    if state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(files["random"]["cpu"])
    if device.type == "cuda" and "cuda" in files["random"]:
        torch.cuda.set_rng_state(files["random"]["cuda"], device)
    return int(state["step"])
