"""Subgroups of an evaluation: the values of a column, bands of a numeric column, or pairs of two columns.

An entry of ``by`` is a column (``sex``), a column with the width of its bands (``age:10``), or a pair of both
(``sex*age:20``). An entry that is the whole name of a column is this column, even if it contains ``:`` or ``*``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinomed.datasets.manifest import FIXED, Manifest
from dinomed.datasets.tables import compose_letters
from dinomed.errors import UsageError

UNKNOWN = "not known"
MAX_VALUES, MAX_PAIRS = 30, 100
"""Largest number of different values of a column, and of pairs of values of two columns."""
_NUMBERS = 8  # a column with more different numbers than this is split at its quartiles


@dataclass(frozen=True)
class Subgroup:
    """The rows with one value; `known` is False for the rows without a value."""

    value: str
    rows: list[int]
    known: bool = True


def check_columns(manifest: Manifest, by: Sequence[str]) -> None:
    """Raise a `UsageError` for a column that is missing, is empty, is not numeric, or identifies images or patients."""
    for entry in by:
        for column, _ in _parse_entry(manifest, entry):
            manifest.column(column)  # its error names the nearest column
            if column in (*FIXED, "group", "mask", "split"):
                raise UsageError(f"`by={entry}`: {column!r} is no property of a patient or image; give another column")
            if not manifest.has(column):
                raise UsageError(f"`by={entry}`: the column is empty; leave it out")


def check_subgroups(manifest: Manifest, by: Sequence[str], split: str) -> None:
    """Raise a `UsageError` if the rows of a split cannot be divided into subgroups."""
    for entry in by:
        subgroups = split_subgroups(manifest, entry)
        if len(subgroups) > 1:
            continue
        value = subgroups[0].value if subgroups and subgroups[0].known else None
        raise UsageError(
            f"`by={entry}`: no image of split {split!r} has a value; leave it out"
            if value is None
            else f"`by={entry}`: all images of split {split!r} have the value {value!r}; two or more are needed"
        )


def split_subgroups(manifest: Manifest, entry: str) -> list[Subgroup]:
    """Divide the rows of a manifest by an entry of ``by``; rows without a value come last.

    Numbers with more than 8 different values are split at their quartiles, unless the entry gives a width. A band
    contains its lower limit and not its upper one; bands begin at multiples of the width.

    Raises:
        UsageError: the column has too many values to be a property, or bands are wanted of a column that is not
            numeric.
    """
    names, order = _name_rows(manifest, entry)
    subgroups = [Subgroup(value, [i for i, name in enumerate(names) if name == value]) for value in order]
    unknown = [i for i, name in enumerate(names) if name is None]
    return [*subgroups, *([Subgroup(UNKNOWN, unknown, known=False)] if unknown else [])]


def _name_rows(manifest: Manifest, entry: str) -> tuple[list[str | None], list[str]]:
    """Return the subgroup of each row, None where unknown, and the subgroups in order."""
    parts = [_name_values(manifest.column(name), width, entry) for name, width in _parse_entry(manifest, entry)]
    if len(parts) == 1:
        return parts[0]
    (first, first_order), (second, second_order) = parts
    names = [None if a is None or b is None else f"{a}, {b}" for a, b in zip(first, second, strict=True)]
    occurring = set(names)
    order = [name for a in first_order for b in second_order if (name := f"{a}, {b}") in occurring]
    if len(order) > MAX_PAIRS:
        raise UsageError(f"`by={entry}`: it has {len(order)} pairs, for at most {MAX_PAIRS}; give larger bands")
    return names, order


def _parse_entry(manifest: Manifest, entry: str) -> list[tuple[str, float | None]]:
    """Return the one or two columns of an entry, each with the width of its bands or None."""
    entry = compose_letters(entry)
    if entry in manifest.columns:
        return [(entry, None)]
    parts = [part.strip() for part in entry.split("*")]
    if len(parts) > 2 or not all(parts) or len(set(parts)) < len(parts):
        raise UsageError(f"`by={entry}`: give one column, or a pair of two columns as A*B")
    return [_parse_column(manifest, part, entry) for part in parts]


def _parse_column(manifest: Manifest, part: str, entry: str) -> tuple[str, float | None]:
    name, colon, text = part.rpartition(":")
    if not colon or part in manifest.columns:
        return part, None
    try:
        width = float(text)
    except ValueError:
        width = 0.0
    if not 0 < width < np.inf:
        raise UsageError(f"`by={entry}`: the width of a band is a number above 0, and {text!r} is none; give `age:10`")
    return name.strip(), width


def _name_values(values: Sequence[Any], width: float | None, entry: str) -> tuple[list[str | None], list[str]]:
    """Return the name of each value, None where unknown, and the names in order."""
    numbers = _parse_numbers(values)
    if width is None and (numbers is None or len(set(numbers[~np.isnan(numbers)])) <= _NUMBERS):
        names = [None if value is None else str(value) for value in values]
        order = sorted({name for name in names if name is not None}, key=_number_first)
    else:
        if numbers is None:
            text = next(value for value in values if value is not None and _parse_numbers([value]) is None)
            raise UsageError(f"`by={entry}`: bands need numbers, and the column holds {text!r}; leave the width out")
        names = _quartile_names(numbers) if width is None else _band_names(numbers, width)
        rising = [names[i] for i in np.argsort(numbers, kind="stable")]
        order = list(dict.fromkeys(name for name in rising if name is not None))
    if len(order) > MAX_VALUES:
        what = "different values; give a column" if width is None else "bands; give a larger width"
        raise UsageError(f"`by={entry}`: it has {len(order)} {what}, for at most {MAX_VALUES}")
    return names, order


def _parse_numbers(values: Sequence[Any]) -> np.ndarray | None:
    """Return the values as numbers, nan where unknown; None if one is no number."""
    try:
        numbers = np.array([np.nan if value is None else float(value) for value in values])
    except ValueError:
        return None
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _quartile_names(numbers: np.ndarray) -> list[str | None]:
    """Return the range between quartiles in which each number lies."""
    edges = np.unique(np.nanquantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
    which = np.clip(np.searchsorted(edges, numbers, side="left"), 1, len(edges) - 1)
    names = [f"{'from' if i == 1 else 'over'} {edges[i - 1]:.10g} to {edges[i]:.10g}" for i in range(1, len(edges))]
    return [None if np.isnan(number) else names[i - 1] for number, i in zip(numbers, which, strict=True)]


def _band_names(numbers: np.ndarray, width: float) -> list[str | None]:
    """Return the band in which each number lies."""
    which = np.floor(np.round(numbers / width, 9))  # rounded: 0.3 / 0.1 is 2.9999999999999996
    return [
        None if np.isnan(band) else f"{band * width:.10g} to under {(band + 1) * width:.10g}" for band in which.tolist()
    ]


def _number_first(name: str) -> tuple[float, str]:
    """Return the sort key of a value: numbers by size, before texts by the alphabet."""
    number = _parse_numbers([name])
    return (np.inf, name) if number is None or np.isnan(number[0]) else (float(number[0]), "")
