"""Manifests with another root: all paths in their columns become relative to it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dinomed.datasets.manifest import KNOWN, TEXT, Manifest, build_array, relative_root

PATHS = ("image", "mask")


def rebase(manifest: Manifest, root: Path) -> Manifest:
    """Return the same images with paths relative to `root`, which contains the root of the manifest.

    Paths are in the columns `PATHS`, and in those of the other columns that hold only names of files, such as depth
    maps and the masks of a class.
    """
    prefix = relative_root(manifest.root, root)
    if prefix == ".":
        return replace(manifest, root=root)
    table = manifest.table
    for place, name in enumerate(table.column_names):
        cells = table[name].to_pylist() if name in PATHS or name not in KNOWN else []
        if name in PATHS or _are_files(manifest.root, cells):
            moved = [None if cell is None else f"{prefix}/{cell}" for cell in cells]
            table = table.set_column(place, name, build_array(moved, TEXT))
    times = {f"{prefix}/{name}": time for name, time in manifest.file_times.items()}
    return replace(manifest, table=table, root=root, file_times=times)


def _are_files(root: Path, cells: Sequence[Any]) -> bool:
    """Return whether the cells of a column, without the empty ones, are all paths of files below `root`."""
    present = [cell for cell in cells if cell is not None]
    return bool(present) and all(isinstance(cell, str) and (root / cell).is_file() for cell in present)
