"""Optimisers of heads: AdamW on shuffled batches, L-BFGS on all examples at once, half precision, averaged weights."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from math import ceil, cos, pi
from time import process_time
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dinomed.adapters.fitting.config import FitConfig, TrainConfig
from dinomed.adapters.fitting.resume import copy_trainable
from dinomed.errors import UsageError
from dinomed.features.compute import Features
from dinomed.log import logger

C = TypeVar("C", bound=TrainConfig)
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class BatchIndices:
    """Indices of the examples of one batch (int64), and the pass over all examples to which it belongs (from 0)."""

    indices: Tensor
    pass_index: int


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with their own peak learning rate.

    `warmup` is the share of the fit in which the rate rises from 0. `clip` is the largest norm of their gradient.
    """

    parameters: Sequence[nn.Parameter]
    learning_rate: float
    warmup: float = 0.0
    clip: float | None = None


def count_batches(count: int, size: int) -> int:
    """Return the batches of `size` of a pass over `count` examples.

    A last batch of one example breaks batch statistics, so it is left out.
    """
    return max(1, count // size + (count % size > 1))


def count_passes(config: FitConfig, batches: int) -> int:
    """Return the passes of an epoch, so that a fit has `min_steps`; `batches` are those of a pass. With `seconds` the
    time ends an epoch, and the number is 1."""
    return 1 if config.seconds else max(1, ceil(config.min_steps / (config.epochs * batches)))


class BatchedAdamW:
    """AdamW on shuffled batches with a cosine learning rate over all epochs.

    An epoch has several passes over a small collection, so that the fit has at least `min_steps` steps. With `seconds`
    the time ends an epoch, after one step at least, and the fit; `progress` is then the share of the time.

    With `grids` (N, 2) a batch has examples of one grid, and the batches of all grids are shuffled.
    """

    def __init__(
        self, groups: Sequence[ParameterGroup], config: FitConfig, count: int, seed: int,
        grids: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.size, self.seed, self.members = config.batch_size, seed, [np.arange(count)]
        if grids is not None:
            kinds = np.unique(grids, axis=0, return_inverse=True)[1].ravel()
            self.members = [np.flatnonzero(kinds == kind) for kind in range(kinds.max() + 1)]
        self.batches = sum(count_batches(len(members), self.size) for members in self.members)
        self.passes = count_passes(config, self.batches)
        self.steps = self.passes * self.batches
        if self.passes > 1:
            logger.info(
                f"{self.passes} passes over {count} examples an epoch, for fit.min_steps={config.min_steps} in all"
            )
        self.total, self.done, self.groups = config.epochs * self.steps, 0, groups
        self.epochs, self.seconds, self._earlier, self._start = config.epochs, config.seconds, 0.0, process_time()
        self.passes_begun = 0
        self.optimizer = torch.optim.AdamW(
            [{"params": list(group.parameters), "lr": group.learning_rate} for group in groups],
            weight_decay=config.weight_decay,
            fused=True,
        )
        device = next(iter(groups[0].parameters)).device.type
        self.scaler = torch.amp.GradScaler(device, enabled=config.precision == "float16")

    def batch_indices(self, epoch: int) -> Iterator[BatchIndices]:
        """Yield the batches of an epoch (from 1). The order depends only on the seed and the pass."""
        passes = range((epoch - 1) * self.passes, epoch * self.passes)
        for pass_index in count(self.passes_begun) if self.seconds else passes:
            self.passes_begun = pass_index + 1
            rng, batches = np.random.default_rng([self.seed, pass_index]), list[Tensor]()
            for members in self.members:
                order = torch.from_numpy(members[rng.permutation(len(members))])
                if len(order) == 1 and len(self.members) > 1:
                    order = order.repeat(2)  # the only example of its grid; see `count_batches`
                batches += order.split(self.size)[: count_batches(len(members), self.size)]
            if len(self.members) > 1:
                batches = [batches[place] for place in rng.permutation(len(batches))]
            for indices in batches:
                yield BatchIndices(indices, pass_index)
                if self.epoch_time_is_spent(epoch):
                    return

    def epoch_time_is_spent(self, epoch: int) -> bool:
        """Return whether the time of an epoch (from 1) is spent; False without `seconds`.

        Batches that are loaded in advance were drawn before that, so who trains on them asks after each step.
        """
        return self.seconds is not None and self._spent() >= self.seconds * epoch / self.epochs

    def _spent(self) -> float:
        """Return the processor seconds since the start of the fit."""
        return self._earlier + process_time() - self._start

    @property
    def progress(self) -> float:
        """Share of the fit that is done, 0 to 1."""
        share = self._spent() / self.seconds if self.seconds else self.done / self.total
        return min(share, 1.0)

    def step(self, compute_loss: Callable[[], Tensor]) -> float:
        """Do one optimisation step and return the loss before it."""
        loss = compute_loss()
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self._set_rates_and_clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.done += 1
        return loss.item()

    def _set_rates_and_clip(self) -> None:
        progress = self.progress
        if any(group.clip for group in self.groups):
            self.scaler.unscale_(self.optimizer)
        for group, settings in zip(self.groups, self.optimizer.param_groups, strict=True):
            warmup = min(1.0, progress / group.warmup) if group.warmup else 1.0
            settings["lr"] = group.learning_rate * warmup * (1 + cos(pi * progress)) / 2
            if group.clip:
                nn.utils.clip_grad_norm_(group.parameters, group.clip)

    def state(self) -> dict[str, Any]:
        """Return the state from which `load` continues."""
        return {
            "done": self.done, "passes": self.passes_begun, "spent": self._spent(),
            "optimizer": self.optimizer.state_dict()["state"], "scaler": self.scaler.state_dict(),
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state` returned."""
        self.done, self.passes_begun = state["done"], state["passes"]
        self._earlier, self._start = state["spent"], process_time()
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state["optimizer"]})
        self.scaler.load_state_dict(state["scaler"])


class FullBatchLBFGS:
    """L-BFGS on all examples, ten iterations an epoch, with an L2 penalty on matrices; for convex heads."""

    steps, progress = 1, 0.0  # it ends by the number of epochs or by patience

    def __init__(self, groups: Sequence[ParameterGroup], config: FitConfig, count: int) -> None:
        parameters = [p for group in groups for p in group.parameters]
        self.all_indices, self.penalty, self.done = torch.arange(count), config.weight_decay, 0
        self.matrices = [p for p in parameters if p.ndim > 1]
        self.optimizer = torch.optim.LBFGS(parameters, max_iter=10, history_size=20, line_search_fn="strong_wolfe")

    def batch_indices(self, epoch: int) -> Iterator[BatchIndices]:
        """Yield the only batch of an epoch (from 1)."""
        yield BatchIndices(self.all_indices, epoch - 1)

    def epoch_time_is_spent(self, epoch: int) -> bool:
        """Return False: no time ends the fit."""
        return False

    def step(self, compute_loss: Callable[[], Tensor]) -> float:
        """Do ten iterations and return the loss, with the penalty, before them."""

        def closure() -> float:
            self.optimizer.zero_grad()
            loss = compute_loss() + self.penalty * torch.stack([p.square().sum() for p in self.matrices]).sum()
            loss.backward()
            return loss.item()

        self.done += 1
        return float(self.optimizer.step(closure))

    def state(self) -> dict[str, Any]:
        """Return the state from which `load` continues."""
        return {"done": self.done, "optimizer": self.optimizer.state_dict()["state"]}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state` returned."""
        self.done = state["done"]
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state["optimizer"]})


def check_precision(config: FitConfig, device: torch.device) -> None:
    """Raise a `UsageError` for half precision on a device where it would only be slower."""
    kind = config.precision
    if kind not in HALF or device.type == "cuda" or (kind == "bfloat16" and computes_bfloat16(device)):
        return
    needed = "CUDA or a processor with AMX" if kind == "bfloat16" else "CUDA"
    raise UsageError(f"fit.precision {kind} needs {needed}, the device is {device.type}; use auto or float32")


def computes_bfloat16(device: torch.device) -> bool:
    """Return whether products in bfloat16 are faster than in float32: GPUs since Ampere, processors with AMX.

    On a processor with neither AMX nor AVX512-BF16 they take five times as long; AVX512-BF16 alone was not measured.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()  # torch has no public function for it


def resolve_precision(config: C, device: torch.device) -> C:
    """Return the settings of a training with the precision that `auto` means on this device."""
    fit = config.fit
    if fit.precision != "auto":
        return config
    half = fit.optimizer == "adamw" and computes_bfloat16(device)
    precision = "bfloat16" if half else "float32"
    return config.model_copy(update={"fit": fit.model_copy(update={"precision": precision})})


def half_precision(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Return an autocast context for half precision, else a context without effect."""
    if precision not in HALF:
        return nullcontext()
    autocast: AbstractContextManager[None] = torch.autocast(device.type, HALF[precision])
    return autocast


def in_precision(forward: Callable[[Features], Tensor], precision: str, device: torch.device) -> Callable[..., Tensor]:
    """Return `forward` as a function that computes in `half_precision` and returns float32."""

    def run(features: Features) -> Tensor:
        with half_precision(precision, device):
            return forward(features).float()

    return run


WARM_UP = 10
"""In step t the decay is at most (t + 1) / (t + `WARM_UP`), so that the initial weights have little weight soon."""


class WeightAverage:
    """Exponential moving average of the tensors that a fit changes, batch statistics included.

    The last steps of a short training on few images move the weights more than they improve them; their average varies
    less (Tarvainen and Valpola 2017, arXiv 1703.01780, as in `torch.optim.swa_utils`).

    Args:
        model: the module that is trained.
        decay: weight of the average of the step before, in [0, 1); 0 for the weights themselves.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.steps = model, decay, 0
        self.tensors: dict[str, Tensor] = copy_trainable(model) if decay else {}

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after a step."""
        if not self.decay:
            return
        self.steps += 1
        rate = 1 - min(self.decay, (self.steps + 1) / (self.steps + WARM_UP))
        state = self.model.state_dict()
        real = [name for name, tensor in self.tensors.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.tensors[name] for name in real], [state[name] for name in real], rate)
        for name in self.tensors.keys() - set(real):  # counters of batches
            self.tensors[name].copy_(state[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Apply the averaged weights to the model inside the context."""
        if not self.decay:
            yield
            return
        trained = copy_trainable(self.model)
        self.model.load_state_dict(self.tensors, strict=False)
        try:
            yield
        finally:
            self.model.load_state_dict(trained, strict=False)

    def load(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Continue from the tensors and the number of steps of an interrupted fit."""
        self.steps = steps
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
