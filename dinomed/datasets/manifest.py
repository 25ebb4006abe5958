"""The manifest: a table of images, the input and output of every job.

Each row is an image. Required columns: `image` (path relative to the root, with ``/``), `sha256` of the file, `width`
and `height` in pixels (after EXIF orientation), `mode`, `format`, `bytes`. Optional columns: `channels`, and `bits` of
a sample as stored (`dinomed.images.decode.Header`); `group` (patient, lesion or video, never in two splits; null where
unknown), `split` (train, val, test), `label`, `mask` (relative path), `keep` (true or false, set by `dinomed curate`),
and the other columns of the user's CSV, as text, with numbers as written. An empty cell is null.

A row can be a frame of a video (`dinomed.images.frames`): `image` is VIDEO/frame_000120, `sha256` that of its decoded
pixels, `bytes` the size of the video, and the columns `video`, `frame` (number from 0) and `time_s` name its place.

The root is stored relative to the folder of the manifest, so that both can be moved together. In Parquet it is in the
metadata of the schema; in CSV it is a column `root`, left out if the images lie in the folder of the CSV. Other tools
lose the metadata when they rewrite a Parquet file; a column `root` is read there too.
"""

import hashlib
import json
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dinomed.datasets.tables import compose_letters, read_csv, read_parquet, write_csv
from dinomed.errors import DinomedError, MissingInputError, UsageError, did_you_mean, first_line
from dinomed.images.frames import image_file
from dinomed.io.files import replacing

TEXT, NUMBER, TRUTH = pa.string(), pa.int64(), pa.bool_()
FIXED: dict[str, pa.DataType] = {
    "image": TEXT, "sha256": TEXT, "width": NUMBER, "height": NUMBER, "mode": TEXT, "format": TEXT, "bytes": NUMBER,
}  # fmt: skip
SAMPLES: dict[str, pa.DataType] = {"channels": NUMBER, "bits": NUMBER}
KNOWN = (*FIXED, *SAMPLES, "group", "split", "label", "mask", "keep")
TYPES = FIXED | SAMPLES | {"keep": TRUTH}
"""Types of the columns that are not text."""
NAMES = ("video", "volume", "study")
"""Columns of `scan --videos` and of `slices` that may hold names of files and identifiers."""
RESERVED = (*KNOWN, "root")
"""Names that are not allowed for other columns."""
_ROOT = b"dinomed.root"


