"""Allow and deny lists: patterns on the path of an image, or on any other column of its manifest."""

import re
from fnmatch import translate

import numpy as np

from dinomed.errors import UsageError, did_you_mean
from dinomed.pretrain.curation.pool import Pile


def matches(pile: Pile, column: str, patterns: tuple[str, ...]) -> np.ndarray:
    """Which rows match one of some patterns with a whole value, bool (N,); an empty cell matches none. Paths are as
    in the manifest that an image comes from.

    Raises:
        UsageError: the manifest has no such column.
    """
    manifest = pile.manifest
    if column not in manifest.columns:
        raise UsageError(f"rules: the pool has no column {column!r}{did_you_mean(column, manifest.columns)}")
    if not patterns:
        raise UsageError(f"rules: no pattern for column {column!r}; give at least one, or leave the column out")
    test = re.compile("|".join(translate(pattern) for pattern in patterns))
    values = pile.paths if column == "image" else manifest.column(column)
    return np.fromiter((value is not None and bool(test.match(str(value))) for value in values), bool, len(manifest))


def denied(pile: Pile, lists: dict[str, tuple[str, ...]]) -> np.ndarray:
    """Rows that any pattern of any column matches, bool (N,)."""
    out = np.zeros(len(pile), bool)
    for column, patterns in lists.items():
        out |= matches(pile, column, patterns)
    return out


def allowed(pile: Pile, lists: dict[str, tuple[str, ...]]) -> np.ndarray:
    """Rows that every column named allows, bool (N,)."""
    out = np.ones(len(pile), bool)
    for column, patterns in lists.items():
        out &= matches(pile, column, patterns)
    return out
