"""Which images of an index may be found: conditions on the columns of its manifest, and the group of the query."""

import operator
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError, did_you_mean

_ORDER: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_FORM = re.compile(r"\s*([^=<>!]+?)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*", re.DOTALL)


@dataclass(frozen=True)
class Condition:
    """``sex=male``, ``sex!=male``, ``age>=50``. An empty cell meets none of them."""

    column: str
    sign: str
    value: str

    def __str__(self) -> str:
        return f"{self.column}{self.sign}{self.value}"

    def met_by(self, manifest: Manifest) -> np.ndarray:
        """bool (N,).

        Raises:
            UsageError: no such column, a value that no row has, or an order of what is no number.
        """
        cells = [None if cell is None else str(cell) for cell in manifest.column(self.column)]
        if self.sign in _ORDER:
            return self._compare(cells)
        known = {cell for cell in cells if cell is not None}
        if self.value not in known:
            raise UsageError(f"--where {self}: no image has {self.value!r} there{did_you_mean(self.value, known)}")
        same = self.sign == "="
        return np.array([cell is not None and (cell == self.value) == same for cell in cells], bool)

    def _compare(self, cells: list[str | None]) -> np.ndarray:
        bound, numbers = _number(self.value), [None if cell is None else _number(cell) for cell in cells]
        if bound is None:
            raise UsageError(f"--where {self}: {self.value!r} is no number")
        if not any(number is not None for number in numbers):
            raise UsageError(f"--where {self}: column {self.column!r} holds no numbers")
        compare = _ORDER[self.sign]
        return np.array([number is not None and compare(number, bound) for number in numbers], bool)


def parse_conditions(texts: Iterable[str]) -> list[Condition]:
    """Raises a `UsageError` for what is not ``COLUMN=VALUE`` (or !=, <, <=, >, >=)."""
    found = []
    for text in texts:
        match = _FORM.fullmatch(text)
        if match is None or not match[3]:
            raise UsageError(f"--where {text!r}: expected COLUMN=VALUE, such as sex=male (or !=, <, <=, >, >=)")
        found.append(Condition(*match.groups()))
    return found


def choose(manifest: Manifest, conditions: Iterable[Condition]) -> np.ndarray | None:
    """The rows, bool (N,), that meet all conditions; None where there are none.

    Raises:
        UsageError: as `Condition.met_by`; or no image meets all of them.
    """
    conditions = list(conditions)
    if not conditions:
        return None
    allowed = np.logical_and.reduce([condition.met_by(manifest) for condition in conditions])
    if not allowed.any():
        raise UsageError(f"no image meets all of --where {' --where '.join(map(str, conditions))}")
    return allowed


class Relatives:
    """The rows of a manifest that are the same image as a query, or of its patient, lesion or video."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def rows(self, sha256: str, group: str | None = None) -> np.ndarray:
        """int64, sorted: rows with the same bytes, and those of `group` and of the groups of these rows."""
        same = self._by_content.get(sha256, [])
        groups = {group, *(self._groups[row] for row in same)} - {None}
        found = {*same, *(row for name in groups for row in self._by_group.get(name, ()))}
        return np.array(sorted(found), np.int64)

    def knows(self, sha256: str, group: str | None = None) -> bool:
        """Whether the group of such a query is known: told with it, or by an image of the same bytes."""
        return group is not None or any(self._groups[row] is not None for row in self._by_content.get(sha256, ()))

    @cached_property
    def _groups(self) -> list[str | None]:
        return self._manifest.groups()

    @cached_property
    def _by_group(self) -> dict[str | None, list[int]]:
        return _places(self._groups)

    @cached_property
    def _by_content(self) -> dict[str | None, list[int]]:
        return _places(self._manifest.column("sha256"))


def _places(values: Iterable[str | None]) -> dict[str | None, list[int]]:
    found: dict[str | None, list[int]] = defaultdict(list)
    for row, value in enumerate(values):
        if value is not None:
            found[value].append(row)
    return found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value == value else None
