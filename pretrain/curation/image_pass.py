"""The image pass: each image is read once for its quality, its hashes and, if requested, its descriptor.

`dinomed curate` and `dinomed audit` use the same pass; each caches its own results.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dinomed.backbones.preprocessing import Preprocessing
from dinomed.datasets.pixels import read_picture
from dinomed.images.read import UnreadableImage, read_image
from dinomed.io.prefetch import prefetch
from dinomed.isolation.images import read_image_isolated
from dinomed.pretrain.curation.deduplication.hashes import THUMBNAIL_COLUMN, VIEWS_COLUMN, phash_views, thumbnail
from dinomed.pretrain.curation.descriptors.descriptor import Descriptor
from dinomed.pretrain.curation.filters.quality import MEASURES, measure_quality
from dinomed.pretrain.curation.runtime.images import batches

VERSION = 2
"""Part of the cache keys; increased when the columns or their computation change."""
_VECTOR = pa.list_(pa.float32())


@dataclass(frozen=True)
class ImagePass:
    """Work of the stage: paths to a table with one row per image.

    The values are those of the pictures that `read_picture` reads. With `isolated`, images are decoded in processes
    with limits. With the `preprocessing` of a backbone, it must read the images too.

    Columns:
        problem: the reason why the image cannot be read, else null. The other columns are then 0, `vector` is null.
        the fields of `Quality`: if `quality`.
        views: `phash_views`, 256 bytes.
        thumbnail: 32 x 32 grey levels, 1024 bytes.
        vector: if there is a descriptor.
    """

    quality: bool = True
    descriptor: Descriptor | None = None
    workers: int | None = None
    isolated: bool = False
    preprocessing: Preprocessing | None = None

    def __call__(self, paths: Sequence[str]) -> pa.Table:
        rows = [row for batch in prefetch(self._measure, batches(paths), self.workers, ahead=2) for row in batch]
        measures = MEASURES if self.quality else ()
        columns = {"problem": pa.array([row["problem"] for row in rows], pa.string())}
        columns |= {name: pa.array([row.get(name, 0.0) for row in rows], pa.float64()) for name in measures}
        for name, kind in (("views", VIEWS_COLUMN), ("thumbnail", THUMBNAIL_COLUMN)):
            columns[name] = pa.array([row.get(name, bytes(kind.byte_width)) for row in rows], kind)
        if self.descriptor is not None:
            columns["vector"] = pa.array([row.get("vector") for row in rows], _VECTOR)
        return pa.table(columns)

    def _measure(self, batch: list[str]) -> list[dict[str, Any]]:
        """Return the values of each image of a batch; those of an unreadable one lack all but `problem`."""
        rows: list[dict[str, Any]] = []
        readable, images = [], []
        for path in batch:
            try:
                image = self._read(path)
            except UnreadableImage as error:
                rows.append({"problem": error.reason})
                continue
            views = phash_views(image).astype(">u8").tobytes()
            row = {"problem": None, "views": views, "thumbnail": thumbnail(image).tobytes()}
            if self.quality:
                row |= asdict(measure_quality(image))
            rows.append(row)
            if self.descriptor is not None:
                readable.append(row)
                images.append(image)
        if images and self.descriptor is not None:
            for row, vector in zip(readable, self.descriptor(images), strict=True):
                row["vector"] = vector
        return rows

    def _read(self, path: str) -> np.ndarray:
        if self.preprocessing is not None:
            try:
                return (read_image_isolated if self.isolated else read_image)(path)
            except UnreadableImage:  # the backbone may have a window, or other channels
                (self.preprocessing.read_isolated if self.isolated else self.preprocessing.read)(path)
        return read_picture(path, isolated=self.isolated)
