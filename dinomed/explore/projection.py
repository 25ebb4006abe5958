"""Projection of feature vectors to a plane: PCA, and then t-SNE or UMAP."""

import warnings

import numpy as np

from dinomed.errors import UsageError
from dinomed.explore.pca import principal_components
from dinomed.features.neighbors import normalised

METHODS = ("tsne", "umap", "pca")
_DIMENSIONS = 50  # of the PCA before t-SNE or UMAP; van der Maaten and Hinton 2008 (section 4.2) use 30
_SAMPLE = 20_000  # vectors to which the PCA is fitted
_FEWEST = 5  # vectors; t-SNE and UMAP need neighbours


def project_to_plane(
    vectors: np.ndarray, method: str = "tsne", *, perplexity: float = 30.0, seed: int = 0
) -> np.ndarray:
    """Project vectors to a plane, so that similar vectors lie close together.

    The vectors are scaled to length 1 and reduced to 50 principal components first. Distances between distant groups,
    and the sizes of groups, have no meaning with t-SNE and UMAP. Equal inputs and seeds give equal points.

    Args:
        vectors: (N, C).
        method: tsne (Barnes-Hut t-SNE of scikit-learn), umap (needs the package umap-learn), or pca. Fewer than five
            vectors are projected by pca.
        perplexity: number of neighbours that t-SNE and UMAP consider; at most a third of N.
        seed: of t-SNE and UMAP.

    Returns:
        float32 (N, 2).

    Raises:
        UsageError: an unknown method, or umap without its package.
        DinomedError: a value is not finite.
    """
    check_method(method)
    units = normalised(vectors)
    sample = units[np.linspace(0, len(units) - 1, min(len(units), _SAMPLE)).astype(np.int64)]
    mean, basis = principal_components(sample, _DIMENSIONS)
    reduced = ((units - mean) @ basis).astype(np.float32)
    if method == "pca" or len(vectors) < _FEWEST:
        points = reduced[:, :2]
        return np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
    neighbors = max(2.0, min(perplexity, (len(vectors) - 1) / 3))
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
