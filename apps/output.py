"""Output of a command on stdout: JSON for programs, or a table for people."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import markup
from rich.console import Console
from rich.table import Table

from dinomed.html.words import format_value
from dinomed.io.files import to_json


def emit(data: Mapping[str, Any], as_json: bool, table: Table | None = None) -> None:
    """Print `data` as one JSON object, or `table`; without a table, the keys and values of `data`."""
    if as_json:
        print(to_json(dict(data), indent=2))
        return
    if table is None:
        table = build_table(("", ""), [(key, value) for key, value in data.items() if not isinstance(value, Mapping)])
    # Without a terminal, rich would limit the table to 80 columns and cut words.
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 200)
    console.print(table)


def build_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> Table:
    """Build a table: numbers are right-aligned, floats have three decimals, and a missing value is a dash.

    >>> build_table(("method", "Dice"), [("Otsu", 0.67)]).row_count
    1
    """
    table = Table(title=title, title_justify="left", show_header=any(columns))
    rows = [list(row) for row in rows]
    for index, name in enumerate(columns):
        numeric = any(isinstance(row[index], int | float) for row in rows)
        table.add_column(name, justify="right" if numeric and index else "left", overflow="fold")
    for row in rows:
        table.add_row(*(markup.escape(format_value(value)) for value in row))
    return table
