"""The images that a curation is about, brought into one table: pool, trusted sets, and what has to stay out."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from dinomed.datasets.manifest import TYPES, Manifest
from dinomed.errors import UsageError
from dinomed.pretrain.curation.output.read import COLUMNS

HELD_OUT = ("val", "test")


@dataclass(frozen=True)
class Named:
    """A manifest and what it is called: its file without folder and suffix."""

    name: str
    manifest: Manifest


@dataclass(frozen=True)
class QuerySet:
    """A trusted set: the rows of the pile that it asks with."""

    name: str
    rows: np.ndarray  # int64, ascending


@dataclass(frozen=True)
class Pile:
    """N images: those of the pool, in its order, then trusted ones that are not in it; and R that have to stay out."""

    manifest: Manifest  # N rows, of one root
    pool: int  # of them, the first so many are the pool's
    trusted: tuple[QuerySet, ...]
    paths: list[str]  # N, as the manifest has them that an image comes from
    groups: list[str | None]  # N, those that somebody gave
    references: Manifest | None  # R rows
    reference_groups: list[str | None]
    reference_sets: list[str]  # R names

    def __len__(self) -> int:
        return len(self.manifest)

    @property
    def is_trusted(self) -> np.ndarray:
        """bool (N,)"""
        out = np.zeros(len(self), bool)
        for queries in self.trusted:
            out[queries.rows] = True
        return out


def build_pile(pool: Named, trusted: Sequence[Named], exclude: Sequence[Named], *, hold_out: bool = True) -> Pile:
    """Join the sets.

    A trusted image that the pool holds too (the same path, or the same content) is that image of the pool.

    Args:
        hold_out: val and test images of trusted sets are put with those that stay out, and ask for nothing.

    Raises:
        UsageError: an empty set, two trusted sets of one name, or a pool that is nothing but the trusted sets.
    """
    for given in (pool, *trusted, *exclude):
        if not len(given.manifest):
            raise UsageError(f"{given.name} has no images (or none with keep = true)")
    names = [given.name for given in trusted]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"two trusted sets are called {twice[0]!r}; give them different file names")
    held = [_held_out(given) if hold_out else (given, None) for given in trusted]
    asking = [own for own, _ in held if own is not None]
    out = [*exclude, *(aside for _, aside in held if aside is not None)]
    root = _common_root([pool.manifest, *(given.manifest for given in asking)])
    base = _rebased(pool.manifest, root)
    known_paths = {path: row for row, path in enumerate(base.column("image"))}
    known_contents: dict[str, int] = {}
    for row, digest in enumerate(base.column("sha256")):
        known_contents.setdefault(digest, row)
    parts, queries, count = [base], [], len(base)
    paths, groups = pool.manifest.column("image"), pool.manifest.groups()
    for given in asking:
        moved = _rebased(given.manifest, root)
        rows: list[int] = []
        new: list[int] = []
        for index, (path, digest) in enumerate(zip(moved.column("image"), moved.column("sha256"), strict=True)):
            row = known_paths.get(path, known_contents.get(digest, -1))
            if row < 0:
                row = count + len(new)
                new.append(index)
            known_paths.setdefault(path, row)
            rows.append(row)
        own, own_paths = given.manifest.groups(), given.manifest.column("image")
        parts.append(moved.take(new))
        groups += [own[index] for index in new]
        paths += [own_paths[index] for index in new]
        queries.append(QuerySet(given.name, np.unique(np.array(rows, np.int64))))
        count += len(new)
    if queries and len({row for one in queries for row in one.rows.tolist() if row < len(base)}) == len(base):
        raise UsageError(
            f"every image of {pool.name} is in a trusted set: there is nothing to retrieve; leave --trusted out to "
            "clean and balance it, or give another pool"
        )
    references = (
        None if not out else _joined([_rebased(g.manifest, _common_root([o.manifest for o in out])) for g in out])
    )
    return Pile(
        _joined(parts), len(base), tuple(queries), paths, groups, references,
        [group for given in out for group in given.manifest.groups()],
        [given.name for given in out for _ in range(len(given.manifest))],
    )  # fmt: skip


def _held_out(given: Named) -> tuple[Named | None, Named | None]:
    """(what asks, what stays out) of a trusted set."""
    if not given.manifest.has("split"):
        return given, None
    aside = np.array([split in HELD_OUT for split in given.manifest.column("split")])
    own, out = (given.manifest.take(np.flatnonzero(chosen).tolist()) for chosen in (~aside, aside))
    if not len(own):
        raise UsageError(
            f"{given.name} holds only val and test images, which ask for nothing; give training images, or "
            "--set hold_out=false"
        )
    return Named(given.name, own), Named(f"{given.name} (val and test)", out) if len(out) else None


def _common_root(manifests: Sequence[Manifest]) -> Path:
    try:
        return Path(os.path.commonpath([manifest.root.resolve() for manifest in manifests]))
    except ValueError:  # on several drives (Windows)
        raise UsageError("the sets lie on several drives; put their images on one") from None


def _rebased(manifest: Manifest, root: Path) -> Manifest:
    """Return the same images with paths relative to a folder above their root."""
    below = os.path.relpath(manifest.root.resolve(), root)
    if below == ".":
        return manifest
    prefix = Path(below).as_posix() + "/"
    table = manifest.table
    for name in ("image", "mask"):
        if name in table.column_names:
            values = [None if value is None else prefix + value for value in table[name].to_pylist()]
            table = table.set_column(table.column_names.index(name), name, _text(values))
    return Manifest(table, root)


def _joined(parts: Sequence[Manifest]) -> Manifest:
    """One below the other: the columns of all, empty where a set has none; without what an earlier curation added."""
    tables = []
    for part in parts:
        table = part.table.drop_columns([name for name in COLUMNS if name in part.table.column_names])
        for index, name in enumerate(table.column_names):
            if name not in TYPES and table[name].type != pa.string():
                table = table.set_column(index, name, table[name].cast(pa.string()))
        tables.append(table)
    table = pa.concat_tables(tables, promote_options="default").combine_chunks()
    partial = [name for name in TYPES if name in table.column_names and table[name].null_count]
    return Manifest(table.drop_columns(partial), parts[0].root)


def _text(values: Sequence[str | None]) -> pa.Array:
    builder = pa.lib.StringBuilder()
    builder.append_values(values)
    return builder.finish()
