"""Principal components of features, and the PCA colours of patches (Oquab et al. 2023, DINOv2, figure 1)."""

import numpy as np

from dinomed.errors import UsageError

_BORDER = 3  # largest width, in patches, of the border that decides which side is background
_FEWEST = 4  # patches; three components need at least as many


def principal_components(x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit principal components.

    The largest loading of each component is positive, so that equal data give equal signs.

    Args:
        x: (n, C).
        count: number of components; at most C are returned.

    Returns:
        The mean (C,) and the components (C, count), float64, the strongest first.
    """
    values = x.astype(np.float64)
    mean = values.mean(axis=0)
    _, vectors = np.linalg.eigh((values - mean).T @ (values - mean))
    basis = vectors[:, ::-1][:, :count]
    return mean, basis * np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(basis.shape[1])])


def foreground_scores(patches: np.ndarray) -> np.ndarray:
    """Compute how much each patch belongs to the foreground: the first component of all patches of all images.

    The sign of a component is arbitrary. It is chosen so that the mean over the border of the images is below the mean
    over the rest, because objects are usually in the middle.

    Args:
        patches: (images, rows, columns, C).

    Returns:
        float64 (images, rows, columns), with mean 0 and standard deviation 1 over all images.
    """
    images, rows, columns, channels = patches.shape
    flat = patches.reshape(-1, channels)
    mean, basis = principal_components(flat, 1)
    scores = ((flat - mean) @ basis).reshape(images, rows, columns)
    border = np.zeros(scores.shape, bool)
    width = min(_BORDER, max(min(rows, columns) // 8, 1))
    border[:, :width] = border[:, -width:] = border[:, :, :width] = border[:, :, -width:] = True
    if not border.all() and scores[border].mean() > scores[~border].mean():
        scores = -scores
    return scores / max(float(scores.std()), 1e-12)


def find_foreground(patches: np.ndarray, *, threshold: float = 0.0, flip: bool = False) -> np.ndarray:
    """Select the patches of the foreground, whose `foreground_scores` are above a threshold.

    Args:
        patches: (images, rows, columns, C).
        threshold: in standard deviations; a larger value gives a smaller foreground.
        flip: take the other side of the component, where the rule for the sign chose the background.

    Returns:
        bool (images, rows, columns).

    Raises:
        UsageError: fewer than four patches are left.
    """
    scores = foreground_scores(patches)
    foreground = (-scores if flip else scores) > threshold
    if foreground.sum() < _FEWEST:
        raise UsageError(
            f"`threshold={threshold:g}` leaves {foreground.sum()} patches of foreground; choose a lower one"
        )
    return foreground


def pca_colours(patches: np.ndarray, foreground: np.ndarray | None = None) -> np.ndarray:
    """Compute colours: three principal components of the foreground as red, green and blue; the background is black.

    Each component is scaled to 0 .. 255 between its 2nd and 98th percentile. The colours mean the same in all images
    of a call.

    Args:
        patches: (images, rows, columns, C).
        foreground: bool (images, rows, columns), from `find_foreground`; None takes all patches.

    Returns:
        uint8 (images, rows, columns, 3).
    """
    keep = np.ones(patches.shape[:3], bool) if foreground is None else foreground
    chosen = patches[keep].astype(np.float64)
    mean, basis = principal_components(chosen, 3)
    scores = np.pad((chosen - mean) @ basis, ((0, 0), (0, 3 - basis.shape[1])))
    low, high = np.percentile(scores, [2, 98], axis=0)
    colours = np.zeros((*patches.shape[:3], 3))
    colours[keep] = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)
    return (colours * 255).round().astype(np.uint8)
