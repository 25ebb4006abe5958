"""Matches of feature fields whose warp is known."""

import numpy as np
import pytest

from dinomed.explore.match import centred_similarity, match_patches

C = 48


def world(x: np.ndarray, y: np.ndarray, seed: int = 0) -> np.ndarray:
    """Features of the places (x, y) of a plane, in 0 to 1: smooth, and different everywhere. (..., C)."""
    rng = np.random.default_rng(seed)
    waves, phases = rng.normal(0, 14, (2, C)), rng.uniform(0, 2 * np.pi, C)
    return np.cos(x[..., None] * waves[0] + y[..., None] * waves[1] + phases)


def places(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres (x, y) of the patches of a picture of the whole plane."""
    y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    return x, y


def warp(x: np.ndarray, y: np.ndarray, degrees: float, scale: float, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the places of a rotated and cropped copy lie in the original."""
    turn = np.deg2rad(degrees)
    dx, dy = (x - 0.5) * scale, (y - 0.5) * scale
    return 0.5 + shift + dx * np.cos(turn) - dy * np.sin(turn), 0.5 + shift + dx * np.sin(turn) + dy * np.cos(turn)


@pytest.mark.parametrize(("degrees", "scale"), [(0, 0.7), (30, 0.8), (90, 1.0), (137, 0.6)])
def test_the_warp_of_a_rotated_and_cropped_copy_is_found(degrees: float, scale: float) -> None:
    x, y = places(20, 24)
    u, v = warp(x, y, degrees, scale, 0.03)
    noise = np.random.default_rng(1).normal(0, 0.15, (2, 20, 24, C))
    first, second = world(x, y) + noise[0], world(u, v) + noise[1]
    matches = match_patches(first, second, spacing=1, count=1000)
    assert len(matches) > 100
    away = [
        np.hypot((u[match.second] - x[match.first]) * 24, (v[match.second] - y[match.first]) * 20) for match in matches
    ]
    assert np.mean(np.array(away) <= 1) > 0.95  # patches; the centres of a turned grid are up to 0.7 apart


def test_without_a_counterpart_there_is_no_match() -> None:
    x, y = places(12, 12)
    assert match_patches(world(x, y), world(x, y, seed=9), min_similarity=0.7) == []
    assert len(match_patches(world(x, y), world(x, y), min_similarity=0.7)) > 10


def test_uniform_images_have_no_matches() -> None:
    flat = np.ones((4, 4, 8), np.float32)
    assert match_patches(flat, flat, min_similarity=-1) == []


def test_every_match_is_mutual_and_equals_numpy() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(6, 6, 24)), rng.normal(size=(4, 9, 24))
    matches = match_patches(first, second, min_similarity=0.05, spacing=1, count=100)
    middle = np.concatenate([first.reshape(-1, 24), second.reshape(-1, 24)]).mean(axis=0)
    a, b = first.reshape(-1, 24) - middle, second.reshape(-1, 24) - middle
    cosine = (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    assert np.abs(centred_similarity(first, second) - cosine).max() < 1e-5  # float32
    expected = {(i, j) for i in range(36) for j in [cosine[i].argmax()] if cosine[:, j].argmax() == i}
    pairs = {(match.first[0] * 6 + match.first[1], match.second[0] * 9 + match.second[1]) for match in matches}
    assert pairs == {(i, j) for i, j in expected if cosine[i, j] >= 0.05}
    similarities = [match.similarity for match in matches]
    assert similarities == sorted(similarities, reverse=True)


def test_suppression_keeps_the_strongest_of_a_region() -> None:
    x, y = places(20, 20)
    first = world(x, y)
    every = match_patches(first, first, spacing=1, count=1000)
    assert len(every) == 400
    kept = match_patches(first, first, spacing=5, count=1000)
    for side in ("first", "second"):
        centres = np.array([getattr(match, side) for match in kept])
        apart = np.abs(centres[:, None] - centres).max(axis=-1) + 999 * np.eye(len(centres), dtype=int)
        assert apart.min() >= 5
    assert 9 <= len(kept) <= 16  # of 20 x 20 places, at most 4 x 4 are 5 apart
    assert [match.similarity for match in match_patches(first, first, spacing=5, count=3)] == [
        match.similarity for match in kept[:3]
    ]
