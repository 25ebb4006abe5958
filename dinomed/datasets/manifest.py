"""The manifest: one table of images, the form in which every job takes and hands on its data.

A row is an image. Always there: `image` (path relative to the root, with ``/``), `sha256` of the file, `width` and
`height` in pixels (upright), `mode`, `format`, `bytes`. Where known: `channels` and `bits` of a sample as stored
(`dinomed.images.decode.Header`; older manifests lack them), `group` (patient, lesion or video: never in two
splits), `split` (train, val, test), `label`, `mask` (relative path), `keep` (true or false: `dinomed curate`), and free
columns of text from the user's CSV, where a number stays as it is written. An empty cell is null.

The root is kept relative to the manifest's own folder, so that both move together: in Parquet in the schema's
metadata, in CSV in a column `root`, which is left out where the images lie in the CSV's own folder. Parquet that
another tool rewrote has lost the metadata; such a column does there, too.
"""

import hashlib
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dinomed.datasets.tables import read_csv, write_csv
from dinomed.errors import DinomedError, UsageError, did_you_mean
from dinomed.io.files import replacing

TEXT, NUMBER, TRUTH = pa.string(), pa.int64(), pa.bool_()
FIXED: dict[str, pa.DataType] = {
    "image": TEXT, "sha256": TEXT, "width": NUMBER, "height": NUMBER, "mode": TEXT, "format": TEXT, "bytes": NUMBER,
}  # fmt: skip
SAMPLES: dict[str, pa.DataType] = {"channels": NUMBER, "bits": NUMBER}
KNOWN = (*FIXED, *SAMPLES, "group", "split", "label", "mask", "keep")
TYPES = FIXED | SAMPLES | {"keep": TRUTH}
"""Of the columns that are not text."""
RESERVED = (*KNOWN, "root")
"""Names that a user's own column cannot have."""
_ROOT = b"dinomed.root"


