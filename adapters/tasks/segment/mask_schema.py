"""Mask schemas: how mask values map to classes.

- binary: a mask in the column `mask`, by the rule of `dinomed.images.binary`; one class, "lesion";
- multiclass: a label map in the column `mask`; each value is a class, and every pixel has one;
- multilabel: classes that may overlap. Each has a binary mask in its own column, or a bit of the values of the label
  map in the column `mask` (1, 2, 4, ...).

Targets in memory are uint8 (planes, H, W): one plane of class indices for multiclass, else one plane of 0 and 1 for
each class.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from dinomed.config import Config
from dinomed.datasets.manifest import Manifest, leaves_root
from dinomed.datasets.tables import compose_letters
from dinomed.errors import UsageError
from dinomed.images.labelmap import read_label_map
from dinomed.images.read import read_mask
from dinomed.io.prefetch import prefetch
from dinomed.log import logger
from dinomed.progress import bar

Kind = Literal["binary", "multiclass", "multilabel"]
MASK, LESION, BACKGROUND = "mask", "lesion", "background"
MAX_CLASSES, MAX_BITS, MAX_VALUE = 256, 16, 65_535


class MaskSchemaRecord(Config):
    """A mask schema as the record of a bundle holds it; the fields are those of `MaskSchema`."""

    kind: Kind
    names: tuple[str, ...] = Field(min_length=1, max_length=MAX_CLASSES)
    codes: tuple[Annotated[int, Field(ge=0, le=MAX_VALUE)] | str, ...]

    @model_validator(mode="after")
    def _one_code_for_each_name(self) -> "MaskSchemaRecord":
        columns = [code for code in self.codes if isinstance(code, str)]
        if len(self.codes) != len(self.names) or (columns and len(columns) < len(self.codes)):
            raise ValueError("each name needs a code, all of them numbers or all of them columns")
        if self.kind == "multiclass" and columns:
            raise ValueError("the classes of a label map are numbers")
        return self


@dataclass(frozen=True)
class MaskSchema:
    """The classes of masks.

    Attributes:
        kind: binary, multiclass or multilabel.
        names: names of the classes, in the order of the head's channels.
        codes: for each class its value or bit in a label map, or the column of its masks.
    """

    kind: Kind
    names: tuple[str, ...]
    codes: tuple[int | str, ...]

    @property
    def exclusive(self) -> bool:
        """Whether every pixel has exactly one class: a softmax and not a sigmoid gives probabilities."""
        return self.kind == "multiclass"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the manifest that hold the masks."""
        named = tuple(str(code) for code in self.codes if isinstance(code, str))
        return named or (MASK,)

    @property
    def reported(self) -> tuple[int, ...]:
        """The classes that are evaluated: all but the background (value 0 of a label map)."""
        return tuple(i for i, code in enumerate(self.codes) if not (self.exclusive and code == 0))

    @property
    def background(self) -> int:
        """The target of a pixel of no reported class: the place of value 0 in a label map, otherwise 0."""
        return self.codes.index(0) if self.exclusive else 0

    def usable(self, manifest: Manifest) -> Manifest:
        """Return the rows that have all masks.

        Raises:
            UsageError: a column is missing or empty, no row has all masks, or a path leaves the folder of the images.
        """
        for column in self.columns:
            if not manifest.has(column):
                hint = "" if column == MASK else f" in a column {column!r} (columns: {', '.join(manifest.columns)})"
                raise UsageError(
                    f"{manifest.called} has no masks{hint}; put them into a folder masks beside images, or name them "
                    f"in a CSV: {manifest.scan_again('--labels FILE.csv')} (label maps: --label-maps)"
                )
        cells = list(zip(*(manifest.column(column) for column in self.columns), strict=True))
        full = [i for i, row in enumerate(cells) if all(cell is not None for cell in row)]
        part = sum(any(cell is not None for cell in row) for row in cells) - len(full)
        if not full:
            raise UsageError(f"no image has a mask in every column of {', '.join(self.columns)}")
        if part:
            logger.warning(f"{part} images have masks of only some classes and are left out")
        for row in cells:
            for cell in row:
                if cell is not None and leaves_root(cell):
                    raise UsageError(f"mask {cell!r} leaves the folder of the images; paths are relative to it")
        return manifest.take(full)

    def read(self, manifest: Manifest, index: int) -> np.ndarray:
        """Read the targets of an image at its own size, uint8 (planes, H, W).

        Raises:
            UnreadableImage: a mask is damaged, or has another size than its image.
            UsageError: the mask has values of no class; the message lists them.
        """
        size = (manifest.table["height"][index].as_py(), manifest.table["width"][index].as_py())
        paths = [_path(manifest, index, column) for column in self.columns]
        if self.kind == "binary" or (self.kind == "multilabel" and self.columns != (MASK,)):
            return np.stack([read_mask(path, size=size) for path in paths])
        values = read_label_map(paths[0], size=size)
        unknown = np.setdiff1d(values, self.values())
        if len(unknown):
            raise UsageError(self._refusal(paths[0], unknown))
        if self.exclusive:
            codes = np.array(self.codes, np.int64)
            order = np.argsort(codes)
            return order[np.searchsorted(codes[order], values)].astype(np.uint8)[None]
        return np.stack([(values & int(bit)) != 0 for bit in self.codes]).astype(np.uint8)

    def values(self) -> np.ndarray:
        """Return every value that a label map may hold."""
        if self.exclusive:
            return np.array(self.codes, np.int64)
        sums = np.zeros(1, np.int64)
        for bit in self.codes:
            sums = np.concatenate([sums, sums | int(bit)])
        return sums

    def encode(self, targets: np.ndarray) -> np.ndarray:
        """Return the values of a label map, int64 (H, W), of targets, uint8 (planes, H, W): the inverse of `read`."""
        if self.exclusive:
            return np.array(self.codes, np.int64)[targets[0]]
        bits = self.written_values
        return np.sum([plane.astype(np.int64) * bit for plane, bit in zip(targets, bits, strict=True)], axis=0)

    @property
    def written_values(self) -> list[int]:
        """The value, or the bit, of each class in a written label map; masks in columns get the bits 1, 2, 4, ..."""
        return [code if isinstance(code, int) else 2**i for i, code in enumerate(self.codes)]

    def any_class(self, targets: np.ndarray) -> np.ndarray:
        """Return the union of the reported classes, uint8 (H, W), of targets, uint8 (planes, H, W)."""
        return np.asarray(self.planes(targets)[list(self.reported)].any(axis=0), np.uint8)

    def planes(self, targets: np.ndarray) -> np.ndarray:
        """Return a mask of each class, uint8 (classes, H, W), of targets, uint8 (planes, H, W)."""
        if not self.exclusive:
            return targets
        return (targets == np.arange(len(self.names))[:, None, None]).astype(np.uint8)

    def to_dict(self) -> dict[str, Any]:
        """Return the schema as plain data."""
        return {"kind": self.kind, "names": list(self.names), "codes": list(self.codes)}

    def _refusal(self, path: Path, unknown: np.ndarray) -> str:
        """Return the message about values of no class."""
        shown = ", ".join(map(str, unknown[:10].tolist())) + (", ..." if len(unknown) > 10 else "")
        known = ", ".join(f"{name} {code}" for name, code in zip(self.names, self.codes, strict=True))
        return (
            f"{path}: {'values' if len(unknown) > 1 else 'value'} {shown} of no class (known: {known}); name them with "
            "the setting classes, or correct the mask"
        )


