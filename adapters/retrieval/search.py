"""Similarity search with images as queries: an index together with the backbone on which it was made."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dinomed.adapters.adapter import FeatureSpec
from dinomed.adapters.reference import find_backbone
from dinomed.adapters.retrieval.evidence import Evidence, match_images
from dinomed.adapters.retrieval.filters import Condition, GroupLookup, choose_rows, parse_conditions
from dinomed.adapters.retrieval.index import Neighbor, VectorIndex, read_index
from dinomed.adapters.training_images import FamiliarityCheck
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.burned_in_text.mask import TextMask
from dinomed.datasets.manifest import KNOWN, Manifest
from dinomed.device import resolve_device
from dinomed.errors import UsageError
from dinomed.explore.images import patch_tokens
from dinomed.features.compute import Features, compute_features
from dinomed.features.familiarity.fit import choose_reference_rows
from dinomed.features.finite import compute_finite
from dinomed.features.loading import LoadedImage, load_batches, preprocess_batches, stack_pixels
from dinomed.images.in_memory import ImageSource, list_images
from dinomed.images.read import UnreadableImage, read_shown
from dinomed.images.unchanged import check_unchanged
from dinomed.progress import bar


@dataclass(frozen=True)
class Hit:
    """A similar image of the index.

    Attributes:
        rank: 1 for the most similar image.
        image: path relative to the root folder of the index.
        path: the same path as a file of this machine; the file may have moved since.
        similarity: cosine similarity of the two feature vectors, -1 to 1.
        label: value of the column ``label``, None if it is empty; `group` and `split` alike.
        columns: other columns of the manifest that are not empty, by name.
        row: row in the manifest of the index.
    """

    rank: int
    image: str
    path: Path
    similarity: float
    label: str | None
    group: str | None
    split: str | None
    columns: dict[str, Any]
    row: int

    def to_json(self) -> dict[str, Any]:
        """Return the hit as `dinomed search --json` writes it; the distance is 1 minus the similarity."""
        return {
            "rank": self.rank,
            "image": self.image,
            "similarity": round(self.similarity, 6),
            "distance": round(1 - self.similarity, 6),
            "label": self.label,
            "group": self.group,
            "split": self.split,
            "columns": self.columns,
        }


@dataclass
class QueryResult:
    """The result of one query image of a manifest.

    Attributes:
        image: path of the query image, as in its manifest.
        neighbors: similar images, best first.
        error: reason why there is no result, or None: the image cannot be read, or its features are not finite.
        num_excluded: images of the index that were left out as the same image or the same group.
        group_known: whether the group of the query image is known.
    """

    image: str
    neighbors: list[Neighbor] = field(default_factory=list)
    error: str | None = None
    num_excluded: int = 0
    group_known: bool = False


class ImageIndex:
    """An index with its backbone, searched by images.

    Example:
        >>> index = load_index("runs/idx")                          # doctest: +SKIP
        >>> for hit in index.search("new.jpg", k=5):                # doctest: +SKIP
        ...     print(hit.image, hit.similarity, hit.label)
    """

    def __init__(self, vector_index: VectorIndex, backbone: FrozenBackbone) -> None:
        self.vector_index, self.backbone = vector_index, backbone
        self.groups = GroupLookup(vector_index.manifest)
        self.text_mask: TextMask | None = None  # of images for display
        reference = vector_index.reference
        self.check = None if reference is None else FamiliarityCheck(reference, backbone)
        self._columns = {name: vector_index.manifest.column(name) for name in vector_index.manifest.columns}

    def __len__(self) -> int:
        return len(self.vector_index)

    @property
    def feature_spec(self) -> FeatureSpec:
        """Features of the backbone from which a query vector is computed."""
        return self.vector_index.record.pooling.feature_spec

    @cached_property
    def pair_similarities(self) -> np.ndarray:
        """Similarities of pairs of images of different groups, sorted, float32; of at most 1,000 images."""
        rows, units = choose_reference_rows(len(self)), self.vector_index.manifest.units()
        chosen = self.vector_index.vectors[rows]
        names = np.unique([units[row] for row in rows], return_inverse=True)[1]
        first, second = np.triu_indices(len(rows), 1)
        different = names[first] != names[second]
        return np.sort((chosen @ chosen.T)[first[different], second[different]])

    def similarity_percentile(self, similarity: float) -> float | None:
        """Return the share of `pair_similarities` below a similarity, 0 to 100; None if there are no pairs."""
        pairs = self.pair_similarities
        return 100 * float(np.searchsorted(pairs, similarity)) / len(pairs) if len(pairs) else None

    def embed_features(self, features: Features) -> np.ndarray:
        """Return the query vectors, float32 (B, D), of features of the last block of B images."""
        return self.vector_index.prepare(self.vector_index.record.pooling(features).float().cpu().numpy())

    def outputs_of_features(self, features: Features, sizes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """Return the query of each image, float32 (D,), for `dinomed.adapters.inference.shared.predict_many`."""
        return list(self.embed_features(features))

    @torch.inference_mode()
    def embed(self, pixels: Tensor) -> np.ndarray:
        """Return the query vectors, float32 (B, D), of preprocessed images (B, channels, height, width)."""
        return self.embed_features(
            compute_features(self.backbone, pixels, self.feature_spec.blocks, self.feature_spec.patches)
        )

    def search(
        self,
        images: ImageSource | Sequence[ImageSource],
        k: int = 10,
        *,
        where: Sequence[str] = (),
        exclude_same_group: bool = False,
        exact: bool = False,
    ) -> list[Hit] | list[list[Hit]]:
        """Return the `k` most similar images of the index, best first.

        Args:
            images: one image or a sequence of images; each is a path, a Pillow image, a NumPy array (H, W, C), or a
                torch tensor (C, H, W). See `dinomed.images.in_memory.as_pixels`.
            k: number of results; fewer are returned if the index (after `where`) has fewer images.
            where: conditions on the manifest of the index, such as ``sex=female`` or ``age>=50``; all must be met.
            exclude_same_group: leave out the query image itself, and images of its patient, lesion or video. The images
                must be paths: the index knows an image, and by it the group, by the bytes of its file.
            exact: compare with every vector, even if the index is approximate (HNSW or IVF).

        Returns:
            A list of hits for one image; a list of such lists for a sequence.

        Raises:
            UsageError: `k` below 1, a condition that no image meets, an unsupported image, or an image in memory with
                `exclude_same_group`.
            UnreadableImage: a file cannot be read.
        """
        single = isinstance(images, str | Path | Image.Image) or getattr(images, "ndim", 4) < 4
        queries = [images] if single else list_images(images)
        if not isinstance(k, Integral):
            raise UsageError(f"`k` is of type {type(k).__name__}; give a whole number")
        allowed = choose_rows(self.vector_index.manifest, parse_conditions(where))
        excluded = self.groups.rows_of_files(queries) if exclude_same_group else None
        results: list[list[Hit]] = []
        for pixels, _ in preprocess_batches(queries, self.backbone.preprocessing):
            left_out = None if excluded is None else excluded[len(results) : len(results) + len(pixels)]
            nearest = self.vector_index.nearest(self.embed(pixels), k, allowed=allowed, excluded=left_out, exact=exact)
            results += [
                [self.hit(neighbor, rank) for rank, neighbor in enumerate(neighbors, 1)] for neighbors in nearest
            ]
        return results[0] if single else results

    def search_manifest(
        self,
        queries: Manifest,
        k: int,
        *,
        conditions: Iterable[Condition] = (),
        exclude_same_group: bool = False,
        exact: bool = False,
    ) -> Iterator[QueryResult]:
        """Return an iterator over the `k` most similar images for each image of a manifest, in its order.

        Args:
            conditions: on the manifest of the index; all must be met.
            exclude_same_group: leave out the query image itself (same bytes) and images of its group (patient, lesion
                or video). The group is taken from `queries`, or from the same image in the index.
            exact: compare with every vector, even if the index is approximate.

        Raises:
            UsageError: a condition that no image meets, or `k` below 1.
        """
        if k < 1:
            raise UsageError(f"k is {k}; at least 1 result is needed")
        allowed = choose_rows(self.vector_index.manifest, conditions)
        return self._search_batches(queries, k, allowed, exclude_same_group, exact)

    def _search_batches(
        self, queries: Manifest, k: int, allowed: np.ndarray | None, exclude_same_group: bool, exact: bool
    ) -> Iterator[QueryResult]:
        names, contents, groups = queries.column("image"), queries.column("sha256"), queries.groups()
        with bar("searching", len(queries)) as progress:
            for batch in load_batches(queries, self.backbone.preprocessing):
                results = {
                    loaded.index: QueryResult(
                        names[loaded.index], error=None if loaded.error is None else loaded.error.reason
                    )
                    for loaded in batch
                }
                readable = [loaded for loaded in batch if loaded.pixels is not None]
                rows, vectors, reasons = compute_finite(partial(self._embed_rows, readable), len(readable))
                for place, reason in reasons.items():
                    results[readable[place].index].error = reason
                if vectors is not None:
                    excluded = None
                    searched = [readable[row].index for row in rows]
                    if exclude_same_group:
                        excluded = []
                        for index in searched:
                            excluded.append(self.groups.rows(contents[index], groups[index]))
                            results[index].num_excluded = len(excluded[-1])
                            results[index].group_known = self.groups.is_known(contents[index], groups[index])
                    neighbors = self.vector_index.nearest(vectors, k, allowed=allowed, excluded=excluded, exact=exact)
                    for index, nearest in zip(searched, neighbors, strict=True):
                        results[index].neighbors = nearest
                yield from results.values()
                progress.advance(len(batch))

    def _embed_rows(self, readable: Sequence[LoadedImage], rows: list[int]) -> np.ndarray:
        """Return the query vectors, float32 (B, D), of some of the loaded images."""
        return self.embed(stack_pixels([readable[row] for row in rows]))

    def hit(self, neighbor: Neighbor, rank: int) -> Hit:
        """Return a neighbour with its columns of the manifest of the index."""
        cells = {name: values[neighbor.row] for name, values in self._columns.items()}
        return Hit(
            rank=rank,
            image=cells["image"],
            path=self.vector_index.manifest.path(neighbor.row),
            similarity=neighbor.similarity,
            label=cells.get("label"),
            group=cells.get("group"),
            split=cells.get("split"),
            columns={name: value for name, value in cells.items() if name not in KNOWN and value is not None},
            row=neighbor.row,
        )

    def read_image(self, row: int) -> np.ndarray:
        """Read an image of the index for display, uint8 (H, W, 3); of arrays and several bands the first channel.

        Raises:
            UnreadableImage: the file is missing or has changed, or a link leads out of the root folder of the index.
        """
        preprocessing = self.backbone.preprocessing
        shown = read_shown(self._path(row), preprocessing.channels, preprocessing.intensity)
        return shown if self.text_mask is None else self.text_mask(shown)

    def evidence(self, image: np.ndarray, neighbors: Sequence[Neighbor]) -> list[Evidence | None]:
        """Match the patches of `image` with those of each neighbour; None where the neighbour cannot be read.

        Patch tokens are computed again: stored for a whole collection, they would fill a disk.

        Args:
            image: as ``backbone.preprocessing.read`` returns it.
        """
        images: list[np.ndarray | None] = []
        for neighbor in neighbors:
            try:
                images.append(self.backbone.preprocessing.read(self._path(neighbor.row)))
            except UnreadableImage:
                images.append(None)
        readable = [image, *(case for case in images if case is not None)]
        query, *results = patch_tokens(self.backbone, readable)
        sizes = [pixels.shape[:2] for pixels in readable]
        matched = iter(
            match_images(query, tokens, (sizes[0], size)) for tokens, size in zip(results, sizes[1:], strict=True)
        )
        return [None if case is None else next(matched) for case in images]

    def _path(self, row: int) -> Path:
        path, root = self.vector_index.manifest.path(row), self.vector_index.manifest.root.resolve()
        if not path.resolve().is_relative_to(root):
            raise UnreadableImage(path, "leads out of the folder of the images")
        size, sha256 = (self.vector_index.manifest.table[name][row].as_py() for name in ("bytes", "sha256"))
        check_unchanged(path, size, sha256)  # the picture shown is that of the vector
        return path


def load_index(
    folder: str | Path,
    device: str | torch.device = "cpu",
    backbone: str | Path | None = None,
    *,
    load: Callable[..., FrozenBackbone] = load_backbone,
) -> ImageIndex:
    """Load an index that `dinomed index` wrote, with the backbone on which it was made.

    Args:
        device: cpu, cuda, cuda:N, mps or auto.
        backbone: path or name of the backbone, if it is no longer where the index says.
        load: function with the arguments of `load_backbone`, such as `dinomed.adapters.inference.shared.Backbones`.

    Raises:
        UsageError: the folder holds no index, or the backbone has another fingerprint (both are named).
        DinomedError: the index is damaged, or its backbone is missing.
    """
    vector_index = read_index(folder)
    record = vector_index.record
    place = resolve_device(device) if isinstance(device, str) else device
    frozen = find_backbone(
        folder, record.backbone, record.preprocessing, backbone, place, load, kind="index", remedy="index again"
    )
    return ImageIndex(vector_index, frozen)