@dataclass(frozen=True)
class Manifest:
    """A table of images and the root folder of their paths; the module lists the columns."""

    table: pa.Table
    root: Path
    source: Path | None = field(default=None, compare=False)  # the path that was opened: manifest, folder or image
    unreadable: tuple[tuple[str, str], ...] = field(default=(), compare=False)  # files of the folder, with reasons
    decoded: bool = field(default=True, compare=False)  # False for a folder of which only the headers were read
    file_times: Mapping[str, int] = field(default_factory=dict, compare=False)  # of a scan: `change_time` of each image

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return list(self.table.column_names)

    @property
    def called(self) -> str:
        """Name for messages: the path that the user passed."""
        if self.source is None:
            return "the manifest"
        return f"folder {self.source}" if self.source.is_dir() else str(self.source)

    def scan_again(self, options: str = "") -> str:
        """Return the command that makes a manifest of the same images with these options, for a message."""
        words = ["dinomed scan", shlex.quote(str(self.root)), options, "-o M.parquet"]
        then = ", and give M.parquet" if self.source is not None and self.source.is_dir() else ""
        return " ".join(word for word in words if word) + then

    def has(self, name: str) -> bool:
        """Return whether the column exists and holds a value."""
        name = name if name in self.table.column_names else compose_letters(name)
        return name in self.table.column_names and self.table[name].null_count < len(self)

    def column(self, name: str) -> list[Any]:
        """Return the values of a column, None for empty cells. The Unicode form of the name makes no difference.

        Raises:
            UsageError: no such column; the message names the nearest.
        """
        name = name if name in self.table.column_names else compose_letters(name)
        if name not in self.table.column_names:
            keep = "" if name in KNOWN else f"; `dinomed scan --keep {name}` keeps it of a table of labels"
            raise UsageError(f"{self.called} has no column {name!r}{did_you_mean(name, self.columns)}{keep}")
        return list(self.table[name].to_pylist())

    def groups(self) -> list[str | None]:
        """Return the group of each image (patient, lesion or video), None where it is unknown."""
        return self.column("group") if "group" in self.table.column_names else [None] * len(self)

    def units(self) -> list[str]:
        """Return a name for the independent unit of each image, for splits and statistics.

        The unit is the group. An image whose group is unknown is a unit of its own, named by its path; images with the
        same bytes and no group are one unit, named by the first path.
        """
        groups = self.groups()
        group_names = {group for group in groups if group is not None}
        first_paths: dict[str, str] = {}
        units = []
        for image, content, group in zip(self.column("image"), self.column("sha256"), groups, strict=True):
            path = first_paths.setdefault(content, image)
            alone = f"image\0{path}" if path in group_names else path  # a group may be called like a path
            units.append(alone if group is None else group)
        return units

    def path(self, index: int) -> Path:
        """Return the path of an image."""
        return self.root / self.table["image"][index].as_py()

    def stamps(self) -> list[tuple[int, str, int | None]]:
        """Return for each image what `dinomed.images.unchanged.check_unchanged` compares: bytes, SHA-256 and time."""
        times = map(self.file_times.get, self.column("image"))
        return list(zip(self.column("bytes"), self.column("sha256"), times, strict=True))

    def classes(self, column: str = "label") -> list[str]:
        """Return the distinct values of a label column, sorted."""
        return sorted({value for value in self.column(column) if value is not None})

    def take(self, indices: Sequence[int]) -> "Manifest":
        """Return the rows at `indices`, in that order."""
        return replace(self, table=self.table.take(build_array(indices, NUMBER)))

    def select(self, **values: str) -> "Manifest":
        """Return the rows where each named column has this value: ``manifest.select(split="train")``."""
        wanted = tuple(values.values())
        rows = zip(*(self.column(name) for name in values), strict=True)
        return self.take([i for i, row in enumerate(rows) if row == wanted])

    def kept(self) -> "Manifest":
        """Return the rows with ``keep = true``; all rows without a column `keep`. An empty cell counts as false."""
        if "keep" not in self.table.column_names:
            return self
        return self.take([i for i, keep in enumerate(self.column("keep")) if keep])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the paths and content hashes of the images, in their order."""
        digest = hashlib.sha256()
        for image, content in zip(self.column("image"), self.column("sha256"), strict=True):
            digest.update(f"{image}\0{content}\n".encode())
        return digest.hexdigest()


def build_manifest(columns: dict[str, list[Any]], root: Path) -> Manifest:
    """Build a manifest of columns: known columns first, in the order of `KNOWN`, then the others as text."""
    names = [name for name in KNOWN if name in columns] + [name for name in columns if name not in KNOWN]
    return Manifest(pa.table({name: build_array(columns[name], _kind(name)) for name in names}), root)


def write_manifest(manifest: Manifest, path: str | Path) -> None:
    """Write Parquet, or CSV for a name that ends in .csv. Atomic; equal manifests at one place give equal bytes."""
    root = relative_root(manifest.root, Path(path).parent)
    if Path(path).suffix.lower() == ".csv":
        table = manifest.table
        if root != ".":
            table = table.append_column("root", build_array([root] * len(manifest), TEXT))
        write_csv(path, table.column_names, zip(*(column.to_pylist() for column in table.columns), strict=True))
        return
    with replacing(path) as temporary:
        pq.write_table(manifest.table.replace_schema_metadata({_ROOT: root.encode()}), temporary, compression="zstd")


def read_manifest(path: str | Path, root: str | Path | None = None) -> Manifest:
    """Read a manifest; the content tells Parquet from CSV.

    Args:
        root: root folder of the paths; by default the folder that the manifest names.

    Raises:
        UsageError: the file does not exist or is no manifest, a required column is missing, an image is listed twice,
            a path leaves the root, or the root does not exist.
        DinomedError: the file is damaged.
    """
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder; make a manifest of it: dinomed scan {path} -o OUT.parquet")
    if not path.is_file():
        raise MissingInputError(f"manifest {path} does not exist")
    table, named_root = _read_parquet(path) if _is_parquet(path) else _read_csv_table(path)
    _check_paths(path, table, "image")
    if "mask" in table.column_names:
        _check_paths(path, table, "mask")
    base = path.parent / (named_root or ".") if root is None else Path(root)
    if named_root is None and root is None and len(table) and not image_file(base / table["image"][0].as_py()).exists():
        raise UsageError(
            f"{path} names no image folder, and the images are not beside it; add a column 'root' with the "
            "folder (tools such as pandas lose it when they rewrite a manifest)"
        )
    if not base.is_dir():
        raise MissingInputError(
            f"{path}: its image folder {base} does not exist; move the manifest and the images together"
        )
    return Manifest(table, base, path)


def is_manifest(path: str | Path) -> bool:
    """Return whether a file is to be read as a manifest: Parquet by content, or CSV by name."""
    return _is_parquet(Path(path)) or Path(path).suffix.lower() == ".csv"


def leaves_root(path: str, windows: bool = os.name == "nt") -> bool:
    """Return whether a path of a manifest leaves the root: absolute on any system, or with ``..``.

    On Windows, drive letters and ``..`` between backslashes count too; other systems allow both in names.

    >>> leaves_root("a:1.png", windows=False), leaves_root("a:1.png", windows=True)
    (False, True)
    """
    place = PureWindowsPath(path) if windows else PurePosixPath(path)
    absolute = path.startswith(("/", "\\")) or path[1:3] == ":\\"
    return not place.parts or absolute or bool(place.drive) or ".." in place.parts


def relative_root(root: Path, folder: Path) -> str:
    """Return the path from `folder` to `root` with ``/``; the absolute path if they lie on different drives."""
    try:
        return Path(os.path.relpath(root.resolve(), folder.resolve())).as_posix()
    except ValueError:  # different drives (Windows)
        return root.resolve().as_posix()


def build_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Build an Arrow array without `pa.array`, which imports pandas (more than a second)."""
    if kind == NUMBER:
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.array(values, np.int64))])
    if kind == TRUTH:
        bits = np.packbits(np.array([bool(value) for value in values], bool), bitorder="little")
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(bits)])
    builder = pa.lib.StringBuilder()
    builder.append_values(values)
    return builder.finish()


