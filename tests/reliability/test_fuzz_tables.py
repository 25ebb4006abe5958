"""Hostile tables: CSV dialects in `scan` and manifests, and Parquet files that decode to gigabytes."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dinomed.datasets.manifest import read_manifest
from dinomed.datasets.scan.labels import ROLES, read_labels
from dinomed.datasets.tables import read_csv
from dinomed.errors import DinomedError, UsageError

CELLS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["", '"', '""', "a;b", "a,b", "a\tb", "a\nb", "\r", "\0", "=1+1", "\ufeff", " a.png ", "x" * 100_000]
)
DIALECTS = st.fixed_dictionaries({
    "delimiter": st.sampled_from(",;\t|"),
    "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    "lineterminator": st.sampled_from(["\n", "\r\n", "\r"]),
    "quotechar": st.sampled_from("\"'"),
})  # fmt: skip
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
FAST = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def table_bytes(rows: list[list[str]], dialect: dict[str, object], encoding: str) -> bytes:
    text = io.StringIO()
    csv.writer(text, **dialect).writerows(rows)  # type: ignore[arg-type]
    return text.getvalue().encode(encoding, errors="replace")


@FAST
@given(st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=4), DIALECTS, ENCODINGS, st.booleans())
@example([["image", "label"], ["0.png", "a\0b"]], {"delimiter": ","}, "utf-8", True)
@example([["image", "x" * (2**24 + 1)], ["0.png", "a"]], {"delimiter": ","}, "utf-8", True)
@example([["0\n0"]], {"delimiter": ",", "quoting": 0}, "utf-8", False)
@example([["image"] * 50_000], {"delimiter": ","}, "utf-8", True)
def test_any_csv_is_read_or_refused_in_one_line(
    tmp_path: Path, rows: list[list[str]], dialect: dict[str, object], encoding: str, has_header: bool
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(table_bytes([["image", "label"], *rows] if has_header else rows, dialect, encoding))
    for read in (read_csv, read_manifest, labels_of):
        message = ""
        try:
            read(path)
        except DinomedError as error:
            message = str(error)
        assert len(message) <= 2000
        assert "\n" not in message, read


def labels_of(path: Path) -> object:
    roles = dict.fromkeys(ROLES)
    return read_labels(path, path.parent, ["0.png"], ["0.png"], image_column="image", roles=roles)


@FAST
@given(st.lists(st.lists(CELLS, min_size=3, max_size=3), max_size=4), DIALECTS, st.sampled_from(["utf-8", "utf-8-sig"]))
def test_a_csv_of_a_usual_dialect_keeps_its_cells(
    tmp_path: Path, rows: list[list[str]], dialect: dict[str, object], encoding: str
) -> None:
    path = tmp_path / "t.csv"
    usual = {**dialect, "quotechar": '"', "quoting": csv.QUOTE_ALL}
    if usual["delimiter"] == "|":
        usual["delimiter"] = ";"
    path.write_bytes(table_bytes([["a", "b", "c"], *rows], usual, encoding))
    names, cells = read_csv(path)
    assert names == ["a", "b", "c"]
    assert cells == [[cell or None for cell in row] for row in rows]


@pytest.mark.parametrize("is_category", [False, True])
def test_a_small_parquet_that_decodes_to_gigabytes_is_refused_first(
    tmp_path: Path, is_category: bool, memory_growth: Callable[[], int]
) -> None:
    rows, path = 400_000, tmp_path / "m.parquet"
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 20_000]))  # 8 GB of text
    pq.write_table(pa.table({"image": column}), path, compression="zstd", store_schema=is_category)
    assert path.stat().st_size < 2**15
    with pytest.raises(UsageError, match=r"^table .* holds more than 25\d MiB of values; that is no manifest"):
        read_manifest(path)
    assert memory_growth() < 2**20  # KiB: 1 of the 8 GB


def test_a_parquet_of_more_numbers_than_its_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinomed.datasets.tables._SPARE_BYTES", 2**20)
    pq.write_table(pa.table({"image": pa.nulls(10**6, pa.int64()).fill_null(0)}), tmp_path / "m.parquet")
    with pytest.raises(UsageError, match="MiB of values"):
        read_manifest(tmp_path / "m.parquet")


def test_a_manifest_with_categories_and_lists_is_read(tmp_path: Path, lesion_manifest: Path) -> None:
    table = read_manifest(lesion_manifest).table
    stored = pq.read_table(lesion_manifest)
    categories = stored["label"].combine_chunks().dictionary_encode()
    lists = pa.array([["a", "b"]] * len(stored))
    changed = stored.set_column(stored.column_names.index("label"), "label", categories).append_column("tags", lists)
    root = {b"dinomed.root": str(lesion_manifest.parent / "lesions").encode()}
    pq.write_table(changed.replace_schema_metadata(root), tmp_path / "m.parquet", row_group_size=7)
    read = read_manifest(tmp_path / "m.parquet").table
    assert read.drop_columns("tags").equals(table)
    assert set(read["tags"].to_pylist()) == {'["a", "b"]'}
