"""Similarity of a patch, and the int8 values from which a page computes it."""

import numpy as np
import pytest

from dinomed.explore.similarity import COMPONENTS, compact_tokens, similarity_maps


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(float), b.astype(float)
    return (a @ b) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b)


def grids(channels: int) -> list[np.ndarray]:
    """Tokens of two images around common directions, as those of a backbone are."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(20, channels))
    return [
        (rng.normal(size=(*shape, 20)) @ directions + rng.normal(0, 0.5, (*shape, channels))).astype(np.float32)
        for shape in ((7, 9), (5, 5))
    ]


def test_similarity_equals_numpy() -> None:
    images = grids(96)
    maps = similarity_maps(images, 1, (3, 2))
    for values, tokens in zip(maps, images, strict=True):
        assert values.shape == tokens.shape[:2]
        assert np.abs(values - cosine(tokens, images[1][3, 2])).max() < 1e-5  # float32
    assert maps[1][3, 2] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("channels", "error"), [(32, 0.02), (384, 0.05)])  # rounding alone; 64 of 384 directions too
def test_reduced_tokens_have_nearly_the_same_similarity(channels: int, error: float) -> None:
    images = grids(channels)
    reduced = compact_tokens(images)
    assert [each.dtype for each in reduced] == [np.int8, np.int8]
    assert reduced[0].shape == (7, 9, min(channels, COMPONENTS))
    for image, patch in ((0, (6, 8)), (1, (0, 0))):
        for exact, small in zip(similarity_maps(images, image, patch), reduced, strict=True):
            assert np.abs(cosine(small, reduced[image][patch]) - exact).max() < error
