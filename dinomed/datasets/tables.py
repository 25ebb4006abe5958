"""Reading of tables: strict CSV, and Parquet within a limit on its decoded size.

A CSV file is UTF-8, with one header line and the same number of cells in each row; all values are text, empty cells
None.
"""

import csv
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dinomed.errors import UsageError
from dinomed.io.files import replacing

_DELIMITERS = ",;\t"
_SPARE_BYTES, _GROWTH = 2**28, 100
"""Largest decoded size of a Parquet file: 256 MiB, and 100 times the size of the file. A manifest has another checksum
in each row, which does not compress, so it never needs more."""
_BATCH_ROWS = 65_536


def read_csv(path: str | Path) -> tuple[list[str], list[list[str | None]]]:
    """Read column names and rows; see `read_numbered_csv`."""
    return read_numbered_csv(path)[:2]


def read_numbered_csv(path: str | Path) -> tuple[list[str], list[list[str | None]], list[int]]:
    """Read column names, rows, and the number that a spreadsheet shows for each row: empty ones, which are left out,
    count too. The letters of names are composed (NFC).

    The delimiter is the most frequent of comma, semicolon and tab in the header line.

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
            names = [compose_letters(name.strip()) for name in next(reader, [])]
            _check_header(path, names)
            numbered = {
                number: _check_row(path, reader.line_num, row, len(names))
                for number, row in enumerate(reader, start=2)
                if row
            }
    except FileNotFoundError:
        raise UsageError(f"table {path} does not exist") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text; save the table as CSV in UTF-8") from None
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from None
    except OSError as error:
        raise UsageError(f"table {path} cannot be read: {error.strerror or error}") from None
    return names, list(numbered.values()), list(numbered)


def read_parquet(source: Path | pa.Buffer, name: str | Path) -> pa.Table:
    """Read a Parquet file in parts, and stop before it exceeds its limit; dictionaries become plain values.

    Args:
        source: a file, or its bytes.
        name: what messages call it.

    Raises:
        UsageError: its decoded size is over the limit; found out before the values are decoded.
        pyarrow.ArrowException, OSError: the file is damaged.
    """
    size = source.stat().st_size if isinstance(source, Path) else source.size
    limit = _SPARE_BYTES + _GROWTH * size
    opened = source if isinstance(source, Path) else pa.BufferReader(source)
    with pq.ParquetFile(opened) as file:  # `pq.read_table` imports pandas
        texts = [field.name for field in file.schema_arrow if _is_text(field.type)]
    opened = source if isinstance(source, Path) else pa.BufferReader(source)
    with pq.ParquetFile(opened, read_dictionary=texts) as file:  # each different text once, until the sizes are known
        schema = pa.schema([_plain_field(field) for field in file.schema_arrow], metadata=file.schema_arrow.metadata)
        is_nested = any(pa.types.is_nested(field.type) for field in schema)
        parts: list[pa.Table] = []
        total = 0
        for group in range(file.num_row_groups):
            metadata = file.metadata.row_group(group)
            columns = [metadata.column(index) for index in range(metadata.num_columns)]
            encoded = sum(column.total_uncompressed_size for column in columns)
            if max(encoded, 4 * sum(column.num_values for column in columns)) > limit - total:
                raise _too_large(name, size, limit)
            # texts in lists are decoded at once; none is larger than the encoded column
            rows = min(max(limit // max(encoded, 1), 1), _BATCH_ROWS) if is_nested else _BATCH_ROWS
            for batch in file.iter_batches(batch_size=rows, row_groups=[group]):
                total += sum(map(_decoded_bytes, batch.columns))
                if total > limit:
                    raise _too_large(name, size, limit)
                parts.append(pa.Table.from_batches([batch]).cast(schema))
    return pa.concat_tables(parts) if parts else schema.empty_table()


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)


def _decoded_bytes(column: pa.Array) -> int:
    """Return the size of a column with plain values in place of a dictionary."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    lengths = pc.binary_length(column.dictionary) if _is_text(column.type.value_type) else None
    return 8 * len(column) + (0 if lengths is None else pc.sum(lengths.take(column.indices)).as_py() or 0)


def _plain_field(field: pa.Field) -> pa.Field:
    return field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field


def _too_large(name: str | Path, size: int, limit: int) -> UsageError:
    return UsageError(
        f"table {name} of {size:,} bytes holds more than {limit // 2**20:,} MiB of values; that is no manifest, scan "
        "the images again"
    )


def write_csv(path: str | Path, names: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV atomically; None becomes an empty cell, a boolean true or false."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        file.writelines(csv_lines(names, rows))


def csv_lines(names: Sequence[str], rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    """Yield the lines of a CSV as `write_csv` writes them."""
    yield ",".join(map(_cell, names)) + "\n"
    for row in rows:
        yield ",".join(map(_cell, row)) + "\n"


def compose_letters(text: str) -> str:
    """Return text with composed letters (NFC). Some systems write ä in names of files as a and a mark above it."""
    return unicodedata.normalize("NFC", text)


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
