"""Exact nearest neighbours by cosine similarity, with faiss.

faiss returns index -1 if k is above the number of vectors, and arbitrary results for a query of nan, both without an
error. Here k is cut to the number of vectors, and vectors that are not finite are refused.
"""

import numpy as np

from dinomed.errors import DinomedError


def nearest(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the `k` most similar of `vectors` for each query, best first.

    Args:
        queries: (Q, C).
        vectors: (N, C). Both are L2-normalised here; a vector of zeros has similarity 0 to all others.
        k: cut to N.

    Returns:
        Cosine similarities float32 (Q, min(k, N)) and indices int64 of the same shape.

    Raises:
        DinomedError: a value is not finite, or the dimensions differ.
    """
    if k < 1 or len(vectors) == 0:
        raise DinomedError(f"nearest neighbours: k is {k} of {len(vectors)} vectors; both must be at least 1")
    if queries.shape[1] != vectors.shape[1]:
        raise DinomedError(f"features of {queries.shape[1]} values against an index of {vectors.shape[1]}")
    similarities, indices = search_exactly(normalised(queries, "query"), normalised(vectors, "vector"), k)
    assert (indices >= 0).all()
    return similarities, indices


def search_exactly(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the `k` largest inner products of each query, unchecked and without a copy of the vectors.

    Args:
        queries: float32 (Q, D); vectors: float32 (N, D); of finite values, in memory or mapped.
        k: cut to N.

    Returns:
        Inner products float32 (Q, min(k, N)), best first, and rows of `vectors`, int64 of the same shape.
    """
    import faiss  # here: heads need only the constants and the weight of `dinomed.features.knn`

    return faiss.knn(queries, vectors, min(k, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT)


def normalised(vectors: np.ndarray, kind: str = "vector") -> np.ndarray:
    """Return the rows scaled to length 1, float32; rows of zeros stay.

    Args:
        kind: name of a row in the error message.

    Raises:
        DinomedError: a row is not finite; the first one is named.
    """
    rows = finite_rows(vectors, kind)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def finite_rows(vectors: np.ndarray, kind: str = "vector") -> np.ndarray:
    """Return the rows as contiguous float32. Arguments and errors are those of `normalised`."""
    rows = np.ascontiguousarray(vectors, np.float32)
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise DinomedError(f"{kind} {int(bad.argmax())} holds values that are not finite (nan or infinite)")
    return rows
