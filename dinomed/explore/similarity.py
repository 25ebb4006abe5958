"""Cosine similarity of one patch to all patches, and features small enough for a page to compute it live."""

from collections.abc import Sequence

import numpy as np

from dinomed.features.neighbors import normalised

COMPONENTS = 64


def similarity_maps(images: Sequence[np.ndarray], image: int, patch: tuple[int, int]) -> list[np.ndarray]:
    """Compute the cosine similarity of one patch to all patches of each image.

    Args:
        images: patch tokens, each (rows, columns, C).
        image: index of the image that has the patch.
        patch: its row and column.

    Returns:
        For each image float32 (rows, columns), -1 to 1.
    """
    query = _unit(images[image][patch][None, None])[0, 0]
    return [_unit(tokens) @ query for tokens in images]


def compact_tokens(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Reduce patch tokens to int8 values whose cosine similarity is close to that of the tokens.

    The tokens are scaled to length 1 and projected on the principal directions of all images together; the mean is not
    subtracted, since that would change the angles. Each reduced token is then scaled to -127 to 127 by its largest
    value. With at most `COMPONENTS` channels, rounding is the only error.

    Args:
        images: patch tokens, each (rows, columns, C).

    Returns:
        For each image int8 (rows, columns, directions), with at most `COMPONENTS` directions.
    """
    units = [_unit(tokens).astype(np.float64) for tokens in images]
    every = np.concatenate([unit.reshape(-1, unit.shape[-1]) for unit in units])
    _, vectors = np.linalg.eigh(every.T @ every)
    basis = vectors[:, ::-1][:, :COMPONENTS]
    reduced = [unit @ basis for unit in units]
    largest = [np.maximum(np.abs(values).max(axis=-1, keepdims=True), 1e-12) for values in reduced]
    return [(127 * values / scale).round().astype(np.int8) for values, scale in zip(reduced, largest, strict=True)]


def _unit(tokens: np.ndarray) -> np.ndarray:
    return normalised(tokens.reshape(-1, tokens.shape[-1]), "patch").reshape(tokens.shape)
