"""Output of a command on stdout: JSON for programs, or a table for people."""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import markup
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table

from dinomed.apps.messages import printed_reports
from dinomed.errors import printable
from dinomed.html.words import format_value
from dinomed.io.files import to_json


def api_arguments(options: Mapping[str, Any], *, without: Iterable[str] = ()) -> dict[str, Any]:
    """Return the options of a command as arguments of its function; an option that was not given is left out.

    >>> api_arguments({"out": "x", "label": None, "as_json": True, "quiet": False, "nproc": 2}, without=["nproc"])
    {'out': 'x'}
    """
    of_the_command = {"as_json", "quiet", *without}
    return {name: value for name, value in options.items() if value is not None and name not in of_the_command}


# Control characters that JSON allows, and marks that change the direction of the text: a terminal acts on both.
_HIDDEN = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def emit(data: Mapping[str, Any], as_json: bool, table: Table | None = None) -> None:
    """Print `data` as one JSON object, or `table`; without a table, the keys and values of `data`."""
    if as_json:
        print(_HIDDEN.sub(lambda hidden: f"\\u{ord(hidden[0]):04x}", to_json(dict(data), indent=2)))
        printed_reports.append(True)
        return
    if table is None:
        table = build_table(("", ""), [(key, value) for key, value in data.items() if not isinstance(value, Mapping)])
    # Without a terminal, rich would limit the table to 80 columns and cut words.
    print_table(table, Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 200))


def print_table(table: Table, console: Console) -> None:
    """Print a table. Columns that do not fit into the width of the console follow in a further table.

    Words are never broken: each part repeats the first column, which names the rows.
    """
    for name in ("title", "caption"):  # may hold names of files and classes, and several lines
        if isinstance(text := getattr(table, name), str):
            setattr(table, name, markup.escape("\n".join(printable(line) for line in text.split("\n"))))
    columns = list(table.columns)
    widths = [max(measure.minimum for measure in _measures(column, console)) + 3 for column in columns]
    if table.row_count == 0 or sum(widths) + 1 <= console.width:
        console.print(table)
        return
    start = 1
    while start < len(columns):
        end, width = start, widths[0] + 1
        while end < len(columns) and (end == start or width + widths[end] <= console.width):
            width += widths[end]
            end += 1
        part = Table(title=table.title if start == 1 else None, title_justify="left", show_header=table.show_header)
        part.caption = table.caption if end == len(columns) else None
        part.columns = [columns[0], *columns[start:end]]
        part.rows = table.rows
        console.print(part)
        start = end


def _measures(column: Column, console: Console) -> Iterator[Measurement]:
    for cell in (column.header, *column.cells):
        yield Measurement.get(console, console.options, cell)


def build_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> Table:
    """Build a table: numbers are right-aligned, floats have three decimals, and a missing value is a dash.

    >>> build_table(("method", "Dice"), [("Otsu", 0.67)]).row_count
    1
    """
    table = Table(title=title, title_justify="left", show_header=any(columns))
    rows = [list(row) for row in rows]
    for index, name in enumerate(columns):
        numeric = any(isinstance(row[index], int | float) for row in rows)
        table.add_column(
            markup.escape(printable(name)), justify="right" if numeric and index else "left", overflow="fold"
        )
    for row in rows:
        texts = (format_value(value).replace("\N{NO-BREAK SPACE}", " ") for value in row)  # of intervals, for pages
        table.add_row(*(markup.escape(printable(text)) for text in texts))
    return table
