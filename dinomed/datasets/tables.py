"""Strict CSV files: UTF-8, one header line, the same number of cells in each row, all values text, empty cells None."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dinomed.errors import UsageError
from dinomed.io.files import replacing

_DELIMITERS = ",;\t"


def read_csv(path: str | Path) -> tuple[list[str], list[list[str | None]]]:
    """Read column names and rows. The delimiter is the most frequent of comma, semicolon and tab in the header line.

    Raises:
        UsageError: the file is missing, is no UTF-8 text, has no header, has a column twice, or has a row with another
            number of cells; the message names the line.
    """
    csv.field_size_limit(2**24)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(_DELIMITERS, key=header.count), strict=True)
            names = [name.strip() for name in next(reader, [])]
            _check_header(path, names)
            rows = [_check_row(path, reader.line_num, row, len(names)) for row in reader if row]
    except FileNotFoundError:
        raise UsageError(f"table {path} does not exist") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text; save the table as CSV in UTF-8") from None
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from None
    except OSError as error:
        raise UsageError(f"table {path} cannot be read: {error.strerror or error}") from None
    return names, rows


def write_csv(path: str | Path, names: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV atomically; None becomes an empty cell, a boolean true or false."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        for row in (names, *rows):
            file.write(",".join(map(_cell, row)) + "\n")


def _cell(value: Any) -> str:
    """Return a cell as text, quoted if needed. (The writer of Python does not quote a lone carriage return.)"""
    text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in '",;\t\r\n') else text


def _check_header(path: str | Path, names: list[str]) -> None:
    if not any(names):
        raise UsageError(f"{path} is empty; the first line of a table names its columns")
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise UsageError(f"{path}: column {duplicates[0]!r} occurs twice; rename or remove one")


def _check_row(path: str | Path, line: int, row: list[str], cells: int) -> list[str | None]:
    if len(row) != cells:
        raise UsageError(f"{path}, line {line}: {len(row)} cells, the header has {cells}")
    return [cell or None for cell in row]
