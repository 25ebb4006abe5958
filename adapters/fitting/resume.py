"""State of a fit on disk, from which the same command resumes an interrupted fit.

After an epoch the last weights, the best weights, the optimiser and the log are written as a checkpoint, except when
writing would take more than a twentieth of the time. A state is used only for the same settings, data and backbone;
their hash is its key. It is removed when the bundle is written.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from dinomed.errors import DinomedError
from dinomed.io.checkpoint import newest_checkpoint, prune_checkpoints, read_whole, write_checkpoint
from dinomed.log import logger

STATE_FORMAT = 2
"""Number of the format of a state, part of its key; raise it when a value is added to a state or renamed."""
MAX_TIME_SHARE = 0.05
"""Largest share of the time of a fit for writing its state."""


class FitState:
    """State of a fit in `folder`; a state with another key is removed."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self._next_save = monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors and the other values of the newest complete state; None if the fit starts from the
        beginning."""
        try:
            checkpoint = newest_checkpoint(self.folder)
            if checkpoint is not None and checkpoint[1].get("key") == self.key:
                return read_whole(checkpoint[0]), checkpoint[1]["state"]
        except (DinomedError, KeyError, AttributeError) as error:
            logger.warning(f"the state of the interrupted training is damaged ({error}); training starts again")
        else:
            if checkpoint is not None:
                logger.info("the state of an unfinished training with other settings, data or backbone is removed")
        shutil.rmtree(self.folder, ignore_errors=True)
        return None

    def save(self, epoch: int, tensors: Mapping[str, Tensor], state: Any) -> bool:
        """Write the state of an epoch if it is time to; return whether it was written."""
        start = monotonic()
        if start < self._next_save:
            return False
        write_checkpoint(self.folder, f"step_{epoch:06d}", tensors, {"key": self.key, "state": state})
        prune_checkpoints(self.folder, keep=1)
        self._next_save = monotonic() + (monotonic() - start) * (1 / MAX_TIME_SHARE - 1)
        return True


def pack(tree: Any, prefix: str, tensors: dict[str, Tensor]) -> Any:
    """Return a tree of dicts and lists (the state of an optimiser) as JSON; add its tensors to `tensors`, by path.

    >>> tensors = {}
    >>> pack({0: {"step": torch.zeros(()), "t": 0.5}}, "opt", tensors), list(tensors)
    ({'0': {'step': {'tensor': 'opt.0.step'}, 't': 0.5}}, ['opt.0.step'])
    """
    if isinstance(tree, Tensor):
        tensors[prefix] = tree.detach().cpu().clone()
        return {"tensor": prefix}
    if isinstance(tree, dict):
        return {str(key): pack(value, f"{prefix}.{key}", tensors) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [pack(value, f"{prefix}.{index}", tensors) for index, value in enumerate(tree)]
    return tree


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the tree from which `pack` made `tree`; numeric keys become numbers again."""
    if isinstance(tree, dict):
        if tree.keys() == {"tensor"}:
            return tensors[tree["tensor"]]
        return {int(key) if key.isdecimal() else key: unpack(value, tensors) for key, value in tree.items()}
    return [unpack(value, tensors) for value in tree] if isinstance(tree, list) else tree


def copy_trainable(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return copies of the tensors that a fit changes: the state of the model without its frozen parameters."""
    state = model.state_dict(keep_vars=True)
    return {
        name: tensor.detach().clone()
        for name, tensor in state.items()
        if not isinstance(tensor, torch.nn.Parameter) or tensor.requires_grad
    }
