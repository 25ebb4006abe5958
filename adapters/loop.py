"""The training loop of all heads: an optimiser, a validation score after each epoch, the best epoch kept."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from dinomed.adapters.config import FitConfig
from dinomed.adapters.contract import Adapter
from dinomed.errors import DinomedError
from dinomed.files import append_text, to_json, write_text
from dinomed.progress import bar

LOG_FILE = "log.jsonl"
BatchLoss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Best:
    """The epoch that was kept (from 1), its score and its validation values."""

    epoch: int
    score: float
    values: dict[str, float]


def run_epochs(
    adapter: Adapter,
    config: FitConfig,
    *,
    count: int,
    batch_loss: BatchLoss,
    validate: Callable[[], tuple[float, dict[str, float]]],
    seed: int,
    folder: Path,
    description: str,
) -> Best:
    """Train `adapter` in place; it ends with the weights of its best epoch.

    Args:
        count: training examples.
        batch_loss: indices of examples (int64) -> their mean loss.
        validate: the score of this epoch, the higher the better, and values for the log.
        folder: ``log.jsonl`` is written there.

    Raises:
        DinomedError: the loss is no longer finite.
    """
    trainer = (_AdamW if config.optimizer == "adamw" else _LBFGS)(adapter, config, count, batch_loss, seed)
    best, kept, began = Best(0, float("-inf"), {}), _copy(adapter), monotonic()
    write_text(folder / LOG_FILE, "")
    with bar(description, config.epochs * trainer.steps) as progress:
        for epoch in range(1, config.epochs + 1):
            adapter.train()
            losses = []
            for loss in trainer.epoch():
                losses.append(loss)
                progress.advance(note=_note(best))
            train_loss = sum(losses) / len(losses)
            if not train_loss < float("inf"):
                raise DinomedError(f"the loss is {train_loss} in epoch {epoch}; lower fit.learning_rate")
            adapter.eval()
            with torch.no_grad():
                score, values = validate()
            if score > best.score:
                best, kept = Best(epoch, score, values), _copy(adapter)
            row: dict[str, Any] = {"epoch": epoch, "train_loss": train_loss, **values}
            append_text(folder / LOG_FILE, to_json({**row, "seconds": round(monotonic() - began, 2)}) + "\n")
            if epoch - best.epoch >= config.patience:
                break
    adapter.load_state_dict(kept)
    adapter.eval()
    return best


class _AdamW:
    """Shuffled batches, a cosine learning rate over all epochs. A small collection is passed over several times an
    epoch, for `min_steps` in all."""

    def __init__(self, adapter: Adapter, config: FitConfig, count: int, batch_loss: BatchLoss, seed: int) -> None:
        self.count, self.size, self.batch_loss = count, config.batch_size, batch_loss
        # A last batch of one example would break batch statistics: it is left to the next pass's order.
        self.batches = max(1, count // self.size + (count % self.size > 1))
        self.passes = max(1, ceil(config.min_steps / (config.epochs * self.batches)))
        self.steps = self.passes * self.batches
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.AdamW(
            adapter.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=config.epochs * self.steps)

    def epoch(self) -> Iterator[float]:
        for _ in range(self.passes):
            for indices in torch.randperm(self.count, generator=self.generator).split(self.size)[: self.batches]:
                loss = self.batch_loss(indices)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.schedule.step()
                yield loss.item()


class _LBFGS:
    """All examples at once, ten iterations an epoch, an L2 penalty on matrices: for convex heads on pooled features."""

    steps = 1

    def __init__(self, adapter: Adapter, config: FitConfig, count: int, batch_loss: BatchLoss, seed: int) -> None:
        self.batch_loss, self.everything = batch_loss, torch.arange(count)
        self.penalty, self.matrices = config.weight_decay, [p for p in adapter.parameters() if p.ndim > 1]
        self.optimizer = torch.optim.LBFGS(
            adapter.parameters(), max_iter=10, history_size=20, line_search_fn="strong_wolfe"
        )

    def epoch(self) -> Iterator[float]:
        def closure() -> float:
            self.optimizer.zero_grad()
            loss = self.batch_loss(self.everything)
            loss = loss + self.penalty * torch.stack([p.square().sum() for p in self.matrices]).sum()
            loss.backward()
            return loss.item()

        yield float(self.optimizer.step(closure))


def _note(best: Best) -> str:
    """A few words beside the bar."""
    if not best.values:
        return ""
    name, value = next(iter(best.values.items()))
    return f"best {name} {value:.3f} (epoch {best.epoch})"


def _copy(adapter: Adapter) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in adapter.state_dict().items()}
