"""Matching patches of an image and of its shifted copy, for which the matches are known."""

import numpy as np
import pytest

from dinomed.adapters.retrieval.evidence import Grid, match
from dinomed.apps.pages.matches import draw_matches


def tokens(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns, 24)).astype(np.float32)


def test_an_image_matches_itself_patch_by_patch() -> None:
    grid = Grid(tokens(5, 6), (50, 120))
    matches = match(grid, grid)
    assert all(pair.query == pair.result for pair in matches.pairs)
    assert len(matches.pairs) == 30
    assert all(pair.similarity == pytest.approx(1, abs=1e-5) for pair in matches.pairs)


def test_a_moved_object_is_found_where_it_went() -> None:
    """A block of 3 x 2 patches stands at (1, 1) in one picture and at (4, 3) in the other; the rest is different."""
    first, second = tokens(8, 8), tokens(8, 8, seed=1)
    second[4:7, 3:5] = first[1:4, 1:3]
    matches = match(Grid(first, (80, 160)), Grid(second, (40, 40)))
    best = matches.regions[0]
    assert len(best.pairs) == 6
    report = matches.to_json()["regions"][0]
    # 20 x 10 px a patch in the one, 5 x 5 in the other: left, top, right, bottom
    assert report["query_box"] == (20.0, 10.0, 60.0, 40.0)
    assert report["result_box"] == (15.0, 20.0, 25.0, 35.0)
    assert report["patches"] == 6
    pairs = {(pair["query"], pair["result"]) for pair in matches.to_json()["pairs"][:6]}
    assert ((30.0, 15.0), (17.5, 22.5)) in pairs


def test_every_pair_is_mutual_and_has_a_positive_similarity() -> None:
    left, right = Grid(tokens(6, 6), (60, 60)), Grid(tokens(4, 9, seed=3), (60, 60))
    matches = match(left, right)
    assert (
        len({pair.query for pair in matches.pairs})
        == len({pair.result for pair in matches.pairs})
        == len(matches.pairs)
    )
    mean = np.concatenate([left.tokens.reshape(-1, 24), right.tokens.reshape(-1, 24)]).mean(0)
    a, b = (grid.tokens.reshape(-1, 24).astype(np.float64) - mean for grid in (left, right))
    cosine = (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    for pair in matches.pairs:
        assert cosine[pair.query].argmax() == pair.result
        assert cosine[:, pair.result].argmax() == pair.query
        assert pair.similarity == pytest.approx(cosine[pair.query, pair.result], abs=1e-5)
    assert sorted((pair.similarity for pair in matches.pairs), reverse=True) == [p.similarity for p in matches.pairs]


def test_uniform_images_have_no_matches() -> None:
    flat = Grid(np.ones((4, 4, 8), np.float32), (10, 10))
    matches = match(flat, flat)
    assert matches.pairs == matches.regions == ()
    assert matches.to_json()["regions"] == []


def test_the_drawing_shows_both_and_frames_the_regions() -> None:
    first, second = tokens(8, 8), tokens(8, 8, seed=1)
    second[4:7, 3:5] = first[1:4, 1:3]
    left, right = np.full((80, 160, 3), 90, np.uint8), np.full((40, 40, 3), 90, np.uint8)
    matches = match(Grid(first, (80, 160)), Grid(second, (40, 40)))
    drawn = draw_matches(left, right, matches, height=160)
    assert drawn.shape == (160, 320 + 8 + 160, 3)
    cyan = (drawn.astype(int) - (25, 255, 255)).__abs__().max(axis=-1) < 3
    rows, columns = np.nonzero(cyan[:, :320])
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (40, 20, 119, 79)  # twice the box, as the picture
    assert cyan[:, 328:].any()
