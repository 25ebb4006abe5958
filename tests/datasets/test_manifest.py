"""The manifest: round trips of odd paths, errors that name the thing (reliability rows 17 and 19)."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dinomed.datasets.manifest import (
    Manifest,
    build_manifest,
    leaves_root,
    read_manifest,
    write_manifest,
)
from dinomed.datasets.open import open_dataset
from dinomed.errors import DinomedError, UsageError


def columns(images: list[str], **optional: list[Any]) -> dict[str, list[Any]]:
    n = len(images)
    return {
        "image": images, "sha256": [f"{i:064x}" for i in range(n)], "width": [4] * n, "height": [3] * n,
        "mode": ["RGB"] * n, "format": ["PNG"] * n, "bytes": [100] * n,
    } | optional  # fmt: skip


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    (tmp_path / "data").mkdir()
    optional = {"label": ["nv", None, "mel"], "split": ["train", "train", "test"], "mask": [None, "m/b.png", None],
            "group": ["1", "2", "2"], "age": ["045", None, "7.0"]}  # fmt: skip
    return build_manifest(columns(["a.png", "b.png", "c.png"], **optional), tmp_path / "data")


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=60)
names = text.filter(lambda name: not leaves_root(name))


@pytest.mark.parametrize(
    ("path", "here", "on_windows"),
    [
        ("a:1.png", False, True), ("a:/1.png", False, True), ("C:\\a.png", True, True), ("\\\\host\\a.png", True, True),
        ("x\\..\\..\\a.png", False, True), ("x/../../a.png", True, True), ("/a.png", True, True),
        ("x/a.png", False, False),
    ],
)  # fmt: skip
def test_drives_and_backslashes_count_where_there_are_any(path: str, here: bool, on_windows: bool) -> None:
    assert (leaves_root(path, windows=False), leaves_root(path, windows=True)) == (here, on_windows)


@pytest.mark.skipif(os.name == "nt", reason="no such names there")
def test_a_name_with_a_colon_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a:1.png")
    write_manifest(open_dataset(tmp_path), tmp_path / "m.csv")
    assert read_manifest(tmp_path / "m.csv").column("image") == ["a:1.png"]


@settings(max_examples=60, deadline=None)
@given(images=st.lists(names, unique=True, max_size=6), suffix=st.sampled_from([".parquet", ".csv"]), data=st.data())
def test_any_path_and_value_round_trips(
    images: list[str], suffix: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    values = [data.draw(st.none() | text) for _ in images]
    manifest = build_manifest(columns(images, label=values, **{"free text": values[::-1]}), folder)
    write_manifest(manifest, folder / f"m{suffix}")
    again = read_manifest(folder / f"m{suffix}")
    assert again.table.equals(manifest.table)
    assert again.fingerprint == manifest.fingerprint


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_odd_file_names_lead_back_to_their_files(tmp_path: Path, suffix: str) -> None:
    odd = ["with space.png", "ümläut/猫.png", "new\nline.png", "x" * 246 + ".png", 'comma,"quote".png', " lead.png"]
    for name in odd:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(name.encode())
    write_manifest(build_manifest(columns(odd), tmp_path / "data"), tmp_path / "runs" / f"m{suffix}")
    again = read_manifest(tmp_path / "runs" / f"m{suffix}")
    assert [again.path(i).read_bytes().decode() for i in range(len(odd))] == odd


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_no_path_of_the_machine_is_written_and_both_move_together(
    manifest: Manifest, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / "runs" / f"m{suffix}"
    write_manifest(manifest, path)
    assert os.fsencode(tmp_path) not in path.read_bytes()
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "data").rename(moved / "data")
    with pytest.raises(UsageError, match="its image folder"):
        read_manifest(path)
    assert read_manifest(path, root=moved / "data").root == moved / "data"
    (tmp_path / "runs").rename(moved / "runs")
    assert read_manifest(moved / "runs" / path.name).root.resolve() == (moved / "data").resolve()


def test_a_csv_beside_its_images_needs_no_root(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(manifest, tmp_path / "data" / "m.csv")
    assert "root" not in (tmp_path / "data" / "m.csv").read_text().splitlines()[0]
    assert read_manifest(tmp_path / "data" / "m.csv").table.equals(manifest.table)


def test_parquet_that_another_tool_rewrote_is_read_or_refused_with_the_missing_part(
    manifest: Manifest, tmp_path: Path
) -> None:
    path = tmp_path / "runs" / "m.parquet"
    write_manifest(manifest, path)
    table = pq.read_table(path).replace_schema_metadata(None)
    pq.write_table(table, path)
    with pytest.raises(UsageError, match=r"names no image folder.*add a column 'root'"):
        read_manifest(path)
    assert len(read_manifest(path, root=manifest.root)) == len(manifest)
    rooted = table.append_column("root", pa.array([str(manifest.root)] * len(table)))
    pq.write_table(rooted, path)
    restored = read_manifest(path)
    assert restored.root == manifest.root
    assert "root" not in restored.columns
    pq.write_table(
        rooted.set_column(rooted.column_names.index("root"), "root", pa.array([*"abcdefgh"][: len(table)])), path
    )
    with pytest.raises(UsageError, match="differs between rows"):
        read_manifest(path)


def test_same_manifest_same_bytes(manifest: Manifest, tmp_path: Path) -> None:
    for suffix in (".parquet", ".csv"):
        for name in ("one", "two"):
            write_manifest(manifest, tmp_path / f"{name}{suffix}")
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def test_rows_and_columns(manifest: Manifest) -> None:
    assert len(manifest) == 3
    assert manifest.columns[:2] == ["image", "sha256"]
    assert manifest.columns[-1] == "age"
    assert manifest.column("age") == ["045", None, "7.0"]  # text as written
    assert manifest.has("label")
    assert not manifest.has("depth")
    assert manifest.classes() == ["mel", "nv"]
    assert manifest.path(1) == manifest.root / "b.png"
    train = manifest.select(split="train")
    assert train.column("image") == ["a.png", "b.png"]
    assert len(manifest.select(split="train", label="mel")) == 0
    assert manifest.take([2, 0]).column("image") == ["c.png", "a.png"]
    assert manifest.take([]).column("image") == []
    assert manifest.fingerprint != train.fingerprint
    assert manifest.fingerprint != manifest.take([1, 0, 2]).fingerprint
    with pytest.raises(UsageError, match="no column 'lable'; did you mean 'label'"):
        manifest.column("lable")
    with pytest.raises(UsageError, match="no column 'splitt'; did you mean 'split'"):
        manifest.select(splitt="train")


def write_parquet(path: Path, values: dict[str, list[Any]]) -> Path:
    pq.write_table(pa.table(values), path)
    return path


def test_errors_name_the_file_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"manifest .*none.parquet does not exist"):
        read_manifest(tmp_path / "none.parquet")
    with pytest.raises(UsageError, match="is a folder; make a manifest of it: dinomed scan"):
        read_manifest(tmp_path)
    (tmp_path / "labels.csv").write_text("image,label\na.png,nv\n")
    with pytest.raises(
        UsageError, match=r"is a table of labels, not a manifest; make one: dinomed scan FOLDER --labels"
    ):
        read_manifest(tmp_path / "labels.csv")
    (tmp_path / "binary.parquet").write_bytes(b"\x89PNG\xff\xfe\x00")
    (tmp_path / "binary.csv").write_bytes(b"\x89PNG\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"binary.csv is not UTF-8 text; save the table as CSV in UTF-8"):
        read_manifest(tmp_path / "binary.csv")
    with pytest.raises(UsageError, match=r"binary.parquet is damaged or no Parquet file; scan the images again"):
        read_manifest(tmp_path / "binary.parquet")
    values = columns(["a.png"])
    values["heigth"] = values.pop("height")
    with pytest.raises(UsageError, match="no column 'height'; did you mean 'heigth'"):
        read_manifest(write_parquet(tmp_path / "m.parquet", values))
    with pytest.raises(UsageError, match="image 'a' is listed twice"):
        read_manifest(write_parquet(tmp_path / "m.parquet", columns(["a", "b", "a"])))
    with pytest.raises(UsageError, match="column 'width'"):
        read_manifest(write_parquet(tmp_path / "m.parquet", columns(["a.png"]) | {"width": ["wide"]}))
    with pytest.raises(UsageError, match="column 'sha256' has an empty cell"):
        read_manifest(write_parquet(tmp_path / "m.parquet", columns(["a.png"]) | {"sha256": pa.array([None], "str")}))


@pytest.mark.parametrize("path", ["../a.png", "x/../../a.png", "/etc/passwd", "C:\\a.png", "\\\\host\\a.png", ".", ""])
def test_paths_that_leave_the_root_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(UsageError, match=r"leaves the folder of the images|has an empty cell"):
        read_manifest(write_parquet(tmp_path / "m.parquet", columns([path])))
    if path:
        with pytest.raises(UsageError, match="mask"):
            read_manifest(write_parquet(tmp_path / "m.parquet", columns(["a.png"], mask=[path])))


def test_a_parquet_file_cut_off_anywhere_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(manifest, tmp_path / "m.parquet")
    whole = (tmp_path / "m.parquet").read_bytes()
    for length in range(4, len(whole), len(whole) // 40):
        (tmp_path / "cut.parquet").write_bytes(whole[:length])
        with pytest.raises(DinomedError, match=r"cut\.parquet"):
            read_manifest(tmp_path / "cut.parquet")


def test_pandas_is_not_imported(manifest: Manifest, tmp_path: Path) -> None:
    """pyarrow imports it where it sees a list, which would cost every command more than a second."""
    write_manifest(manifest, tmp_path / "m.parquet")
    code = (
        "import sys; from dinomed.datasets.manifest import *; m = read_manifest(sys.argv[1])\n"
        "m.select(split='train').take([0]).fingerprint; write_manifest(m, sys.argv[2]); read_manifest(sys.argv[2])\n"
        "sys.exit('pandas' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "m.parquet", tmp_path / "m.csv"], check=True)


def test_two_columns_of_one_name_are_refused(manifest: Manifest, tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([*manifest.table.columns, manifest.table["image"]], [*manifest.columns, "image"])
    pq.write_table(twice, tmp_path / "m.parquet")
    write_manifest(manifest, tmp_path / "m.csv")
    lines = (tmp_path / "m.csv").read_text().splitlines()
    (tmp_path / "m.csv").write_text("\n".join(line + "," + line.split(",")[0] for line in lines))
    for name in ("m.parquet", "m.csv"):
        with pytest.raises(UsageError, match="column 'image' occurs twice"):
            read_manifest(tmp_path / name)
