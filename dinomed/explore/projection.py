"""Projection of feature vectors to a plane: PCA, and then t-SNE or UMAP."""

import warnings
from dataclasses import dataclass

import numpy as np

from dinomed.errors import UsageError
from dinomed.explore.pca import principal_components
from dinomed.features.neighbors import normalised

METHODS = ("tsne", "umap", "pca")
_DIMENSIONS = 50  # of the PCA before t-SNE or UMAP; van der Maaten and Hinton 2008 (section 4.2) use 30
MAX_POINTS = 20_000  # images of a map
_SAMPLE = 20_000  # vectors to which the PCA is fitted
_FEWEST = 5  # vectors; t-SNE and UMAP need neighbours
_NEIGHBORS = 5  # whose mean is the place of one more vector


@dataclass(frozen=True)
class VectorMap:
    """A projection of N vectors to a plane, in which further vectors can be placed.

    Attributes:
        points: float32 (N, 2).
        units: the vectors, float32 (N, C) of length 1.
        mean: of the units, (C,).
        basis: the first two principal components, (C, 2); fewer columns for C below 2.
        is_pca: the points are the projections on `basis`.
    """

    points: np.ndarray
    units: np.ndarray
    mean: np.ndarray
    basis: np.ndarray
    is_pca: bool

    def place(self, vector: np.ndarray) -> np.ndarray:
        """Return the place of one more vector (C,), float32 (2,).

        In a PCA it is the projection by the fitted components. t-SNE and UMAP fit no projection: the place is the mean
        of the points of the five most similar vectors (cosine).
        """
        unit = normalised(vector[None])[0]
        if self.is_pca:
            return _pad_plane(((unit - self.mean) @ self.basis).astype(np.float32)[None])[0]
        similarity = self.units @ unit
        nearest = np.argsort(-similarity, kind="stable")[:_NEIGHBORS]
        return np.asarray(self.points[nearest].mean(axis=0), np.float32)


def project_to_plane(
    vectors: np.ndarray, method: str = "tsne", *, perplexity: float = 30.0, seed: int = 0
) -> np.ndarray:
    """Project vectors to a plane, so that similar vectors lie close together; see `fit_map`.

    Returns:
        float32 (N, 2).
    """
    return fit_map(vectors, method, perplexity=perplexity, seed=seed).points


def fit_map(vectors: np.ndarray, method: str = "tsne", *, perplexity: float = 30.0, seed: int = 0) -> VectorMap:
    """Fit a projection of vectors to a plane.

    The vectors are scaled to length 1 and reduced to 50 principal components first. Distances between distant groups,
    and the sizes of groups, have no meaning with t-SNE and UMAP. Equal inputs and seeds give equal points.

    Args:
        vectors: (N, C).
        method: tsne (Barnes-Hut t-SNE of scikit-learn), umap (needs the package umap-learn), or pca. Fewer than five
            vectors are projected by pca.
        perplexity: number of neighbours that t-SNE and UMAP consider; at most a third of N.
        seed: of t-SNE and UMAP.

    Raises:
        UsageError: an unknown method, or umap without its package.
        DinomedError: a value is not finite.
    """
    check_method(method)
    units = normalised(vectors)
    sample = units[np.linspace(0, len(units) - 1, min(len(units), _SAMPLE)).astype(np.int64)]
    mean, basis = principal_components(sample, _DIMENSIONS)
    reduced = ((units - mean) @ basis).astype(np.float32)
    is_pca = method == "pca" or len(vectors) < _FEWEST
    points = _pad_plane(reduced[:, :2]) if is_pca else _embed(reduced, method, perplexity, seed)
    return VectorMap(points, units, mean, basis[:, :2], is_pca)


def _pad_plane(points: np.ndarray) -> np.ndarray:
    """Return points (N, 2), where there are fewer than two components."""
    return np.pad(points, ((0, 0), (0, 2 - points.shape[1])))


def _embed(reduced: np.ndarray, method: str, perplexity: float, seed: int) -> np.ndarray:
    """Return the points of t-SNE or UMAP, float32 (N, 2)."""
    neighbors = max(2.0, min(perplexity, (len(reduced) - 1) / 3))
    if method == "umap":
        from umap import UMAP

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the warning that a seed means one thread
            return np.asarray(UMAP(n_neighbors=round(neighbors), random_state=seed).fit_transform(reduced), np.float32)
    from sklearn.manifold import TSNE

    tsne = TSNE(perplexity=neighbors, init="pca", random_state=seed)
    return np.asarray(tsne.fit_transform(reduced), np.float32)


def check_method(method: str) -> None:
    """Raise a `UsageError` if a method is unknown, or its package is not installed."""
    if method not in METHODS:
        raise UsageError(f"`method={method!r}` is unknown; use {', '.join(METHODS)}")
    if method == "umap":
        from importlib.util import find_spec

        if find_spec("umap") is None:
            raise UsageError("`method='umap'` needs the package umap-learn: pip install 'dinomed[umap]'; or use tsne")
