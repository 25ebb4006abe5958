"""Section of the page of an evaluation: the curves of the fit of a head."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinomed.adapters.fitting.loop import LOG_FILE
from dinomed.html.page import heading, paragraph
from dinomed.html.plots import curve

_TITLES = {"train_loss": "training loss", "val_loss": "loss on val"}
_NOT_SHOWN = ("epoch", "seconds")


def read_fit_log(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of the log of a fit; none if there is no log, or if it is damaged."""
    try:
        rows = [json.loads(line) for line in (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []
    return rows if all(isinstance(row, dict) and "epoch" in row for row in rows) else []


def build_training_section(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a curve over the epochs for each value of a log; nothing with fewer than two epochs."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in _NOT_SHOWN]
    curves = [
        curve(
            [(row["epoch"], float(row[name])) for row in rows if isinstance(row.get(name), int | float)],
            _TITLES.get(name, name.replace("val_", "on val: ")),
            unit="epoch",
        )
        for name in names
    ]
    shown = [each for each in curves if each]
    if not shown:
        return []
    note = f"{len(rows):,} epochs; each value is that of the end of an epoch."
    return [heading("Training of the head"), paragraph(note), f"<div>{''.join(shown)}</div>"]
