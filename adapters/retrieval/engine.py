"""Nearest-neighbour search by inner product with faiss: HNSW (Malkov and Yashunin 2016), IVF (Jégou et al. 2011).

No faiss file is written or read: its C++ parser trusts its input, and a checksum protects against damage, not against
manipulation. An index needs only a few arrays besides its vectors: the graph of HNSW, the centroids of IVF. They are
stored as tensors and checked before faiss uses them, because a link beyond the end of the graph would read other
memory.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import faiss
import numpy as np

from dinomed.errors import DinomedError, UsageError, did_you_mean
from dinomed.features.ivf import choose_num_lists, empty_inverted_file, train_centroids

Kind = Literal["flat", "hnsw", "ivf"]
KINDS: tuple[str, ...] = get_args(Kind)
HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 32, 200, 128
_VECTORS_PER_LIST = 39  # minimum for the k-means of faiss
_SEED = 1234
Arrays = dict[str, np.ndarray]


def parse_kind(word: str) -> Kind:
    """Return the kind of index; raise a `UsageError` that names the nearest one if there is no such kind."""
    if word not in KINDS:
        raise UsageError(f"`kind={word!r}`{did_you_mean(word, KINDS)}")
    return word  # type: ignore[return-value]


def build_graph(kind: Kind, vectors: np.ndarray) -> Arrays:
    """Compute the arrays that `restore` needs besides the vectors, float32 (N, D) of length 1; none for `flat`."""
    if kind == "hnsw":
        index: Any = faiss.IndexHNSWFlat(vectors.shape[1], HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = HNSW_BUILD
        index.add(vectors)
        graph = index.hnsw
        return {
            "levels": faiss.vector_to_array(graph.levels).astype(np.int32),
            "neighbors": faiss.rev_swig_ptr(graph.neighbors.data(), graph.neighbors.size()).copy(),
            "entry": np.array([graph.entry_point, graph.max_level], np.int32),
        }
    if kind == "ivf":
        lists = choose_num_lists(len(vectors), _VECTORS_PER_LIST)
        return {"centroids": train_centroids(vectors, lists, iterations=20, seed=_SEED)}
    return {}


def num_probes(lists: int) -> int:
    """Return the number of lists that a query searches: an eighth of all, at least 8."""
    return max(min(8, lists), lists // 8)


def restore(kind: Kind, vectors: np.ndarray, arrays: Mapping[str, np.ndarray]) -> Any:
    """Build the faiss index of vectors from the arrays of `build_graph`; None for `flat`.

    Raises:
        DinomedError: the arrays do not belong to these vectors.
    """
    if kind == "flat":
        return None
    count, dimension = vectors.shape
    if kind == "ivf":
        centroids = np.ascontiguousarray(_get(arrays, "centroids", np.float32, 2))
        if centroids.shape[1] != dimension or not len(centroids) or not np.isfinite(centroids).all():
            raise DinomedError("its centroids do not fit its vectors")
        inverted_file = empty_inverted_file(centroids)
        inverted_file.add(vectors)
        inverted_file.nprobe = num_probes(len(centroids))
        return inverted_file
    levels, neighbors = _get(arrays, "levels", np.int32, 1), _get(arrays, "neighbors", np.int32, 1)
    entry = _get(arrays, "entry", np.int32, 1)
    graph: Any = faiss.IndexHNSWFlat(dimension, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    slots = faiss.vector_to_array(graph.hnsw.cum_nneighbor_per_level).astype(np.int64)
    offsets = _check_graph(count, slots, levels, neighbors, entry)
    faiss.downcast_index(graph.storage).add(vectors)
    graph.ntotal = count
    faiss.copy_array_to_vector(levels, graph.hnsw.levels)
    faiss.copy_array_to_vector(offsets.astype(np.uint64), graph.hnsw.offsets)
    graph.hnsw.neighbors.resize(len(neighbors))
    faiss.rev_swig_ptr(graph.hnsw.neighbors.data(), len(neighbors))[:] = neighbors
    graph.hnsw.entry_point, graph.hnsw.max_level = int(entry[0]), int(entry[1])
    graph.hnsw.efSearch = HNSW_SEARCH
    return graph


def search_graph(index: Any, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return similarities and rows (Q, k) that the faiss index finds; a row of -1 means no result."""
    if isinstance(index, faiss.IndexHNSWFlat):
        index.hnsw.efSearch = max(HNSW_SEARCH, 2 * k)
    return index.search(queries, k)


def _check_graph(
    count: int, slots: np.ndarray, levels: np.ndarray, neighbors: np.ndarray, entry: np.ndarray
) -> np.ndarray:
    """Return the offsets (N + 1,) of the links of each node; raise if a link leads to no node of its level."""
    mismatch = DinomedError("its graph is not one of its vectors")
    if len(levels) != count or len(entry) != 2 or levels.min(initial=1) < 1 or levels.max(initial=1) >= len(slots):
        raise mismatch
    offsets = np.concatenate([[0], np.cumsum(slots[levels])])
    if offsets[-1] != len(neighbors) or neighbors.min(initial=-1) < -1 or neighbors.max(initial=-1) >= count:
        raise mismatch
    if not (0 <= entry[0] < count and 0 <= entry[1] < levels[entry[0]]):
        raise mismatch
    position = np.arange(len(neighbors)) - np.repeat(offsets[:-1], slots[levels])
    level = np.searchsorted(slots, position, side="right") - 1
    if (levels[neighbors[neighbors >= 0]] <= level[neighbors >= 0]).any():
        raise mismatch
    return offsets


def _get(arrays: Mapping[str, np.ndarray], name: str, kind: type, dimensions: int) -> np.ndarray:
    array = arrays.get(name)
    if array is None or array.dtype != kind or array.ndim != dimensions:
        raise DinomedError(f"its {name} are missing or of another type")
    return array
