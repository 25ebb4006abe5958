"""The PCA picture of DINOv2 (figure 1): patch features of several images as colours, the same in all of them."""

import numpy as np

# the weight of a component is judged against the picture's border, three patches wide at most
_BORDER = 3


def pca_colours(patches: np.ndarray, *, foreground_only: bool = True) -> np.ndarray:
    """float (images, rows, columns, C) -> uint8 (images, rows, columns, 3); background is black.

    A first PCA over all patches of all images together separates foreground from background. The sign of a component
    is arbitrary: foreground is the side that touches the borders of the pictures less. A second PCA over the foreground
    gives three components, each stretched to 0 .. 255 between its 2nd and 98th percentile.
    """
    images, rows, columns, channels = patches.shape
    flat = patches.reshape(-1, channels).astype(np.float64)
    keep = np.ones(len(flat), bool)
    if foreground_only:
        first = _components(flat, 1)[:, 0]
        border = np.zeros((images, rows, columns), bool)
        width = min(_BORDER, max(min(rows, columns) // 8, 1))
        border[:, :width] = border[:, -width:] = border[:, :, :width] = border[:, :, -width:] = True
        if first[border.ravel()].mean() > first[~border.ravel()].mean():
            first = -first
        if (first > 0).sum() > 3:
            keep = first > 0
    colours = np.zeros((len(flat), 3))
    components = _components(flat[keep], 3)
    low, high = np.percentile(components, [2, 98], axis=0)
    colours[keep] = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    return (colours.reshape(images, rows, columns, 3) * 255).round().astype(np.uint8)


def _components(x: np.ndarray, count: int) -> np.ndarray:
    """Scores (n, count) on the first principal components; the sign makes the largest loading positive."""
    centred = x - x.mean(0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    basis = vectors[:, ::-1][:, :count]
    basis = basis * np.sign(basis[np.abs(basis).argmax(0), np.arange(basis.shape[1])])
    scores = centred @ basis
    return np.pad(scores, ((0, 0), (0, count - scores.shape[1])))
