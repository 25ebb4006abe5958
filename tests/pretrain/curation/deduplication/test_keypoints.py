"""Matching keypoints alone do not make a copy: the same panel in two images matches too."""

import cv2
import numpy as np
import pytest

from dinomed.pretrain.curation.deduplication import keypoints
from dinomed.pretrain.curation.deduplication.config import MIN_MATCHES
from dinomed.pretrain.curation.deduplication.keypoints import count_matches, find_keypoints
from dinomed.pretrain.curation.descriptors.synthetic_copies import KINDS, draw_text, make_copy


def draw_tissue(seed: int) -> np.ndarray:
    """Smooth blotches at several scales, uint8 (240, 320, 3)."""
    rng = np.random.default_rng(seed)
    texture = sum(
        cv2.resize(rng.normal(0, 28, (240 // side, 320 // side, 3)), (320, 240), interpolation=cv2.INTER_CUBIC)
        for side in (4, 12, 40)
    )
    return np.clip(np.array([190, 120, 110]) + texture, 0, 255).astype(np.uint8)


def with_panel(image: np.ndarray) -> np.ndarray:
    """The image with a panel over a quarter of it, the same for every image, as a device draws it."""
    image = image.copy()
    image[150:, :110] = (40, 180, 140)
    image[160:230, 10:100] = draw_tissue(99)[:70, :90]
    return draw_text(image, ["00:36:52", "SCOPE 7"], 0.07, (0.02, 0.05))


def test_the_same_panel_in_two_images_is_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (find_keypoints(with_panel(draw_tissue(seed))) for seed in (0, 1))
    assert count_matches(first, second) == 0
    monkeypatch.setattr(keypoints, "_MIN_SIMILAR_SHARE", 0.0)
    assert count_matches(first, second) >= 2 * MIN_MATCHES  # the keypoints alone would make it a copy


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("mixed", "blur")])
def test_copies_of_an_image_with_a_panel_are_found(kind: str) -> None:
    image = with_panel(draw_tissue(0))
    count = count_matches(find_keypoints(image), find_keypoints(make_copy(image, kind, np.random.default_rng(3))))
    assert count >= MIN_MATCHES


def test_an_image_of_one_colour_is_similar_to_nothing() -> None:
    flat = np.full((60, 80), 128, np.uint8)
    assert keypoints._similar_share(flat, flat, np.array([[1.0, 0, 0], [0, 1.0, 0]])) == 0.0


def test_an_image_smaller_than_a_place_is_accepted() -> None:
    thin = find_keypoints(draw_tissue(0)[:9, :300])
    assert count_matches(thin, find_keypoints(draw_tissue(0))) >= 0
