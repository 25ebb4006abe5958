"""What a prediction writes for each image: a row of the table, and of segmenters a file.

A writer knows its columns, the files that it is going to write, and how to make the rows of one batch.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from torch import Tensor

from dinomed.adapters.inference.loader import AnyPredictor, ClassifyPredictor, DepthPredictor, SegmentPredictor
from dinomed.adapters.inference.plan import Row
from dinomed.adapters.tasks.segment.predict import summarize
from dinomed.images.depthmap import write_depth
from dinomed.images.labelmap import write_label_map
from dinomed.images.read import write_mask
from dinomed.io.files import write_json

LEGEND_FILE = "legend.json"
Size = tuple[int, int]


class Writer(ABC):
    """Writes predictions below a folder: `columns` of the table after the image's name; `files`, one an image, by
    relative names (none where only rows are written); `beside`, further files; `settings` that decide over the result.
    """

    def __init__(
        self,
        columns: Sequence[str],
        files: Sequence[str] = (),
        beside: Sequence[str] = (),
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.columns, self.files, self.beside, self.settings = columns, files, beside, settings or {}

    def begin(self, out: Path) -> None:  # noqa: B027 (most write none)
        """Write the files of `beside`."""

    @abstractmethod
    def rows(self, indices: Sequence[int], pixels: Tensor, sizes: Sequence[Size], out: Path) -> list[Row]:
        """The rows of images `indices`, made ready as `pixels`, each (height, width) px; files are written first."""


class ClassifyWriter(Writer):
    """Rows of probabilities."""

    def __init__(self, predictor: ClassifyPredictor, names: Sequence[str]) -> None:
        super().__init__(["predicted", *predictor.classes])
        self.predictor, self.names = predictor, names

    def rows(self, indices: Sequence[int], pixels: Tensor, sizes: Sequence[Size], out: Path) -> list[Row]:
        return [
            [self.names[i], self.predictor.predicted(values), *(f"{value:.6f}" for value in values)]
            for i, values in zip(indices, self.predictor.probability_rows(pixels), strict=True)
        ]


class SegmentWriter(Writer):
    """One class: masks of 0 and 255, with area and confidence. Several: label maps, whose values `legend.json` names,
    with the area of each class."""

    def __init__(self, predictor: SegmentPredictor, names: Sequence[str]) -> None:
        self.predictor, self.names, self.schema = predictor, names, predictor.schema
        self.single = len(self.schema.names) == 1
        if self.single:
            columns, beside = ["area_px", "area_fraction", "confidence"], []
            settings: dict[str, Any] = {"threshold": predictor.threshold}
        else:
            columns, beside = [f"area_px {self.schema.names[k]}" for k in self.schema.reported], [LEGEND_FILE]
            settings = {"thresholds": list(predictor.thresholds), "legend": self.schema.to_dict()}
        super().__init__(["mask", *columns], file_names(names), beside, settings)

    def begin(self, out: Path) -> None:
        if not self.single:
            exclusive = self.schema.exclusive
            codes = [code if isinstance(code, int) else 2**i for i, code in enumerate(self.schema.codes)]
            meaning = "each value is a class" if exclusive else "a value is the sum of the classes in the pixel"
            write_json(out / LEGEND_FILE, {"values": dict(zip(self.schema.names, codes, strict=True)), "note": meaning})

    def rows(self, indices: Sequence[int], pixels: Tensor, sizes: Sequence[Size], out: Path) -> list[Row]:
        found = self.predictor.batch_maps(pixels, sizes)
        return [self._row(i, maps, out) for i, maps in zip(indices, found, strict=True)]

    def _row(self, index: int, maps: np.ndarray, out: Path) -> Row:
        name, file = self.names[index], self.files[index]
        targets = self.predictor.decide(maps)
        if not self.single:
            write_label_map(out / file, self.schema.encode(targets))
            planes = self.schema.planes(targets)
            return [name, file, *(int(planes[k].sum()) for k in self.schema.reported)]
        write_mask(out / file, targets[0])
        found = summarize(maps[0], targets[0].astype(bool))
        confidence = None if found.confidence is None else f"{found.confidence:.4f}"
        return [name, file, found.area_px, f"{found.area_fraction:.6f}", confidence]


class DepthWriter(Writer):
    """Depth maps, gray PNG of 16 bits; `legend.json` says what a value stands for. Rows of their range."""

    def __init__(self, predictor: DepthPredictor, names: Sequence[str]) -> None:
        self.predictor, self.names = predictor, names
        columns = ["depth", "min_depth", "median_depth", "max_depth"]
        super().__init__(columns, file_names(names), [LEGEND_FILE], {"scale": predictor.file_scale})

    def begin(self, out: Path) -> None:
        unit = self.predictor.source.unit
        note = "depth = value * scale; 0: not known"
        write_json(out / LEGEND_FILE, {"scale": self.predictor.file_scale, "unit": unit, "note": note})

    def rows(self, indices: Sequence[int], pixels: Tensor, sizes: Sequence[Size], out: Path) -> list[Row]:
        rows = []
        for i, maps in zip(indices, self.predictor.batch_maps(pixels, sizes), strict=True):
            write_depth(out / self.files[i], maps[0], self.predictor.file_scale)
            known = (float(maps[0].min()), float(np.median(maps[0])), float(maps[0].max()))
            rows.append([self.names[i], self.files[i], *(f"{value:.6g}" for value in known)])
        return rows


def build_writer(predictor: AnyPredictor, names: Sequence[str]) -> Writer:
    """The writer of a predictor's task, for images of these relative names."""
    if isinstance(predictor, SegmentPredictor):
        return SegmentWriter(predictor, names)
    if isinstance(predictor, DepthPredictor):
        return DepthWriter(predictor, names)
    return ClassifyWriter(predictor, names)


def file_names(images: Sequence[str], suffix: str = ".png") -> list[str]:
    """A relative name for each image: its own with the suffix .png.

    Where two would get the same one, as a.jpg and a.png do, both keep their whole name in front: a.jpg.png, a.png.png.

    >>> file_names(["x/a.jpg", "b.jpg", "b.png"])
    ['x/a.png', 'b.jpg.png', 'b.png.png']
    """
    whole = [False] * len(images)
    while True:
        names = [
            image + suffix if keep else str(PurePosixPath(image).with_suffix(suffix))
            for image, keep in zip(images, whole, strict=True)
        ]
        counts = Counter(name.casefold() for name in names)  # some file systems know no case
        clash = [counts[name.casefold()] > 1 and not keep for name, keep in zip(names, whole, strict=True)]
        if not any(clash):
            return names
        whole = [keep or new for keep, new in zip(whole, clash, strict=True)]
