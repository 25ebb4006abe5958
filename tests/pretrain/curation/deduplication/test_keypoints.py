"""Points that align are no copy by themselves: the same panel in two pictures aligns too."""

import cv2
import numpy as np
import pytest

from dinomed.pretrain.curation.deduplication import keypoints as alignment
from dinomed.pretrain.curation.deduplication.keypoints import LEAST_MATCHES, count_matches, find_points
from dinomed.pretrain.curation.descriptors.synthetic_copies import KINDS, draw_text, make_copy


def draw_tissue(seed: int) -> np.ndarray:
    """Smooth blotches at several scales, uint8 (240, 320, 3)."""
    rng = np.random.default_rng(seed)
    picture = sum(
        cv2.resize(rng.normal(0, 28, (240 // side, 320 // side, 3)), (320, 240), interpolation=cv2.INTER_CUBIC)
        for side in (4, 12, 40)
    )
    return np.clip(np.array([190, 120, 110]) + picture, 0, 255).astype(np.uint8)


def with_panel(image: np.ndarray) -> np.ndarray:
    """A quarter of the picture as a device draws it: the same in every picture."""
    image = image.copy()
    image[150:, :110] = (40, 180, 140)
    image[160:230, 10:100] = draw_tissue(99)[:70, :90]
    return draw_text(image, ["00:36:52", "SCOPE 7"], 0.07, (0.02, 0.05))


def test_the_same_panel_in_two_pictures_is_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (find_points(with_panel(draw_tissue(seed))) for seed in (0, 1))
    assert count_matches(one, other) == 0
    monkeypatch.setattr(alignment, "_LEAST_ALIKE", 0.0)
    assert count_matches(one, other) >= 2 * LEAST_MATCHES  # the points alone would have said so


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("mixed", "blur")])
def test_copies_of_a_picture_with_a_panel_are_found(kind: str) -> None:
    image = with_panel(draw_tissue(0))
    found = count_matches(find_points(image), find_points(make_copy(image, kind, np.random.default_rng(3))))
    assert found >= LEAST_MATCHES


def test_a_picture_of_one_colour_agrees_with_nothing() -> None:
    flat = np.full((60, 80), 128, np.uint8)
    assert alignment._share_alike(flat, flat, np.array([[1.0, 0, 0], [0, 1.0, 0]])) == 0.0


def test_a_picture_smaller_than_a_place_is_taken() -> None:
    thin = find_points(draw_tissue(0)[:9, :300])
    assert count_matches(thin, find_points(draw_tissue(0))) >= 0
