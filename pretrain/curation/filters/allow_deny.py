"""Allow and deny lists: patterns for the path of an image, or for another column of its manifest."""

import re
from fnmatch import translate

import numpy as np

from dinomed.datasets.manifest import Manifest
from dinomed.datasets.tables import compose_letters
from dinomed.errors import UsageError, did_you_mean

Rules = dict[str, tuple[str, ...]]  # column -> patterns


def match_column(manifest: Manifest, paths: list[str], column: str, patterns: tuple[str, ...]) -> np.ndarray:
    """Return which of N rows match one of some patterns, bool (N,). A pattern must match the whole value. The Unicode
    form makes no difference.

    Args:
        paths: (N,) values of the column `image`: the paths in the manifest that each image comes from.

    Raises:
        UsageError: the manifest has no such column, or there is no pattern.
    """
    column = compose_letters(column)
    if column not in manifest.columns:
        raise UsageError(f"rules: the pool has no column {column!r}{did_you_mean(column, manifest.columns)}")
    if not patterns:
        raise UsageError(f"rules: no pattern for column {column!r}; give at least one, or leave the column out")
    test = re.compile("|".join(translate(compose_letters(pattern)) for pattern in patterns))
    values = paths if column == "image" else manifest.column(column)
    texts = (None if value is None else compose_letters(str(value)) for value in values)
    return np.fromiter((text is not None and bool(test.match(text)) for text in texts), bool, len(manifest))


def find_denied(manifest: Manifest, paths: list[str], deny: Rules) -> np.ndarray:
    """Return which rows match a pattern of any column, bool (N,)."""
    out = np.zeros(len(manifest), bool)
    for column, patterns in deny.items():
        out |= match_column(manifest, paths, column, patterns)
    return out


def find_allowed(manifest: Manifest, paths: list[str], allow: Rules) -> np.ndarray:
    """Return which rows match a pattern of every column, bool (N,)."""
    out = np.ones(len(manifest), bool)
    for column, patterns in allow.items():
        out &= match_column(manifest, paths, column, patterns)
    return out
