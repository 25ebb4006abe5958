"""The images of a curation in one table: pool, query sets, and excluded images."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from dinomed.datasets.manifest import TEXT, TYPES, Manifest, build_array
from dinomed.datasets.rebase import rebase
from dinomed.errors import UsageError

HELD_OUT = ("val", "test")
COLUMNS = ("keep", "reason", "duplicate_of", "component", "source")
"""Columns that a curation adds to a manifest."""


@dataclass(frozen=True)
class NamedManifest:
    """A manifest and its name: the file name without suffix."""

    name: str
    manifest: Manifest


@dataclass(frozen=True)
class QuerySet:
    """A query set (option --trusted); `rows` are its images."""

    name: str
    rows: np.ndarray  # int64, ascending


@dataclass(frozen=True)
class Pool:
    """N images: the pool in its order, then the query images that are not in the pool. R excluded images."""

    manifest: Manifest  # N rows with a common root
    pool_size: int  # the first `pool_size` rows are the images of the pool
    query_sets: tuple[QuerySet, ...]
    paths: list[str]  # N paths as in the manifest that an image comes from
    groups: list[tuple[str, ...]]  # N; an image of several sets is in the groups of all
    references: Manifest | None  # R excluded images
    reference_groups: list[str | None]  # R
    reference_sets: list[str]  # R names of excluded sets

    def __len__(self) -> int:
        return len(self.manifest)

    @property
    def is_query(self) -> np.ndarray:
        """Images of query sets, bool (N,)."""
        out = np.zeros(len(self), bool)
        for query_set in self.query_sets:
            out[query_set.rows] = True
        return out


@dataclass(frozen=True)
class _RepeatedImages:
    """Images of a query set that have a row already."""

    manifest: Manifest
    rows: list[int]  # the row of each image


def build_pool(
    pool: NamedManifest, trusted: Sequence[NamedManifest], exclude: Sequence[NamedManifest], *, hold_out: bool = True
) -> Pool:
    """Join the pool, the query sets and the excluded sets.

    A query image that is also in the pool (same path or same content) is one row, in the pool. Its empty cells are
    filled from the query set, and it is in the groups of both.

    Args:
        trusted: query sets.
        exclude: excluded sets.
        hold_out: exclude the val and test images of query sets instead of using them as queries.

    Raises:
        UsageError: a set is empty, two query sets have the same name, or every image of the pool is in a query set.
    """
    for named in (pool, *trusted, *exclude):
        if not len(named.manifest):
            raise UsageError(f"{named.name} has no images (or none with keep = true)")
    names = [named.name for named in trusted]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"two trusted sets are called {repeated[0]!r}; give them different file names")
    splits = [_hold_out(named) if hold_out else (named, None) for named in trusted]
    queries = [training for training, _ in splits if training is not None]
    excluded = [*exclude, *(held_out for _, held_out in splits if held_out is not None)]
    root = _common_root([pool.manifest, *(named.manifest for named in queries)])
    base = rebase(pool.manifest, root)
    known_paths = {path: row for row, path in enumerate(base.column("image"))}
    known_contents: dict[str, int] = {}
    for row, digest in enumerate(base.column("sha256")):
        known_contents.setdefault(digest, row)
    parts, query_sets, count = [base], [], len(base)
    paths, groups = pool.manifest.column("image"), [_without_none(group) for group in pool.manifest.groups()]
    repeated_images: list[_RepeatedImages] = []
    for named in queries:
        moved = rebase(named.manifest, root)
        set_groups, set_paths = named.manifest.groups(), named.manifest.column("image")
        rows: list[int] = []
        new: list[int] = []
        again: dict[int, int] = {}
        for index, (path, digest) in enumerate(zip(moved.column("image"), moved.column("sha256"), strict=True)):
            row = known_paths.get(path, known_contents.get(digest, -1))
            if row < 0:
                row = count + len(new)
                new.append(index)
                groups.append(())
            else:
                again[index] = row
            groups[row] = tuple(dict.fromkeys([*groups[row], *_without_none(set_groups[index])]))
            known_paths.setdefault(path, row)
            rows.append(row)
        parts.append(moved.take(new))
        repeated_images.append(_RepeatedImages(moved.take(list(again)), list(again.values())))
        paths += [set_paths[index] for index in new]
        query_sets.append(QuerySet(named.name, np.unique(np.array(rows, np.int64))))
        count += len(new)
    if query_sets and len({row for q in query_sets for row in q.rows.tolist() if row < len(base)}) == len(base):
        raise UsageError(
            f"every image of {pool.name} is in a trusted set: there is nothing to retrieve; leave `query_sets` out to "
            "clean and balance it, or give another pool"
        )
    references = None
    if excluded:
        reference_root = _common_root([named.manifest for named in excluded])
        references = _joined([rebase(named.manifest, reference_root) for named in excluded])
    return Pool(
        _filled(_joined(parts), repeated_images), len(base), tuple(query_sets), paths, groups, references,
        [group for named in excluded for group in named.manifest.groups()],
        [named.name for named in excluded for _ in range(len(named.manifest))],
    )  # fmt: skip


def _without_none(group: str | None) -> tuple[str, ...]:
    return () if group is None else (group,)


def _filled(manifest: Manifest, repeated_images: Sequence[_RepeatedImages]) -> Manifest:
    """Fill the empty cells of rows from the query sets that hold the same images, the first set first."""
    table = manifest.table
    for repeated in repeated_images:
        source = _joined([repeated.manifest]).table
        for name in source.column_names if repeated.rows else ():
            if name in TYPES:
                continue
            cells = table[name].to_pylist()
            for row, value in zip(repeated.rows, source[name].to_pylist(), strict=True):
                if cells[row] is None:
                    cells[row] = value
            table = table.set_column(table.column_names.index(name), name, build_array(cells, TEXT))
    return replace(manifest, table=table)


def _hold_out(named: NamedManifest) -> tuple[NamedManifest | None, NamedManifest | None]:
    """Split a query set into (queries, val and test images)."""
    if not named.manifest.has("split"):
        return named, None
    is_held_out = np.array([split in HELD_OUT for split in named.manifest.column("split")])
    training, held_out = (named.manifest.take(np.flatnonzero(mask).tolist()) for mask in (~is_held_out, is_held_out))
    if not len(training):
        raise UsageError(
            f"{named.name} holds only val and test images, which are no queries; give training images, or "
            "`settings=['hold_out=false']`"
        )
    return (
        NamedManifest(named.name, training),
        NamedManifest(f"{named.name} (val and test)", held_out) if len(held_out) else None,
    )


def _common_root(manifests: Sequence[Manifest]) -> Path:
    try:
        return Path(os.path.commonpath([manifest.root.resolve() for manifest in manifests]))
    except ValueError:  # on several drives (Windows)
        raise UsageError("the sets lie on several drives; put their images on one") from None


def _joined(parts: Sequence[Manifest]) -> Manifest:
    """Concatenate manifests. A column that a manifest lacks is null there; `COLUMNS` of an earlier curation go."""
    tables = []
    for part in parts:
        table = part.table.drop_columns([name for name in COLUMNS if name in part.table.column_names])
        for index, name in enumerate(table.column_names):
            if name not in TYPES and table[name].type != pa.string():
                table = table.set_column(index, name, table[name].cast(pa.string()))
        tables.append(table)
    table = pa.concat_tables(tables, promote_options="default").combine_chunks()
    partial = [name for name in TYPES if name in table.column_names and table[name].null_count]
    decoded = all(part.decoded for part in parts)
    return Manifest(table.drop_columns(partial), parts[0].root, decoded=decoded)
