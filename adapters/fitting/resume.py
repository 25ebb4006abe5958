"""What a fit keeps on the disk while it runs, so that the same command goes on where it was cut off.

After an epoch the last and the best weights, the optimiser and the log are written as a checkpoint, unless the last one
is so fresh that writing would cost more than a twentieth of the time. It counts only for the same settings, data and
backbone, whose hash is its key; when the bundle is written it goes.
"""

import hashlib
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from dinomed.adapters.fitting.config import TrainConfig
from dinomed.adapters.fitting.data import Splits
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.errors import DinomedError
from dinomed.io.checkpoint import newest_checkpoint, prune_checkpoints, read_whole, write_checkpoint
from dinomed.io.files import to_json
from dinomed.log import logger

SHARE = 0.05
"""Of the time that a fit takes, at most, for writing its state."""


def fit_key(config: TrainConfig, splits: Splits, backbone: FrozenBackbone, targets: bytes = b"") -> str:
    """A hash of all that the outcome of a fit depends on: settings, the rows of train and val with all their columns,
    `targets` (what was read from masks or depth maps), backbone, kind of device, versions."""
    device = backbone.device.type
    parts = [config.model_dump(mode="json"), backbone.fingerprint, device, version("dinomed"), version("torch")]
    rows = [part.table.to_pydict() for part in (splits.train, splits.val)]
    return hashlib.sha256(to_json([parts, rows]).encode() + targets).hexdigest()


class Resume:
    """The state of a fit in `folder`; one of another key is removed."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self._free_from = monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest whole state: its tensors and the rest of it; None where a fit begins from the start."""
        try:
            found = newest_checkpoint(self.folder)
            if found is not None and found[1].get("key") == self.key:
                return read_whole(found[0]), found[1]["state"]
        except (DinomedError, KeyError, AttributeError) as error:
            logger.warning(f"the state of the interrupted training is damaged ({error}); it begins from the start")
        else:
            if found is not None:
                logger.info("an unfinished training with other settings, data or backbone is dropped")
        shutil.rmtree(self.folder, ignore_errors=True)
        return None

    def save(self, epoch: int, tensors: Mapping[str, Tensor], state: Any) -> bool:
        """Whether it was time to write."""
        began = monotonic()
        if began < self._free_from:
            return False
        write_checkpoint(self.folder, f"step_{epoch:06d}", tensors, {"key": self.key, "state": state})
        prune_checkpoints(self.folder, keep=1)
        self._free_from = monotonic() + (monotonic() - began) * (1 / SHARE - 1)
        return True


def pack(tree: Any, prefix: str, tensors: dict[str, Tensor]) -> Any:
    """A tree of dicts and lists (the state of an optimiser) as JSON; its tensors go into `tensors`, by their place.

    >>> found = {}
    >>> pack({0: {"step": torch.zeros(()), "t": 0.5}}, "opt", found), list(found)
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
    """The inverse of `pack`; keys that are numbers become numbers again."""
    if isinstance(tree, dict):
        if tree.keys() == {"tensor"}:
            return tensors[tree["tensor"]]
        return {int(key) if key.isdecimal() else key: unpack(value, tensors) for key, value in tree.items()}
    return [unpack(value, tensors) for value in tree] if isinstance(tree, list) else tree


def learned(model: torch.nn.Module) -> dict[str, Tensor]:
    """Copies of what a fit changes: the state without the parameters that do not learn."""
    state = model.state_dict(keep_vars=True)
    return {
        name: tensor.detach().clone()
        for name, tensor in state.items()
        if not isinstance(tensor, torch.nn.Parameter) or tensor.requires_grad
    }
