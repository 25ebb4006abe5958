"""Training loop of all heads: epochs with validation, the best epoch kept, the state on disk for resuming."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dinomed.adapters.fitting.config import FitConfig
from dinomed.adapters.fitting.optimizers import (
    BatchedAdamW,
    BatchIndices,
    FullBatchLBFGS,
    ParameterGroup,
    WeightAverage,
)
from dinomed.adapters.fitting.resume import FitState, copy_trainable, pack, unpack
from dinomed.errors import DinomedError
from dinomed.io.files import to_json, write_text
from dinomed.log import logger
from dinomed.loggers.group import LoggerGroup
from dinomed.loggers.logger import LoggedRun
from dinomed.progress import Bar, bar

LOG_FILE, STATE_FOLDER = "log.jsonl", "state"
REFIT_LOG_FILE = "log_refit.jsonl"
"""Log of a second training, on train and val, beside that of the first one."""
B = TypeVar("B")


@dataclass(frozen=True)
class BestEpoch:
    """The epoch that was kept (from 1; 0 for none), its validation score and its validation values.

    With `keep_last` of `run_epochs` it is the last epoch.
    """

    epoch: int
    score: float
    values: dict[str, float]


def run_epochs(
    model: nn.Module,
    config: FitConfig,
    *,
    count: int,
    batches: Callable[[Iterable[BatchIndices]], Iterator[B]],
    batch_loss: Callable[[B], Tensor],
    validate: Callable[[], tuple[float, dict[str, float]]],
    seed: int,
    folder: Path,
    key: str,
    description: str,
    groups: Sequence[ParameterGroup] = (),
    keep_last: bool = False,
    grids: np.ndarray | None = None,
    name: str = "head",
    parameters: Mapping[str, Any] | None = None,
) -> BestEpoch:
    """Train `model` in place; at the end it has the weights of its best epoch, or with `keep_last` of its last.

    With ``config.average`` the weights of an epoch are their moving average (`WeightAverage`), also for its validation.

    An interrupted fit with the same `key` in `folder` is resumed after its last saved epoch and ends with the same
    result: all random numbers of an epoch depend only on `seed` and the epoch.

    Args:
        count: number of training examples.
        batches: function from batch indices to the inputs of `batch_loss`, in the same order.
        batch_loss: mean loss of a batch.
        validate: score of the epoch (higher is better), and values for the log.
        folder: where ``log.jsonl``, the files of the loggers and the state of the fit are written.
        key: of `dinomed.adapters.fitting.head_fit.fit_key`.
        groups: parameters to train; by default all trainable ones at ``config.learning_rate``.
        grids: rows and columns of patches of each example, (N, 2), if a batch must have examples of one grid.
        name: title of the fit for the loggers.
        parameters: settings for the loggers.

    Raises:
        DinomedError: the loss is not finite.
        KeyboardInterrupt, SystemExit: the fit was interrupted; a message says how it is resumed.
    """
    learned = [p for p in model.parameters() if p.requires_grad]
    groups = groups or [ParameterGroup(learned, config.learning_rate, config.warmup)]
    optimizer: BatchedAdamW | FullBatchLBFGS
    if config.optimizer == "adamw":
        optimizer = BatchedAdamW(groups, config, count, seed, grids)
    else:
        optimizer = FullBatchLBFGS(groups, config, count)
    average = WeightAverage(model, config.average if config.optimizer == "adamw" else 0.0)
    fit = _Fit(model, optimizer, FitState(folder / STATE_FOLDER, key), keep_last, average)
    device = next(model.parameters()).device
    loggers: LoggerGroup | None = None
    try:
        fit.restore()
        fit.write_log(folder)  # the loop below writes no log if the last epoch is saved already
        run = LoggedRun(folder, name, parameters or {}, fit.epoch)
        loggers = LoggerGroup(config.loggers, run, [(row["epoch"], row) for row in fit.log])
        total = None if config.seconds else config.epochs * optimizer.steps  # the time ends a fit with `seconds`
        with bar(description, total, optimizer.done) as progress:
            while fit.epoch < config.epochs and fit.epoch - fit.best.epoch < config.patience and optimizer.progress < 1:
                epoch = fit.epoch + 1
                with _seeded(seed, epoch, device):
                    train_loss = fit.train_epoch(batches(optimizer.batch_indices(epoch)), batch_loss, progress)
                if not train_loss < float("inf"):
                    raise DinomedError(f"the loss is {train_loss} in epoch {epoch}; lower fit.learning_rate")
                model.eval()
                with torch.no_grad(), average.applied():
                    score, values = validate()
                    fit.end_epoch(score, {"train_loss": train_loss, **values}, values)
                fit.write_log(folder)
                loggers.scalars(fit.epoch, fit.log[-1])
                fit.save()
    except (KeyboardInterrupt, SystemExit):
        resumption = f"resumes after epoch {fit.saved}" if fit.saved else "starts again (no epoch was saved yet)"
        logger.info(f"interrupted in epoch {fit.epoch + 1}; the same command {resumption}")
        raise
    finally:
        if loggers is not None:
            loggers.close()
    model.load_state_dict(fit.best_weights, strict=False)
    model.eval()
    return fit.best


class _Fit:
    """State of a running fit: finished epochs, the best epoch with its weights, and the rows of the log."""

    def __init__(
        self, model: nn.Module, optimizer: BatchedAdamW | FullBatchLBFGS, state: FitState, keep_last: bool,
        average: WeightAverage,
    ) -> None:  # fmt: skip
        self.model, self.optimizer, self.state, self.keep_last = model, optimizer, state, keep_last
        self.average = average
        self.epoch, self.saved, self.best = 0, 0, BestEpoch(0, float("-inf"), {})
        self.best_weights = copy_trainable(model)
        self.log: list[dict[str, Any]] = []
        self._start, self._earlier_seconds = monotonic(), 0.0

    def train_epoch(self, batches: Iterator[B], batch_loss: Callable[[B], Tensor], progress: Bar) -> float:
        """Train on the batches of the next epoch, until its time is spent, and return the mean loss."""
        self.model.train()
        losses = []
        for batch in batches:
            losses.append(self.optimizer.step(lambda batch=batch: batch_loss(batch)))  # type: ignore[misc]
            self.average.update()
            progress.advance(note=self._note())
            if self.optimizer.epoch_time_is_spent(self.epoch + 1):
                break
        if isinstance(batches, Generator):
            batches.close()  # it may have loaded batches in advance
        return sum(losses) / len(losses)

    def end_epoch(self, score: float, row: dict[str, float], values: dict[str, float]) -> None:
        """Count the epoch, add its log row, and keep its weights if the score is the best or the last one counts."""
        self.epoch += 1
        if self.keep_last or score > self.best.score:
            self.best, self.best_weights = BestEpoch(self.epoch, score, values), copy_trainable(self.model)
        self.log.append({"epoch": self.epoch, **row, "seconds": round(self._seconds(), 2)})

    def write_log(self, folder: Path) -> None:
        """Write a line for each finished epoch."""
        write_text(folder / LOG_FILE, "".join(to_json(row) + "\n" for row in self.log))

    def save(self) -> None:
        """Write the state to disk, if it is time to."""
        tensors = {f"last.{name}": tensor for name, tensor in copy_trainable(self.model).items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best_weights.items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.tensors.items()}
        best = self.best
        state = {
            "epoch": self.epoch,
            "averaged_steps": self.average.steps,
            "best": [best.epoch, None if best.epoch == 0 else best.score, best.values],
            "log": self.log,
            "seconds": self._seconds(),
            "trainer": pack(self.optimizer.state(), "trainer", tensors),
        }
        if self.state.save(self.epoch, tensors, state):
            self.saved = self.epoch

    def restore(self) -> None:
        """Load the state of an interrupted fit, if there is one."""
        loaded = self.state.load()
        if loaded is None:
            return
        tensors, state = loaded
        weights = {
            prefix: {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}
            for prefix in ("best", "last", "average")
        }
        self.model.load_state_dict(weights["best"], strict=False)
        self.best_weights = copy_trainable(self.model)
        self.model.load_state_dict(weights["last"], strict=False)
        self.average.load(weights["average"], state["averaged_steps"])
        epoch, score, values = state["best"]
        self.best = BestEpoch(epoch, float("-inf") if score is None else score, values)
        self.epoch, self.saved, self.log = state["epoch"], state["epoch"], state["log"]
        self._earlier_seconds = state["seconds"]
        self.optimizer.load(unpack(state["trainer"], tensors))
        logger.info(f"resuming after epoch {self.epoch} of an interrupted training")

    def _seconds(self) -> float:
        return self._earlier_seconds + monotonic() - self._start

    def _note(self) -> str:
        """Return the text beside the progress bar: the share of a fit with `seconds`, and the best epoch."""
        seconds = getattr(self.optimizer, "seconds", None)
        notes = [] if seconds is None else [f"{self.optimizer.progress:.0%} of {seconds:g} processor seconds"]
        if self.best.values:
            name, value = next(iter(self.best.values.items()))
            notes.append(f"{'' if self.keep_last else 'best '}{name} {value:.3f} (epoch {self.best.epoch})")
        return ", ".join(notes)


@contextmanager
def _seeded(seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators by `seed` and `epoch` (for dropout), and restore them afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]))
        yield
