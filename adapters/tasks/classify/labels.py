"""Labels of a classifier in the columns of a manifest.

They are one class of several, or labels that may occur together, in one column with a separator (``a|b``) or in several
columns of 0 and 1. An empty cell in several columns is an unknown label, and is left out for this label only. An empty
cell in a single column is an image without labels, which is left out.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinomed.adapters.fitting.data import class_indices, labelled, list_names, train_classes
from dinomed.datasets.manifest import KNOWN, Manifest
from dinomed.datasets.tables import compose_letters
from dinomed.errors import UsageError
from dinomed.log import logger

_NO_LABELS = ("image", "sha256", "group", "mask", "split")
_SEPARATORS = "|;,"
_TRUE, _FALSE = ("1", "1.0", "true"), ("0", "0.0", "false")


@dataclass(frozen=True)
class LabelColumns:
    """The columns that hold the labels; with several columns, or a separator, labels may occur together."""

    columns: tuple[str, ...]
    separator: str | None = None

    @property
    def multilabel(self) -> bool:
        """Whether labels may occur together."""
        return self.separator is not None or len(self.columns) > 1

    @property
    def title(self) -> str:
        """The columns as text."""
        return ", ".join(self.columns)

    def usable(self, manifest: Manifest) -> Manifest:
        """Return the rows that have a label.

        Raises:
            UsageError: a column is missing, is empty or holds no labels; or a cell of several columns is neither 0 nor
                1.
        """
        for name in self.columns:
            if name in _NO_LABELS:
                raise UsageError(f"column {name!r} holds no labels (columns that may: {_list_columns(manifest)})")
        if len(self.columns) == 1:
            return labelled(manifest, self.columns[0])
        missing = [name for name in self.columns if compose_letters(name) not in manifest.columns]
        if missing:
            names = ", ".join(map(repr, missing))
            raise UsageError(f"no column {names} for labels {self.title} (columns: {_list_columns(manifest)})")
        table = self._cells(manifest)
        return manifest.take(np.flatnonzero(~np.isnan(table).all(axis=1)).tolist())

    def labels_of_rows(self, manifest: Manifest) -> list[tuple[str, ...]]:
        """Return the labels of each row: its class, or those of several that are present."""
        if not self.multilabel:
            return [(value,) for value in manifest.column(self.columns[0])]
        if self.separator is not None:
            return [tuple(sorted(set(names))) for names in self._split(manifest)]
        return [tuple(np.array(self.columns)[row == 1].tolist()) for row in self._cells(manifest)]

    def names(self, train: Manifest) -> list[str]:
        """Return the classes or labels of the training rows.

        Raises:
            UsageError: there is only one class, or every label has only one value.
        """
        if not self.multilabel:
            classes = train_classes(train, self.columns[0])
            _warn_joined(classes)
            return classes
        if self.separator is None:
            names, table = list(self.columns), self._cells(train)
            unknown = [name for name, column in zip(names, table.T, strict=True) if np.isnan(column).all()]
            if unknown:
                raise UsageError(f"{_list_labels(unknown)}: unknown for every training image; leave it out")
        else:
            cells = self._split(train)
            names = sorted({name for names in cells for name in names})
            table = self._marks(train, names)
            if not any(self.separator in value for value in train.column(self.columns[0])):
                logger.warning(
                    f"no cell of column {self.title!r} holds the separator {self.separator!r}: each image has one "
                    "label, but labels are treated as if they may occur together; without a separator they are classes"
                )
        flat = [name for name, column in zip(names, table.T, strict=True) if len(set(column[~np.isnan(column)])) < 2]
        if len(flat) == len(names):
            raise UsageError(
                f"every label of {self.title} has one value only in the training images; there is nothing to learn"
            )
        if flat:
            logger.warning(f"in train {_list_labels(flat)} has one value only: only its frequency is learned")
        return names

    def check_known(self, manifest: Manifest, names: Sequence[str], split: str) -> None:
        """Raise a `UsageError` if rows have classes or labels, but none of them is among `names`, those of an adapter.

        Args:
            manifest: rows with labels.
            names: classes or labels of the adapter.
            split: name of the split, for the message.
        """
        here = {name for row in self.labels_of_rows(manifest) for name in row}
        if here and not here & set(names):
            raise UsageError(
                f"no image of split {split!r} has one of the classes of the adapter: {_list_few(names)}; column "
                f"{self.title!r} has {_list_few(sorted(here))}: give images with its classes, or spell them as it does"
            )

    def read_targets(self, manifest: Manifest, names: Sequence[str], split: str) -> tuple[np.ndarray, list[str]]:
        """Read the labels of a split.

        Args:
            manifest: rows with labels.
            names: classes or labels of the training rows.
            split: name of the split, for messages.

        Returns:
            Indices, int (N,), or for labels that may occur together float (N, L) of 0, 1 and nan; and `names`, followed
            by the names that occur only here, which cannot be predicted. A warning lists them.
        """
        if not self.multilabel:
            return class_indices(manifest, self.columns[0], names, split)
        if self.separator is None:
            return self._cells(manifest), list(names)
        here = Counter(name for row in self._split(manifest) for name in row)
        unseen = sorted(set(here) - set(names))
        if unseen:
            count = sum(here[name] for name in unseen)
            logger.warning(
                f"{split} has {_list_labels(unseen)} ({count} times), unknown to training: never predicted, with no "
                "AUROC"
            )
        absent = [name for name in names if name not in here]
        if absent:
            logger.info(f"note: {split} has no image of {_list_labels(absent)}; left out of the means there")
        wide = [*names, *unseen]
        return self._marks(manifest, wide), wide

    def parse(self, column: str, cell: Any) -> str | frozenset[str] | bool | None:
        """Return what a cell of one of the columns holds: a class, labels, or whether its label is present; None for an
        empty cell.

        Raises:
            UsageError: a cell of several columns is neither 0 nor 1.
        """
        if len(self.columns) == 1:
            return cell if cell is None or self.separator is None else frozenset(self._names(cell))
        return self._present(column, cell)

    def _present(self, column: str, cell: Any) -> bool | None:
        """Return whether the label of one of several columns is present; None for an empty cell."""
        word = None if cell is None else str(cell).strip().lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        if word:
            raise UsageError(
                f"column {column!r} holds {cell!r}; of several label columns, each holds 1 (yes), 0 (no) or nothing "
                "(not known)"
            )
        return None

    def _names(self, cell: str) -> list[str]:
        assert self.separator is not None
        return [name for part in cell.split(self.separator) if (name := part.strip())]

    def _split(self, manifest: Manifest) -> list[list[str]]:
        return [self._names(cell) for cell in manifest.column(self.columns[0])]

    def _marks(self, manifest: Manifest, names: Sequence[str]) -> np.ndarray:
        place = {name: i for i, name in enumerate(names)}
        table = np.zeros((len(manifest), len(names)))
        for row, labels in enumerate(self._split(manifest)):
            table[row, [place[name] for name in labels]] = 1
        return table

    def _cells(self, manifest: Manifest) -> np.ndarray:
        table = np.full((len(manifest), len(self.columns)), np.nan)
        for index, name in enumerate(self.columns):
            for row, value in enumerate(manifest.column(name)):
                present = self._present(name, value)
                if present is not None:
                    table[row, index] = float(present)
        return table


def prevalence(targets: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """Return the number of examples of each class or label."""
    if targets.ndim == 2:
        return {name: int(np.nansum(targets[:, i])) for i, name in enumerate(names)}
    return {name: int((targets == i).sum()) for i, name in enumerate(names)}


def _warn_joined(classes: Sequence[str]) -> None:
    """Warn about a class such as ``a|b`` if ``a`` or ``b`` is a class too: such cells may hold several labels."""
    known = set(classes)
    for separator in _SEPARATORS:
        for name in (name for name in classes if separator in name):
            part = next((part for each in name.split(separator) if (part := each.strip()) in known), None)
            if part is not None:
                logger.warning(
                    f"class {name!r} is treated as a class of its own, but may be several labels, since {part!r} is a "
                    f"class too; `separator={separator!r}` takes them as labels that occur together"
                )
                return


def _list_columns(manifest: Manifest) -> str:
    hidden = set(KNOWN) - {"label"}
    return ", ".join(name for name in manifest.columns if name not in hidden and manifest.has(name)) or "none"


def _list_few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")


def _list_labels(names: Sequence[str]) -> str:
    return list_names("label", "labels", names)
