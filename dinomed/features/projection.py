"""PCA colours of patch features, as in figure 1 of DINOv2 (Oquab et al. 2023)."""

import numpy as np

_BORDER = 3  # width of the border that tells background from foreground, patches, at most


def pca_colours(patches: np.ndarray, *, foreground_only: bool = True) -> np.ndarray:
    """Compute colours, float (images, rows, columns, C) -> uint8 (images, rows, columns, 3); background is black.

    A first PCA over all patches of all images separates foreground from background. The sign of a component is
    arbitrary; the foreground is the side with less of the border of the images. A second PCA over the foreground gives
    three components, each scaled to 0 .. 255 between its 2nd and 98th percentile. The colours mean the same in all
    images of a call.
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
    """Compute the scores (n, count) on the first principal components; the largest loading of each is positive."""
    centred = x - x.mean(0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    basis = vectors[:, ::-1][:, :count]
    basis = basis * np.sign(basis[np.abs(basis).argmax(0), np.arange(basis.shape[1])])
    scores = centred @ basis
    return np.pad(scores, ((0, 0), (0, count - scores.shape[1])))
