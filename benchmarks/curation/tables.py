"""Markdown tables of rows of values."""

from collections.abc import Collection, Sequence
from typing import Any


def format_table(rows: Sequence[dict[str, Any]], leave_out: Collection[str] = ()) -> str:
    """Return a Markdown table of rows with the same keys, without the keys in `leave_out`; floats have 2 decimals."""
    names = [name for name in rows[0] if name not in leave_out]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = (row[name] for name in names)
        lines.append(
            "| " + " | ".join(f"{cell:.2f}" if isinstance(cell, float) else f"{cell}" for cell in cells) + " |"
        )
    return "\n".join(lines)
