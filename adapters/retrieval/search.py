"""Searching an index by images: `load_retriever` gives an index with its backbone."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinomed.adapters.adapter import FeatureSpec
from dinomed.adapters.retrieval.evidence import Evidence, Grid, match
from dinomed.adapters.retrieval.filters import Condition, Relatives, choose
from dinomed.adapters.retrieval.index import Found, IndexRecord, RetrievalIndex, read_index
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import KNOWN, Manifest
from dinomed.device import resolve_device
from dinomed.errors import DinomedError, UsageError
from dinomed.features.compute import Features, Loaded, compute_features, load_images
from dinomed.images.read import UnreadableImage
from dinomed.images.shown import read_shown
from dinomed.progress import bar

BATCH_SIZE = 16
_NOT_SHOWN = set(KNOWN)  # shown by themselves, or facts of the file


@dataclass
class Answer:
    """What was found for one image. `error` says why it could not be read; `related` counts images of the index that
    were kept out, being the same or of the same group; `group_known` says whether its group was known at all."""

    image: str
    found: list[Found] = field(default_factory=list)
    error: str | None = None
    related: int = 0
    group_known: bool = False


class Retriever:
    """An index with its backbone; `needs` and `of_features` let it share a backbone pass with adapters."""

    def __init__(self, index: RetrievalIndex, backbone: FrozenBackbone) -> None:
        self.index, self.backbone = index, backbone
        self.relatives = Relatives(index.manifest)
        self._columns = {name: index.manifest.column(name) for name in index.manifest.columns}

    @property
    def feature_spec(self) -> FeatureSpec:
        return self.index.record.pooling.feature_spec

    def of_features(self, features: Features) -> np.ndarray:
        """Features of the last block -> queries, float32 (B, D)."""
        return self.index.prepare(self.index.record.pooling(features).float().cpu().numpy())

    @torch.inference_mode()
    def vectors(self, pixels: Tensor) -> np.ndarray:
        """Preprocessed images (B, channels, height, width) -> queries, float32 (B, D)."""
        return self.of_features(
            compute_features(self.backbone, pixels, self.feature_spec.blocks, self.feature_spec.patches)
        )

    def search(
        self,
        queries: Manifest,
        k: int,
        *,
        conditions: Iterable[Condition] = (),
        exclude_same_group: bool = False,
        exact: bool = False,
    ) -> Iterator[Answer]:
        """The `k` most similar images of the index for each image of a manifest, in its order.

        Args:
            conditions: on the columns of the index; all have to be met.
            exclude_same_group: find neither the image itself nor others of its patient, lesion or video. The group is
                that of the query's manifest, or of the same image in the index.

        Raises:
            UsageError: a condition that cannot be met, or k below 1.
        """
        allowed = choose(self.index.manifest, conditions)
        names, contents, groups = queries.column("image"), queries.column("sha256"), queries.groups()
        with bar("searching", len(queries)) as progress:
            for loaded in _batches(queries, self.backbone):
                good = [one for one in loaded if one.pixels is not None]
                answers = {one.index: Answer(names[one.index]) for one in loaded}
                for one in loaded:
                    if one.error is not None:
                        answers[one.index].error = one.error.reason
                if good:
                    vectors = self.vectors(torch.stack([one.pixels for one in good if one.pixels is not None]))
                    excluded = None
                    if exclude_same_group:
                        excluded = [self.relatives.rows(contents[one.index], groups[one.index]) for one in good]
                        for one, rows in zip(good, excluded, strict=True):
                            answers[one.index].related = len(rows)
                            answers[one.index].group_known = self.relatives.knows(
                                contents[one.index], groups[one.index]
                            )
                    found = self.index.search(vectors, k, allowed=allowed, excluded=excluded, exact=exact)
                    for one, best in zip(good, found, strict=True):
                        answers[one.index].found = best
                yield from answers.values()
                progress.advance(len(loaded))

    def describe(self, found: Found, rank: int) -> dict[str, Any]:
        """One result in words and numbers: its columns of the index's manifest, similarity, distance."""
        cells = {name: values[found.row] for name, values in self._columns.items()}
        return {
            "rank": rank,
            "image": cells["image"],
            "similarity": round(found.similarity, 6),
            "distance": round(1 - found.similarity, 6),
            "label": cells.get("label"),
            "group": cells.get("group"),
            "split": cells.get("split"),
            "columns": {name: value for name, value in cells.items() if name not in _NOT_SHOWN and value is not None},
        }

    def read(self, row: int) -> np.ndarray:
        """The image at a row of the index as a person sees it, uint8 (H, W, 3); of arrays and bands the first channel.

        Raises:
            UnreadableImage: it is no longer there, or a link leads out of the folder of the images.
        """
        preprocessing = self.backbone.preprocessing
        return read_shown(self._path(row), preprocessing.channels, preprocessing.intensity)

    def evidence(self, image: np.ndarray, found: Sequence[Found]) -> list[Evidence | None]:
        """What in `image` (as ``backbone.preprocessing.read`` gives it) and in each result is alike; None where the
        result can no longer be read. Patch tokens are computed anew: of a whole collection they would fill a disk."""
        others: list[np.ndarray | None] = []
        for one in found:
            try:
                others.append(self.backbone.preprocessing.read(self._path(one.row)))
            except UnreadableImage:
                others.append(None)
        query, *grids = self._grids([image, *(other for other in others if other is not None)])
        left = iter(grids)
        return [None if other is None else match(query, next(left)) for other in others]

    def _path(self, row: int) -> Path:
        path, root = self.index.manifest.path(row), self.index.manifest.root.resolve()
        if not path.resolve().is_relative_to(root):
            raise UnreadableImage(path, "leads out of the folder of the images")
        return path

    @torch.inference_mode()
    def _grids(self, images: Sequence[np.ndarray]) -> list[Grid]:
        grids = []
        for start in range(0, len(images), BATCH_SIZE):
            part = images[start : start + BATCH_SIZE]
            pixels = torch.stack([self.backbone.preprocessing(image) for image in part])
            features = compute_features(self.backbone, pixels, (-1,), True)
            assert features.patches is not None
            tokens = features.patches.permute(0, 2, 3, 1).float().cpu().numpy()
            grids += [Grid(one, image.shape[:2]) for one, image in zip(tokens, part, strict=True)]
        return grids