@dataclass(frozen=True)
class Manifest:
    """A table of images and the folder that their paths start from; see the module for the columns."""

    table: pa.Table
    root: Path
    source: Path | None = field(default=None, compare=False)  # the path that was opened: manifest, folder or image
    unreadable: tuple[tuple[str, str], ...] = field(default=(), compare=False)  # files of the folder, with reasons

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def columns(self) -> list[str]:
        return list(self.table.column_names)

    @property
    def called(self) -> str:
        """What a message calls it: as it was given."""
        if self.source is None:
            return "the manifest"
        return f"folder {self.source}" if self.source.is_dir() else str(self.source)

    def scan_again(self, options: str = "") -> str:
        """The command that makes a manifest of its images with these options, for a message."""
        words = ["dinomed scan", shlex.quote(str(self.root)), options, "-o M.parquet"]
        then = ", and give M.parquet" if self.source is not None and self.source.is_dir() else ""
        return " ".join(word for word in words if word) + then

    def has(self, name: str) -> bool:
        """Whether the column is there and holds any value."""
        return name in self.table.column_names and self.table[name].null_count < len(self)

    def column(self, name: str) -> list[Any]:
        """The values of a column, None where empty. An unknown column is a `UsageError` naming the nearest."""
        if name not in self.table.column_names:
            raise UsageError(f"{self.called} has no column {name!r}{did_you_mean(name, self.table.column_names)}")
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
        return self.root / self.table["image"][index].as_py()

    def mask_path(self, index: int) -> Path | None:
        mask = self.table["mask"][index].as_py() if "mask" in self.table.column_names else None
        return None if mask is None else self.root / mask

    def classes(self, column: str = "label") -> list[str]:
        """The distinct values of a label column, sorted."""
        return sorted({value for value in self.column(column) if value is not None})

    def take(self, indices: Sequence[int]) -> "Manifest":
        """The rows at `indices`, in that order."""
        return replace(self, table=self.table.take(_array(indices, NUMBER)))

    def select(self, **values: str) -> "Manifest":
        """The rows where each named column has the given value: ``manifest.select(split="train")``."""
        wanted = tuple(values.values())
        rows = zip(*(self.column(name) for name in values), strict=True)
        return self.take([i for i, row in enumerate(rows) if row == wanted])

    def kept(self) -> "Manifest":
        """The rows that a curation keeps; all, where none was made. A cell that was emptied keeps nothing."""
        if "keep" not in self.table.column_names:
            return self
        return self.take([i for i, keep in enumerate(self.column("keep")) if keep])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the paths and contents of the images, in their order."""
        digest = hashlib.sha256()
        for image, content in zip(self.column("image"), self.column("sha256"), strict=True):
            digest.update(f"{image}\0{content}\n".encode())
        return digest.hexdigest()


def build_manifest(columns: dict[str, list[Any]], root: Path) -> Manifest:
    """A manifest of columns: the known ones first, in their order, then the free ones as text."""
    names = [name for name in KNOWN if name in columns] + [name for name in columns if name not in KNOWN]
    return Manifest(pa.table({name: _array(columns[name], _kind(name)) for name in names}), root)


def write_manifest(manifest: Manifest, path: str | Path) -> None:
    """Write Parquet, or CSV if the name ends so; atomic, and the same bytes for the same manifest and place."""
    path = Path(path)
    root = relative_root(manifest.root, path.parent)
    if path.suffix.lower() == ".csv":
        table = manifest.table
        if root != ".":
            table = table.append_column("root", _array([root] * len(manifest), TEXT))
        write_csv(path, table.column_names, zip(*(column.to_pylist() for column in table.columns), strict=True))
        return
    with replacing(path) as temporary:
        pq.write_table(manifest.table.replace_schema_metadata({_ROOT: root.encode()}), temporary, compression="zstd")


def read_manifest(path: str | Path, root: str | Path | None = None) -> Manifest:
    """Read a manifest, Parquet or CSV by content.

    Args:
        root: the folder that the paths start from; by default the one that the manifest names.

    Raises:
        UsageError: no such file, not a manifest, a column is missing, an image is there twice, a path leaves the root,
            the root is not there.
    """
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder; make a manifest of it: dinomed scan {path} -o OUT.parquet")
    if not path.is_file():
        raise UsageError(f"manifest {path} does not exist")
    table, named = _read_parquet(path) if _is_parquet(path) else _read_csv_table(path)
    _check_paths(path, table, "image")
    if "mask" in table.column_names:
        _check_paths(path, table, "mask")
    base = path.parent / (named or ".") if root is None else Path(root)
    if named is None and root is None and len(table) and not (base / table["image"][0].as_py()).exists():
        raise UsageError(
            f"{path} does not say where its images are, and they are not beside it; add a column 'root' with their "
            "folder (tools that rewrite a manifest, as pandas does, leave it out)"
        )
    if not base.is_dir():
        raise UsageError(f"{path}: its images are expected in {base}, which does not exist; move it back beside them")
    return Manifest(table, base, path)


def is_manifest(path: str | Path) -> bool:
    """Whether a file is one that `read_manifest` should be tried on: Parquet by content, or named .csv."""
    return _is_parquet(Path(path)) or Path(path).suffix.lower() == ".csv"


def leaves_root(path: str, windows: bool = os.name == "nt") -> bool:
    """Whether a path of a manifest does not stay below the root: absolute (of either system), or climbing by ``..``.

    On Windows any drive and ``..`` between backslashes count too; elsewhere names may be so.

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


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """As `pa.array`, which would import pandas to see whether it was given some: more than a second, for nothing."""
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
    """The table, and the root that is noted in it."""
    try:
        with pq.ParquetFile(path) as file:  # `pq.read_table` imports pandas
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise DinomedError(f"manifest {path} is damaged or cut off ({str(error).splitlines()[0][:100]})") from None
    noted = (table.schema.metadata or {}).get(_ROOT)
    named = None if noted is None else noted.decode()
    table = table.replace_schema_metadata(None)
    if named is None and "root" in table.column_names:
        named = _only_root(path, set(table["root"].to_pylist()))
        table = table.drop_columns("root")
    return _typed(path, table), named


def _only_root(path: Path, roots: set[Any]) -> str | None:
    if len(roots) > 1:
        raise UsageError(f"{path}: column 'root' has to be the same in every row")
    root = next(iter(roots), None)
    return None if root is None else str(root) or None


def _read_csv_table(path: Path) -> tuple[pa.Table, str]:
    """The table, and the root that is noted in it, or the CSV's own folder."""
    names, rows = read_csv(path)
    columns: dict[str, list[str | None]] = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    roots = set(columns.pop("root", [])) if "sha256" in columns else set()
    table = _typed(path, pa.table({name: _array(values, TEXT) for name, values in columns.items()}))
    return table, _only_root(path, roots) or "."


def _typed(path: Path, table: pa.Table) -> pa.Table:
    """The known columns in their types; a `UsageError` names what is missing."""
    names = table.column_names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{path}: column {twice!r} twice")
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
        raise UsageError(f"{path}: column {name!r}: {str(error).splitlines()[0]}") from None
    return table


def _check_paths(path: Path, table: pa.Table, column: str) -> None:
    values = table[column].to_pylist()
    if column == "image" and len(set(values)) < len(values):
        raise UsageError(f"{path}: image {Counter(values).most_common(1)[0][0]!r} twice; an image is one row")
    for value in values:
        if value is not None and leaves_root(value):
            raise UsageError(f"{path}: {column} {value!r} leaves the folder of the images; paths are relative to it")