BINARY = MaskSchema("binary", (LESION,), (1,))


def mask_schema_from(data: Mapping[str, Any] | None) -> MaskSchema:
    """Return the schema from plain data, the inverse of `MaskSchema.to_dict`; without data that of binary masks.

    Raises:
        DinomedError: a value is out of its range, in a record that was changed.
    """
    if not data:
        return BINARY
    from dinomed.adapters.record import parse_usage  # imports torch

    record = parse_usage(MaskSchemaRecord, data, "mask_schema")
    return MaskSchema(record.kind, record.names, record.codes)


def build_mask_schema(kind: Kind, classes: Mapping[str, int | str]) -> MaskSchema | None:
    """Build the schema of some settings. Return None if the values of label maps are to be searched for
    (`find_mask_schema`).

    Raises:
        UsageError: the settings contradict each other.
    """
    names, codes = tuple(classes), tuple(classes.values())
    if kind == "binary":
        if len(classes) > 1 or any(isinstance(code, int) and code != 1 for code in codes):
            raise UsageError("classes: binary masks have one class; set kind to multiclass or multilabel for several")
        return MaskSchema(kind, names or (LESION,), codes or (1,))
    numbers = [code for code in codes if isinstance(code, int)]
    if kind == "multiclass":
        if len(numbers) < len(codes):
            raise UsageError("classes: each class of a label map is a number; columns are for kind multilabel")
        if len(set(numbers)) < len(numbers):
            raise UsageError("classes: two classes have the same value")
        for name, code in zip(names, numbers, strict=True):
            if not 0 <= code <= MAX_VALUE:
                raise UsageError(
                    f"classes: {name} has the value {code}; the values of a label map are 0 to {MAX_VALUE:,}"
                )
        if not classes:
            return None
        if 0 not in numbers:
            names, codes = (BACKGROUND, *names), (0, *codes)
        if len(set(names)) < len(names):
            raise UsageError(f"classes: {BACKGROUND!r} stands for value 0; give it that, or name the class otherwise")
        if len(names) > MAX_CLASSES:
            raise UsageError(f"classes: {len(names)} with the background; at most {MAX_CLASSES}")
        return MaskSchema(kind, names, codes)
    if not classes:
        raise UsageError("classes: multilabel masks need {NAME: COLUMN, ...} or {NAME: BIT, ...} (1, 2, 4, ...)")
    if 0 < len(numbers) < len(codes):
        raise UsageError("classes: either columns or bits, not both")
    if numbers and not all(0 < bit < 2**MAX_BITS and bit.bit_count() == 1 for bit in numbers):
        raise UsageError(f"classes: the bits of classes are 1, 2, 4, ..., {2 ** (MAX_BITS - 1)}")
    if len(set(codes)) < len(codes):
        raise UsageError("classes: two classes have the same bit or column")
    if len(codes) > MAX_BITS:
        raise UsageError(
            f"classes: {len(codes)} that may overlap; at most {MAX_BITS}, since a predicted mask has a bit for each"
        )
    return MaskSchema(kind, names, codes)


