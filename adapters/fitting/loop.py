"""The training loop of all heads: an optimiser, a validation score after each epoch, the best epoch kept, the last one
on disk until the end."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, cos, pi
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dinomed.adapters.fitting.config import FitConfig
from dinomed.adapters.fitting.resume import Resume, learned, pack, unpack
from dinomed.errors import DinomedError
from dinomed.io.files import to_json, write_text
from dinomed.log import logger
from dinomed.progress import bar

LOG_FILE, STATE_FOLDER = "log.jsonl", "state"
B = TypeVar("B")


@dataclass(frozen=True)
class Best:
    """The epoch that was kept (from 1), its score and its validation values."""

    epoch: int
    score: float
    values: dict[str, float]


@dataclass(frozen=True)
class Draw:
    """The examples of one batch (int64), and which pass over all of them it belongs to (from 0)."""

    indices: Tensor
    turn: int


@dataclass(frozen=True)
class Group:
    """Parameters with a peak learning rate of their own. `warmup`: the share of the fit in which it rises from 0.
    `clip`: the largest norm of their gradient."""

    parameters: Sequence[nn.Parameter]
    learning_rate: float
    warmup: float = 0.0
    clip: float | None = None


def run_epochs(
    model: nn.Module,
    config: FitConfig,
    *,
    count: int,
    batches: Callable[[Iterable[Draw]], Iterator[B]],
    batch_loss: Callable[[B], Tensor],
    validate: Callable[[], tuple[float, dict[str, float]]],
    seed: int,
    folder: Path,
    key: str,
    description: str,
    groups: Sequence[Group] = (),
) -> Best:
    """Train `model` in place; it ends with the weights of its best epoch.

    An interrupted fit of the same `key` in `folder` goes on after the last epoch that it has kept, and ends as it would
    have without the interruption: whatever is random in an epoch depends on `seed` and the epoch alone.

    Args:
        count: training examples.
        batches: draws -> what `batch_loss` takes, in the same order.
        batch_loss: the mean loss of a batch.
        validate: the score of this epoch, the higher the better, and values for the log.
        folder: ``log.jsonl`` is written there, and the state of the fit.
        groups: what learns, if not all that can at ``config.learning_rate``.

    Raises:
        DinomedError: the loss is no longer finite.
        KeyboardInterrupt, SystemExit: it was interrupted; a line says how it goes on.
    """
    groups = groups or [Group([p for p in model.parameters() if p.requires_grad], config.learning_rate)]
    trainer: _AdamW | _LBFGS
    trainer = _AdamW(groups, config, count, seed) if config.optimizer == "adamw" else _LBFGS(groups, config, count)
    run = _Run(model, trainer, Resume(folder / STATE_FOLDER, key))
    device = next(model.parameters()).device
    try:
        run.restore()
        with bar(description, config.epochs * trainer.steps, run.epoch * trainer.steps) as progress:
            while run.epoch < config.epochs and run.epoch - run.best.epoch < config.patience:
                epoch = run.epoch + 1
                model.train()
                losses = []
                with _random(seed, epoch, device):
                    for batch in batches(trainer.draws(epoch)):
                        losses.append(trainer.step(lambda batch=batch: batch_loss(batch)))  # type: ignore[misc]
                        progress.advance(note=_note(run.best))
                train_loss = sum(losses) / len(losses)
                if not train_loss < float("inf"):
                    raise DinomedError(f"the loss is {train_loss} in epoch {epoch}; lower fit.learning_rate")
                model.eval()
                with torch.no_grad():
                    score, values = validate()
                run.end_epoch(score, {"train_loss": train_loss, **values}, values)
                write_text(folder / LOG_FILE, "".join(to_json(row) + "\n" for row in run.log))
                run.keep()
    except (KeyboardInterrupt, SystemExit):
        again = f"goes on after epoch {run.kept}" if run.kept else "starts again (no epoch was kept yet)"
        logger.info(f"interrupted in epoch {run.epoch + 1}; the same command {again}")
        raise
    model.load_state_dict(run.weights, strict=False)
    model.eval()
    return run.best


class _Run:
    """Where a fit stands: the epochs done, the best of them with its weights, the rows of the log."""

    def __init__(self, model: nn.Module, trainer: "_AdamW | _LBFGS", resume: Resume) -> None:
        self.model, self.trainer, self.resume = model, trainer, resume
        self.epoch, self.kept, self.best = 0, 0, Best(0, float("-inf"), {})
        self.weights = learned(model)
        self.log: list[dict[str, Any]] = []
        self._began, self._before = monotonic(), 0.0

    def end_epoch(self, score: float, row: dict[str, float], values: dict[str, float]) -> None:
        self.epoch += 1
        if score > self.best.score:
            self.best, self.weights = Best(self.epoch, score, values), learned(self.model)
        self.log.append({"epoch": self.epoch, **row, "seconds": round(self._seconds, 2)})

    @property
    def _seconds(self) -> float:
        return self._before + monotonic() - self._began

    def keep(self) -> None:
        tensors = {f"last.{name}": tensor for name, tensor in learned(self.model).items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.weights.items()}
        best = self.best
        state = {
            "epoch": self.epoch,
            "best": [best.epoch, None if best.epoch == 0 else best.score, best.values],
            "log": self.log,
            "seconds": self._seconds,
            "trainer": pack(self.trainer.state(), "trainer", tensors),
        }
        if self.resume.save(self.epoch, tensors, state):
            self.kept = self.epoch

    def restore(self) -> None:
        found = self.resume.load()
        if found is None:
            return
        tensors, state = found
        for prefix in ("best.", "last."):
            part = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            self.model.load_state_dict(part, strict=False)
            if prefix == "best.":
                self.weights = learned(self.model)
        epoch, score, values = state["best"]
        self.best = Best(epoch, float("-inf") if score is None else score, values)
        self.epoch, self.kept, self.log, self._before = state["epoch"], state["epoch"], state["log"], state["seconds"]
        self.trainer.load(unpack(state["trainer"], tensors))
        logger.info(f"going on after epoch {self.epoch} of an interrupted training")


class _AdamW:
    """Shuffled batches, a cosine learning rate over all epochs. A small collection is passed over several times an
    epoch, for `min_steps` in all."""

    def __init__(self, groups: Sequence[Group], config: FitConfig, count: int, seed: int) -> None:
        self.count, self.size, self.seed = count, config.batch_size, seed
        # A last batch of one example would break batch statistics: it is left to the next pass's order.
        self.batches = max(1, count // self.size + (count % self.size > 1))
        self.passes = max(1, ceil(config.min_steps / (config.epochs * self.batches)))
        self.steps = self.passes * self.batches
        if self.passes > 1:
            logger.info(
                f"{self.passes} passes over {count} examples an epoch, for fit.min_steps={config.min_steps} in all"
            )
        self.total, self.done, self.groups = config.epochs * self.steps, 0, groups
        self.optimizer = torch.optim.AdamW(
            [{"params": list(group.parameters), "lr": group.learning_rate} for group in groups],
            weight_decay=config.weight_decay,
            fused=True,
        )
        device = next(iter(groups[0].parameters)).device.type
        self.scaler = torch.amp.GradScaler(device, enabled=config.precision == "float16")

    def draws(self, epoch: int) -> Iterator[Draw]:
        for turn in range((epoch - 1) * self.passes, epoch * self.passes):
            order = torch.from_numpy(np.random.default_rng([self.seed, turn]).permutation(self.count))
            for indices in order.split(self.size)[: self.batches]:
                yield Draw(indices, turn)

    def step(self, loss_of: Callable[[], Tensor]) -> float:
        loss = loss_of()
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self._schedule()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.done += 1
        return loss.item()

    def _schedule(self) -> None:
        share = self.done / self.total
        if any(group.clip for group in self.groups):
            self.scaler.unscale_(self.optimizer)
        for group, settings in zip(self.groups, self.optimizer.param_groups, strict=True):
            rise = min(1.0, share / group.warmup) if group.warmup else 1.0
            settings["lr"] = group.learning_rate * rise * (1 + cos(pi * share)) / 2
            if group.clip:
                nn.utils.clip_grad_norm_(group.parameters, group.clip)

    def state(self) -> dict[str, Any]:
        return {
            "done": self.done, "optimizer": self.optimizer.state_dict()["state"], "scaler": self.scaler.state_dict()
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        self.done = state["done"]
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state["optimizer"]})
        self.scaler.load_state_dict(state["scaler"])


class _LBFGS:
    """All examples at once, ten iterations an epoch, an L2 penalty on matrices: for convex heads on pooled features."""

    steps = 1

    def __init__(self, groups: Sequence[Group], config: FitConfig, count: int) -> None:
        parameters = [p for group in groups for p in group.parameters]
        self.everything, self.penalty = torch.arange(count), config.weight_decay
        self.matrices = [p for p in parameters if p.ndim > 1]
        self.optimizer = torch.optim.LBFGS(parameters, max_iter=10, history_size=20, line_search_fn="strong_wolfe")

    def draws(self, epoch: int) -> Iterator[Draw]:
        yield Draw(self.everything, epoch - 1)

    def step(self, loss_of: Callable[[], Tensor]) -> float:
        def closure() -> float:
            self.optimizer.zero_grad()
            loss = loss_of() + self.penalty * torch.stack([p.square().sum() for p in self.matrices]).sum()
            loss.backward()
            return loss.item()

        return float(self.optimizer.step(closure))

    def state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict()["state"]}

    def load(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state["optimizer"]})


@contextmanager
def _random(seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """What is drawn within (dropout) depends on `seed` and `epoch`, and leaves no trace without."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]))
        yield


def _note(best: Best) -> str:
    """A few words beside the bar."""
    if not best.values:
        return ""
    name, value = next(iter(best.values.items()))
    return f"best {name} {value:.3f} (epoch {best.epoch})"
