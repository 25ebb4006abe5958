"""Columns of any Parquet type, as other tools write them, are read as text and never end a command."""

import datetime
import decimal
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dinomed.datasets.manifest import read_manifest

Run = Callable[..., tuple[int, str, str]]

MIDNIGHT = datetime.datetime(2024, 5, 3, tzinfo=datetime.UTC)
COLUMNS = {
    "visit": (pa.timestamp("ns"), datetime.datetime(2024, 5, 3), "2024-05-03 00:00:00.000000000"),
    "zone": (pa.timestamp("ms", tz="UTC"), MIDNIGHT, "2024-05-03 00:00:00.000Z"),
    "day": (pa.date32(), datetime.date(2024, 5, 3), "2024-05-03"),
    "delay": (pa.duration("s"), datetime.timedelta(seconds=90), "90"),
    "dose": (pa.decimal128(6, 2), decimal.Decimal("1.50"), "1.50"),
    "site": (pa.dictionary(pa.int32(), pa.string()), "back", "back"),
    "codes": (pa.list_(pa.int64()), [1, 2], "[1, 2]"),
    "pair": (pa.struct([("a", pa.int64())]), {"a": 1}, '{"a": 1}'),
    "raw": (pa.binary(), b"\xff", '"b\'\\\\xff\'"'),
    "score": (pa.float64(), 0.5, 0.5),
}  # fmt: skip


@pytest.fixture
def typed(user_folder: Path, tmp_path: Path) -> Path:
    """The manifest of the user with a column of each type; every second cell is empty."""
    source = read_manifest(user_folder / "derm.parquet")
    table = source.table
    for name, (kind, value, _) in COLUMNS.items():
        values = [value if row % 2 else None for row in range(len(table))]
        column = pa.array(values) if pa.types.is_dictionary(kind) else pa.array(values, kind)
        table = table.append_column(name, column.dictionary_encode() if pa.types.is_dictionary(kind) else column)
    path = tmp_path / "typed.parquet"
    table = table.append_column("root", pa.array([str(source.root.resolve())] * len(table)))
    pq.write_table(table, path)
    return path


def test_each_type_is_read_as_text_or_number(typed: Path) -> None:
    manifest = read_manifest(typed)
    for name, (_, _, text) in COLUMNS.items():
        assert manifest.column(name)[:2] == [None, text], name


def test_commands_take_the_columns(typed: Path, user_folder: Path, tmp_path: Path, run: Run) -> None:
    code, _, err = run("index", typed, "-b", user_folder / "ssl", "-o", tmp_path / "idx", "--quiet")
    assert code == 0, err
    code, out, err = run("search", typed, "--index", tmp_path / "idx", "-k", 1, "--json", "--quiet")
    assert code == 0, err
    columns = json.loads(out)["queries"][1]["results"][0]["columns"]
    assert {name: columns[name] for name in COLUMNS} == {name: text for name, (_, _, text) in COLUMNS.items()}
    for name in ("visit", "site", "codes", "dose"):
        code, _, err = run("evaluate", user_folder / "cls", "--data", typed, "--by", name, "--json", "--quiet")
        assert code == 0, err


def test_a_root_that_is_not_utf8_is_one_clear_error(typed: Path, run: Run, user_folder: Path) -> None:
    table = pq.ParquetFile(typed).read().drop_columns("root").replace_schema_metadata({b"dinomed.root": b"\xff\xfe"})
    pq.write_table(table, typed)
    code, _, err = run("evaluate", user_folder / "cls", "--data", typed)
    assert (code, "not UTF-8 text" in err) == (2, True)