def find_mask_schema(manifest: Manifest) -> MaskSchema:
    """Build the schema of the label maps of a manifest: each value in them is a class with that name.

    Raises:
        UsageError: there are too many values for classes, or only one.
    """
    counts: Counter[int] = Counter()
    plain = MaskSchema("multiclass", (), ())
    rows = plain.usable(manifest)

    def load(index: int) -> Sequence[int]:
        return np.unique(read_label_map(_path(rows, index, MASK))).tolist()

    with bar("values of the masks", len(rows)) as progress:
        for values in prefetch(load, range(len(rows)), None):
            counts.update(values)
            progress.advance()
            if len({0, *counts}) > MAX_CLASSES:
                raise UsageError(
                    f"the masks have more than {MAX_CLASSES} values; they are no label maps (images, depth?)"
                )
    codes = tuple(sorted({0, *counts}))
    if codes[0] < 0 or codes[-1] > MAX_VALUE:
        raise UsageError(
            f"the masks have values from {codes[0]} to {codes[-1]}; the values of a label map are 0 to {MAX_VALUE:,}; "
            "number the classes anew"
        )
    if len(codes) < 2:
        raise UsageError("every mask is 0 everywhere; there is nothing to learn")
    return MaskSchema("multiclass", tuple(BACKGROUND if code == 0 else str(code) for code in codes), codes)


def resolve_mask_schema(
    manifest: Manifest, kind: Kind, classes: Mapping[str, int | str], found: dict[str, MaskSchema] | None = None
) -> MaskSchema:
    """Return the schema of some settings (`build_mask_schema`), else that of the label maps (`find_mask_schema`).

    Args:
        manifest: images with masks.
        kind: of the settings.
        classes: of the settings.
        found: schemas of label maps by the fingerprint of the images with a mask. A new one is added, so that a later
            call reads no mask.

    Raises:
        UsageError: see both functions.
    """
    if (schema := build_mask_schema(kind, classes)) is not None:
        return schema
    found = {} if found is None else found
    key = MaskSchema("multiclass", (), ()).usable(manifest).fingerprint
    if key not in found:
        found[key] = find_mask_schema(manifest)
    return found[key]


def _path(manifest: Manifest, index: int, column: str) -> Path:
    return manifest.root / manifest.table[compose_letters(column)][index].as_py()
