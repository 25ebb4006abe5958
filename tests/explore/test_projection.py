"""Projections to a plane: groups stay together, equal inputs give equal points, and requests that are refused."""

import numpy as np
import pytest

from dinomed.errors import UsageError
from dinomed.explore import projection
from dinomed.explore.projection import fit_map, project_to_plane


def three_groups(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    centres = 4 * np.eye(3, 24)
    group = np.repeat(np.arange(3), count)
    return centres[group] + rng.normal(0, 0.3, (3 * count, 24)), group


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_similar_vectors_lie_together(method: str) -> None:
    vectors, group = three_groups()
    points = project_to_plane(vectors, method, perplexity=15)
    assert points.shape == (120, 2)
    distance = np.linalg.norm(points[:, None] - points, axis=-1) + 1e9 * np.eye(120)
    assert (group[distance.argmin(axis=1)] == group).all()
    assert np.array_equal(points, project_to_plane(vectors, method, perplexity=15))


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_one_more_vector_is_placed_among_similar_ones(method: str) -> None:
    vectors, group = three_groups()
    fitted = fit_map(vectors, method, perplexity=15)
    for number in range(3):
        place = fitted.place(3 * vectors[group == number].mean(axis=0))
        distance = np.linalg.norm(fitted.points - place, axis=-1)
        assert group[distance.argmin()] == number
    if method == "pca":  # the rule: the fitted components, so a vector of the map lies at its own point
        assert np.allclose(fitted.place(vectors[7]), fitted.points[7], atol=1e-6)
    else:  # the mean of the five most similar vectors, of which it is one
        units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        nearest = np.argsort(-(units @ units[7]))[:5]
        assert np.allclose(fitted.place(vectors[7]), fitted.points[nearest].mean(axis=0), atol=1e-5)


def test_few_vectors_are_projected_too() -> None:
    for count in (1, 2, 4, 6):
        points = project_to_plane(np.random.default_rng(0).normal(size=(count, 8)))
        assert points.shape == (count, 2)
        assert np.isfinite(points).all()


def test_an_unknown_method_and_a_missing_package_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"`method='mds'` is unknown; use tsne, umap, pca"):
        projection.check_method("mds")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs the package umap-learn"):
        projection.check_method("umap")


def test_umap_keeps_groups_together() -> None:
    pytest.importorskip("umap")
    vectors, group = three_groups()
    points = project_to_plane(vectors, "umap", perplexity=15)
    distance = np.linalg.norm(points[:, None] - points, axis=-1) + 1e9 * np.eye(120)
    assert (group[distance.argmin(axis=1)] == group).mean() > 0.95
