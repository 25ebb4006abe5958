"""Matches of an image and of its shifted copy as evidence of a search; the matching itself is in tests/explore."""

import numpy as np

from dinomed.adapters.retrieval.evidence import match_images
from dinomed.apps.pages.matches import draw_matches


def tokens(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns, 24)).astype(np.float32)


def moved() -> tuple[np.ndarray, np.ndarray]:
    """A block of 3 x 2 patches stands at (1, 1) in one picture and at (4, 3) in the other; the rest is different."""
    first, second = tokens(8, 8), tokens(8, 8, seed=1)
    second[4:7, 3:5] = first[1:4, 1:3]
    return first, second


def test_a_moved_object_is_found_where_it_went() -> None:
    evidence = match_images(*moved(), ((80, 160), (40, 40)))
    pairs = [(pair["query"], pair["result"]) for pair in evidence.to_json()["pairs"]]
    # 20 x 10 px a patch in the one, 5 x 5 in the other
    expected = {((20 * x + 30, 10 * y + 15), (5 * x + 17.5, 5 * y + 22.5)) for y in range(3) for x in range(2)}
    assert set(pairs[:6]) == expected
    similarities = [pair["similarity"] for pair in evidence.to_json()["pairs"]]
    assert min(similarities[:6]) > 0.99
    assert similarities == sorted(similarities, reverse=True)


def test_uniform_images_have_no_pairs() -> None:
    flat = np.ones((4, 4, 8), np.float32)
    report = match_images(flat, flat, ((10, 10), (10, 10))).to_json()
    assert report["pairs"] == []
    assert report["min_similarity"] == 0.5


def test_the_drawing_shows_both_and_marks_the_pairs() -> None:
    left, right = np.full((80, 160, 3), 90, np.uint8), np.full((40, 40, 3), 90, np.uint8)
    drawn = draw_matches(left, right, match_images(*moved(), ((80, 160), (40, 40))), tile_px=160)
    cyan = np.abs(drawn.astype(int) - (64, 255, 255)).max(axis=-1) < 3  # the mark of the best pair, on both sides
    columns = np.nonzero(cyan)[1]
    half = drawn.shape[1] // 2
    assert (columns < half).sum() > 50
    assert (columns > half).sum() > 50
    flat = np.ones((4, 4, 8), np.float32)
    none = draw_matches(left, right, match_images(flat, flat, ((80, 160), (40, 40))), tile_px=160)
    assert not (np.abs(none.astype(int) - (64, 255, 255)).max(axis=-1) < 3).any()


def test_a_transparent_drawing_has_no_background_and_no_note() -> None:
    left, right = np.full((80, 160, 3), 90, np.uint8), np.full((40, 40, 3), 90, np.uint8)
    evidence = match_images(*moved(), ((80, 160), (40, 40)))
    opaque = draw_matches(left, right, evidence, tile_px=160)
    drawn = draw_matches(left, right, evidence, tile_px=160, transparent=True)
    assert drawn.shape == (*opaque.shape[:2], 4)
    assert not drawn[:, :20, 3].any()  # the margin
    images = drawn[..., 3] == 255
    assert (drawn[images][:, :3] == opaque[images]).all()
    assert images.mean() > 0.4
    flat = np.ones((4, 4, 8), np.float32)
    none = draw_matches(left, right, match_images(flat, flat, ((80, 160), (40, 40))), tile_px=160, transparent=True)
    assert set(np.unique(none[none[..., 3] == 255][:, :3])) == {90}  # the images alone