def load_retriever(
    folder: str | Path,
    device: str | torch.device = "cpu",
    backbone: str | Path | None = None,
    *,
    load: Callable[..., FrozenBackbone] = load_backbone,
) -> Retriever:
    """An index that `dinomed index` wrote, with the backbone that it was made on.

    Args:
        device: cpu, cuda, cuda:N, mps or auto.
        backbone: where the backbone is, if it is no longer where the index says.
        load: another `load_backbone`, such as `dinomed.adapters.inference.shared.Backbones`.

    Raises:
        UsageError: no such index, or another backbone than it was made on (both fingerprints are named).
        DinomedError: the index is damaged, or its backbone is missing.
    """
    index = read_index(folder)
    where = resolve_device(device) if isinstance(device, str) else device
    return Retriever(index, _find_backbone(Path(folder), index.record, backbone, where, load))


def _find_backbone(
    folder: Path,
    record: IndexRecord,
    given: str | Path | None,
    device: torch.device,
    load: Callable[..., FrozenBackbone],
) -> FrozenBackbone:
    reference = record.backbone
    name, weights = str(given) if given is not None else reference.name, None
    if given is not None and Path(given).is_file():
        name, weights = reference.name, Path(given)
    elif given is None and (relative := reference.path or reference.weights):
        place = folder / relative
        if not place.exists():
            raise DinomedError(f"the backbone of index {folder} is not at {place}; say where: --backbone PATH")
        name, weights = (str(place), None) if reference.path else (reference.name, place)
    found = load(name, weights=weights, image_size=record.preprocessing.image_size, device=device)
    if found.fingerprint != reference.fingerprint:
        raise UsageError(
            f"index {folder} was made on backbone {reference.name} with fingerprint {reference.fingerprint[:16]}, "
            f"but {given or found.source or found.name} has {found.fingerprint[:16]}: vectors of two backbones cannot "
            "be compared; give the one it was made on (--backbone PATH), or index again"
        )
    return found


def _batches(manifest: Manifest, backbone: FrozenBackbone) -> Iterator[list[Loaded]]:
    images = load_images(manifest, backbone.preprocessing)
    while chunk := list(islice(images, BATCH_SIZE)):
        yield chunk
