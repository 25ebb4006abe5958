"""Rules for lesions: the black frame, the smallest area, the largest region, and the list of areas."""

import numpy as np
import pytest

from dinomed.adapters.tasks.segment.lesions import Lesion, LesionRules, field_of_view, select_lesions


@pytest.fixture
def mask() -> np.ndarray:
    """Regions of 200, 60 and 1 px in a mask of 100 x 100 px."""
    mask = np.zeros((100, 100), bool)
    mask[10:20, 10:30] = mask[50:56, 40:50] = mask[90, 90] = True
    return mask


def test_regions_below_the_smallest_area_are_left_out_and_the_largest_comes_first(mask: np.ndarray) -> None:
    kept, lesions = select_lesions(mask, LesionRules(min_share=0.001))
    assert lesions == [Lesion(200, (10, 10, 30, 20)), Lesion(60, (40, 50, 50, 56))]
    assert kept.sum() == 260
    assert not kept[90, 90]
    everything, lesions = select_lesions(mask, LesionRules(min_share=0))
    assert (everything == mask).all()
    assert [lesion.area_px for lesion in lesions] == [200, 60, 1]


def test_largest_only_keeps_one_region(mask: np.ndarray) -> None:
    kept, lesions = select_lesions(mask, LesionRules(largest_only=True))
    assert [lesion.area_px for lesion in lesions] == [200]
    assert kept.sum() == 200


def test_an_empty_mask_has_no_lesion() -> None:
    kept, lesions = select_lesions(np.zeros((8, 9), bool), LesionRules())
    assert (kept.shape, kept.any(), lesions) == ((8, 9), False, [])


def test_pixels_that_touch_at_a_corner_are_one_region() -> None:
    assert len(select_lesions(np.eye(5, dtype=bool), LesionRules(min_share=0))[1]) == 1


@pytest.fixture
def dermoscopy() -> np.ndarray:
    """Skin in a round field of view of 90 px radius, with a black lesion of 20 px radius in its centre."""
    rows, columns = np.mgrid[:200, :240]
    distance = np.hypot(rows - 100, columns - 120)
    image = np.full((200, 240, 3), 180, np.uint8)
    image[distance > 90] = 10
    image[distance < 20] = 5
    return image


def test_the_black_frame_is_outside_and_a_black_lesion_inside(dermoscopy: np.ndarray) -> None:
    field = field_of_view(dermoscopy)
    assert not field[[0, 0, -1, -1], [0, -1, 0, -1]].any()
    assert field[100, 120]
    assert field[100, 60]
    assert field.sum() == pytest.approx(np.pi * 88**2, rel=0.03)  # the rim of 2 px is outside


def test_an_image_without_a_frame_is_field_of_view_throughout() -> None:
    image = np.full((50, 60, 3), 180, np.uint8)
    image[20:30, 0:10] = 0  # black at the border, but at no corner
    assert field_of_view(image).all()


def test_a_dark_image_is_not_taken_for_a_frame() -> None:
    image = np.zeros((50, 60, 3), np.uint8)
    image[20:30, 20:30] = 90
    assert field_of_view(image).all()
