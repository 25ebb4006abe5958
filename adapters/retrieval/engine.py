"""Nearest vectors by inner product: flat (exact), HNSW (Malkov and Yashunin 2016), IVF (Jégou et al. 2011), by faiss.

No file of faiss is ever written or read: its parser is C++ that trusts what it reads, and a checksum beside a file
stops damage, not malice. What an index needs beyond its vectors are a few arrays of numbers: the graph of HNSW, the
centroids of IVF. They are stored as tensors, and checked before faiss gets them, since a neighbour beyond the end of
the graph would be read from wherever that is in memory.
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
_VECTORS_PER_LIST = 39  # at least; fewer are too few for the k-means of faiss
_SEED = 1234
Arrays = dict[str, np.ndarray]


def parse_kind(word: str) -> Kind:
    """Raises a `UsageError` that names the nearest if there is no such kind."""
    if word not in KINDS:
        raise UsageError(f"--kind {word!r}{did_you_mean(word, KINDS)}")
    return word  # type: ignore[return-value]


def build_graph(kind: Kind, vectors: np.ndarray) -> Arrays:
    """What `restore` needs beside the vectors, float32 (N, D) of length 1; nothing for `flat`."""
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
    """Cells that a query looks into: an eighth, at least 8."""
    return max(min(8, lists), lists // 8)


def restore(kind: Kind, vectors: np.ndarray, arrays: Mapping[str, np.ndarray]) -> Any:
    """The faiss index of these vectors; None for `flat`, which needs none.

    Raises:
        DinomedError: the arrays are not those of an index of these vectors.
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
    """Similarities and rows (Q, k) as `index` finds them; a row of -1 stands for none."""
    if isinstance(index, faiss.IndexHNSWFlat):
        index.hnsw.efSearch = max(HNSW_SEARCH, 2 * k)
    return index.search(queries, k)


def _check_graph(
    count: int, slots: np.ndarray, levels: np.ndarray, neighbors: np.ndarray, entry: np.ndarray
) -> np.ndarray:
    """Where the links of each node begin (N + 1,), if every link leads to a node that exists on that level."""
    wrong = DinomedError("its graph is not one of its vectors")
    if len(levels) != count or len(entry) != 2 or levels.min(initial=1) < 1 or levels.max(initial=1) >= len(slots):
        raise wrong
    offsets = np.concatenate([[0], np.cumsum(slots[levels])])
    if offsets[-1] != len(neighbors) or neighbors.min(initial=-1) < -1 or neighbors.max(initial=-1) >= count:
        raise wrong
    if not (0 <= entry[0] < count and 0 <= entry[1] < levels[entry[0]]):
        raise wrong
    position = np.arange(len(neighbors)) - np.repeat(offsets[:-1], slots[levels])
    level = np.searchsorted(slots, position, side="right") - 1
    if (levels[neighbors[neighbors >= 0]] <= level[neighbors >= 0]).any():
        raise wrong
    return offsets


def _get(arrays: Mapping[str, np.ndarray], name: str, kind: type, dimensions: int) -> np.ndarray:
    found = arrays.get(name)
    if found is None or found.dtype != kind or found.ndim != dimensions:
        raise DinomedError(f"its {name} are missing or of another type")
    return found
