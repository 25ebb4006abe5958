"""Section of the page of an evaluation: the curves of the trainings of a head."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dinomed.adapters.fitting.loop import LOG_FILE, REFIT_LOG_FILE
from dinomed.html.page import heading, paragraph
from dinomed.html.plots import curve

_TITLES = {"train_loss": "training loss", "val_loss": "loss on val"}
_NOT_SHOWN = ("epoch", "seconds")


class FitLogs(NamedTuple):
    """Rows of the log of a fit, one for each epoch, and of its second training on train and val, if there was one."""

    first: Sequence[Mapping[str, Any]]
    second: Sequence[Mapping[str, Any]] = ()


def read_fit_logs(folder: Path) -> FitLogs:
    """Return the logs in the folder of an adapter; no rows for a log that is missing or damaged."""
    return FitLogs(_read_log(folder / LOG_FILE), _read_log(folder / REFIT_LOG_FILE))


def _read_log(path: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []
    return rows if all(isinstance(row, dict) and "epoch" in row for row in rows) else []


def build_training_section(logs: FitLogs) -> list[str]:
    """Return a curve over the epochs for each value of the logs; nothing with fewer than two epochs.

    With a second training the curves of both have their own headings.
    """
    first, second = _draw_curves(logs.first), _draw_curves(logs.second)
    if not first:
        return []
    parts = [heading("Training of the head")]
    if not second:
        return [*parts, paragraph(_count_epochs(logs.first)), first]
    parts += [paragraph("The head was trained twice.")]
    parts += ["<h3>First training, on train</h3>"]
    parts += [paragraph(f"{_count_epochs(logs.first)} The head of this training was measured on val."), first]
    parts += ["<h3>Second training, on train and val</h3>"]
    parts += [paragraph(f"{_count_epochs(logs.second)} The adapter has the weights of this training."), second]
    return parts


def _count_epochs(rows: Sequence[Mapping[str, Any]]) -> str:
    return f"{len(rows):,} epochs; each value is that of the end of an epoch."


def _draw_curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a curve for each value of a log; empty with fewer than two epochs."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in _NOT_SHOWN]
    curves = [
        curve(
            [(row["epoch"], float(row[name])) for row in rows if isinstance(row.get(name), int | float)],
            _TITLES.get(name, name.replace("val_", "on val: ")),
            unit="epoch",
        )
        for name in names
    ]
    shown = "".join(curves)
    return f"<div>{shown}</div>" if shown else ""