def _kind(name: str) -> pa.DataType:
    return TYPES.get(name, TEXT)


def _is_parquet(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PAR1"
    except OSError:
        return False


def _read_parquet(path: Path) -> tuple[pa.Table, str | None]:
    """Return the table and the root that it names."""
    try:
        table = read_parquet(path, path)
    except (pa.ArrowException, OSError) as error:
        remedy = "scan the images again, or copy it again"
        raise DinomedError(f"manifest {path} is damaged or cut off ({first_line(error)}); {remedy}") from None
    root_bytes = (table.schema.metadata or {}).get(_ROOT)
    try:
        root = None if root_bytes is None else root_bytes.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{path}: its image folder is not UTF-8 text; scan the folder again") from None
    table = table.replace_schema_metadata(None)
    if root is None and "root" in table.column_names:
        root = _only_root(path, set(table["root"].to_pylist()))
        table = table.drop_columns("root")
    return _typed(path, table), root


def _only_root(path: Path, roots: set[Any]) -> str | None:
    if len(roots) > 1:
        raise UsageError(f"{path}: column 'root' differs between rows; use one root folder for all")
    root = next(iter(roots), None)
    return None if root is None else str(root) or None


def _read_csv_table(path: Path) -> tuple[pa.Table, str]:
    """Return the table and the root that it names, by default the folder of the CSV."""
    if path.suffix.lower() == ".parquet":
        raise UsageError(f"manifest {path} is damaged or no Parquet file; scan the images again, or copy it again")
    names, rows = read_csv(path)
    columns: dict[str, list[str | None]] = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    roots = set(columns.pop("root", [])) if "sha256" in columns else set()
    table = _typed(path, pa.table({name: build_array(values, TEXT) for name, values in columns.items()}))
    return table, _only_root(path, roots) or "."


def _typed(path: Path, table: pa.Table) -> pa.Table:
    """Cast the known columns, and compose the letters of all names; raise a `UsageError` for wrong columns."""
    names = [compose_letters(name) for name in table.column_names]
    table = table.rename_columns(names)
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        raise UsageError(f"{path}: column {duplicate!r} occurs twice; rename or remove one")
    if "image" in names and "sha256" not in names:
        raise UsageError(
            f"{path} is a table of labels, not a manifest; make one: dinomed scan FOLDER --labels {path} -o OUT.parquet"
        )
    for name in FIXED:
        if name not in names:
            raise UsageError(f"{path} is not a manifest: no column {name!r}{did_you_mean(name, names)}")
    try:
        for name in (name for name in KNOWN if name in names):
            table = table.set_column(names.index(name), name, table[name].cast(_kind(name)))
            if name in (*FIXED, *SAMPLES) and table[name].null_count:
                raise UsageError(f"{path}: column {name!r} has an empty cell")
    except pa.ArrowException as error:
        raise UsageError(f"{path}: column {name!r}: {first_line(error)}") from None
    for place, name in enumerate(names):
        if name not in KNOWN:
            table = table.set_column(place, name, _plain(table[name]))
    return table


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of text, numbers or truth values as it is, and one of another type as text: dates, times,
    decimals and categories as Arrow writes them, nested values as JSON."""
    kind = column.type
    if any(test(kind) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)):
        return column
    try:
        return column.cast(TEXT)
    except pa.ArrowException:  # nested, or bytes
        values = column.to_pylist()
        return pa.chunked_array([
            build_array([None if value is None else json.dumps(value, default=str) for value in values], TEXT)
        ])  # fmt: skip


def _check_paths(path: Path, table: pa.Table, column: str) -> None:
    values = table[column].to_pylist()
    if column == "image" and len(set(values)) < len(values):
        raise UsageError(
            f"{path}: image {Counter(values).most_common(1)[0][0]!r} is listed twice; each image has one row"
        )
    for value in values:
        if value is not None and leaves_root(value):
            raise UsageError(
                f"{path}: {column} {value!r} leaves the folder of the images; use paths relative to that folder"
            )
