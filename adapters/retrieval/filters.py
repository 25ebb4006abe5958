"""Conditions on the manifest of an index, and the images of the same group as a query."""

import operator
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.datasets.manifest import Manifest
from dinomed.datasets.tables import compose_letters
from dinomed.errors import UsageError, did_you_mean
from dinomed.images.decode import UnreadableImage
from dinomed.io.files import sha256_file
from dinomed.log import logger

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")
_FORM = re.compile(r"\s*([^=<>!]+?)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*", re.DOTALL)


@dataclass(frozen=True)
class Condition:
    """A condition on a column, such as ``sex=male``, ``sex!=male`` or ``age>=50``. An empty cell never meets it. Texts
    are equal in any Unicode form.
    """

    column: str
    sign: str
    value: str

    def __str__(self) -> str:
        return f"{self.column}{self.sign}{self.value}"

    def met_by(self, manifest: Manifest) -> np.ndarray:
        """Return for each row whether it meets the condition, bool (N,).

        Raises:
            UsageError: no such column, a value that no row has, or an order comparison without numbers.
        """
        cells = [None if cell is None else compose_letters(str(cell)) for cell in manifest.column(self.column)]
        if self.sign in _COMPARISONS:
            return self._compare(cells)
        known = {cell for cell in cells if cell is not None}
        value = compose_letters(self.value)
        if value not in known:
            raise UsageError(f"`where={self}`: no image has {value!r} there{did_you_mean(value, known)}")
        is_equality = self.sign == "="
        return np.array([cell is not None and (cell == value) == is_equality for cell in cells], bool)

    def _compare(self, cells: list[str | None]) -> np.ndarray:
        bound, numbers = _number(self.value), [None if cell is None else _number(cell) for cell in cells]
        if bound is None:
            raise UsageError(f"`where={self}`: {self.value!r} is no number")
        comma = next((cell for cell in cells if cell is not None and _COMMA.fullmatch(cell)), None)
        if comma is not None:  # beside whole numbers, such cells would be left out without a word
            raise UsageError(
                f"`where={self}`: column {self.column!r} holds {comma!r}; write its numbers with a point and "
                "without separators of thousands, then scan and index again"
            )
        if not any(number is not None for number in numbers):
            raise UsageError(f"`where={self}`: column {self.column!r} holds no numbers")
        compare = _COMPARISONS[self.sign]
        return np.array([number is not None and compare(number, bound) for number in numbers], bool)


def parse_conditions(texts: Iterable[str]) -> list[Condition]:
    """Parse conditions of the form ``COLUMN=VALUE`` (or !=, <, <=, >, >=); raise a `UsageError` for any other form."""
    conditions = []
    for text in texts:
        match = _FORM.fullmatch(text)
        if match is None or not match[3]:
            raise UsageError(f"`where={text}`: expected COLUMN=VALUE, such as sex=male (or !=, <, <=, >, >=)")
        conditions.append(Condition(*match.groups()))
    return conditions


def choose_rows(manifest: Manifest, conditions: Iterable[Condition]) -> np.ndarray | None:
    """Return for each row whether it meets all conditions, bool (N,); None if there are no conditions.

    Raises:
        UsageError: as `Condition.met_by`, or no image meets all conditions.
    """
    conditions = list(conditions)
    if not conditions:
        return None
    allowed = np.logical_and.reduce([condition.met_by(manifest) for condition in conditions])
    if not allowed.any():
        raise UsageError(f"`where`: no image meets all conditions: {', '.join(map(str, conditions))}; leave one out")
    return allowed


class GroupLookup:
    """Rows of a manifest that show the same image as a query, or an image of its group (patient, lesion or video)."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def rows(self, sha256: str, group: str | None = None) -> np.ndarray:
        """Return the rows with these bytes, with this group, and with the groups of the rows with these bytes.

        Returns:
            int64, sorted.
        """
        same = self._by_content.get(sha256, [])
        groups = {group, *(self._groups[row] for row in same)} - {None}
        return np.array(sorted({*same, *(row for name in groups for row in self._by_group.get(name, ()))}), np.int64)

    def is_known(self, sha256: str, group: str | None = None) -> bool:
        """Return whether the group of a query is known: it is given, or an image with the same bytes has one."""
        return group is not None or any(self._groups[row] is not None for row in self._by_content.get(sha256, ()))

    def rows_of_files(self, images: Sequence[Any]) -> list[np.ndarray]:
        """Return the rows of each image file, by its bytes; warn about images whose group is not known.

        Raises:
            UsageError: an image is not a path; only the bytes of a file name its group.
            UnreadableImage: a file does not exist or cannot be read.
        """
        for image in images:
            if not isinstance(image, str | Path):
                raise UsageError(
                    f"`exclude_same_group=True` finds the group of an image by the bytes of its file, and a "
                    f"{type(image).__name__} has none; give the path of the image"
                )
        contents = [_hash_image(image) for image in images]
        unknown = sum(not self.is_known(content) for content in contents)
        if unknown:
            logger.warning(
                f"the group of {unknown} of {len(images)} images is not known, so only the image itself is left out; "
                "search a manifest with groups (`dinomed.search`)"
            )
        return [self.rows(content) for content in contents]

    @cached_property
    def _groups(self) -> list[str | None]:
        return self._manifest.groups()

    @cached_property
    def _by_group(self) -> dict[str | None, list[int]]:
        return _rows_by_value(self._groups)

    @cached_property
    def _by_content(self) -> dict[str | None, list[int]]:
        return _rows_by_value(self._manifest.column("sha256"))


def _hash_image(path: str | Path) -> str:
    """Return the SHA-256 of an image file in 64 hex digits; raise an `UnreadableImage` if it cannot be read."""
    try:
        return sha256_file(path)
    except FileNotFoundError:
        reason = "does not exist"
    except OSError as error:
        reason = "is a folder" if Path(path).is_dir() else f"cannot be read ({error.strerror})"
    raise UnreadableImage(path, reason)


def _rows_by_value(values: Iterable[str | None]) -> dict[str | None, list[int]]:
    rows: dict[str | None, list[int]] = defaultdict(list)
    for row, value in enumerate(values):
        if value is not None:
            rows[value].append(row)
    return rows


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value == value else None
