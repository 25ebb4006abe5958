"""Synthetic copies: from a seed alone, really changed, and still the same picture."""

import cv2
import numpy as np
import pytest

from dinomed.datasets.synthetic.scene import draw_scene
from dinomed.datasets.synthetic.view import take_view
from dinomed.errors import UsageError
from dinomed.pretrain.curation.descriptors.synthetic_copies import KINDS, draw_text, make_copy


@pytest.fixture(scope="module")
def lesion() -> np.ndarray:
    rng = np.random.default_rng(3)
    return take_view(draw_scene("irregular", 200, 270, rng), 150, 200, rng)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_decides_and_the_original_stays(lesion: np.ndarray, kind: str) -> None:
    before = lesion.copy()
    first, again, other_seed = (make_copy(lesion, kind, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert first.dtype == np.uint8
    assert first.flags.c_contiguous
    assert (lesion == before).all()
    if kind not in ("flip", "turn"):  # of which there are two and three
        assert first.shape != other_seed.shape or (first != other_seed).any()


@pytest.mark.parametrize("kind", KINDS)
def test_every_copy_differs_from_its_original(lesion: np.ndarray, kind: str) -> None:
    for seed in range(8):
        copy = make_copy(lesion, kind, np.random.default_rng(seed))
        assert copy.shape != lesion.shape or (copy != lesion).any()


def test_turns_and_flips_only_move_pixels(lesion: np.ndarray) -> None:
    views = [np.rot90(view, k) for view in (lesion, lesion[:, ::-1]) for k in range(4)]
    for kind, count in (("turn", 3), ("flip", 2)):
        made = {make_copy(lesion, kind, np.random.default_rng(seed)).tobytes() for seed in range(30)}
        assert len(made) == count
        assert made < {np.ascontiguousarray(view).tobytes() for view in views}


def test_a_crop_is_a_part_of_the_picture_with_the_expected_area(lesion: np.ndarray) -> None:
    for seed in range(20):
        crop = make_copy(lesion, "crop", np.random.default_rng(seed))
        share = crop.shape[0] * crop.shape[1] / (lesion.shape[0] * lesion.shape[1])
        assert 0.45 <= share <= 0.92  # a crop that would not fit is cut, and sides are whole pixels
        differences = cv2.matchTemplate(lesion, crop, cv2.TM_SQDIFF)
        assert (
            differences.min() < 0.02 * crop.size
        )  # squared grey levels; 0 but for the rounding of a float32 transform


def test_a_border_frames_the_whole_picture(lesion: np.ndarray) -> None:
    framed = make_copy(lesion, "border", np.random.default_rng(0))
    assert framed.shape > lesion.shape
    assert cv2.matchTemplate(framed, lesion, cv2.TM_SQDIFF).min() < 0.02 * lesion.size
    assert np.ptp(framed[0]) == 0


def test_blur_and_jpeg_lose_detail_and_keep_the_rest(lesion: np.ndarray) -> None:
    def detail(image: np.ndarray) -> float:
        return float(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())

    blurred = make_copy(lesion, "blur", np.random.default_rng(0))
    assert detail(blurred) < 0.5 * detail(lesion)
    for kind in ("blur", "jpeg"):
        copy = make_copy(lesion, kind, np.random.default_rng(0))
        assert np.abs(copy.astype(float) - lesion).mean() < 12  # grey levels


def test_text_is_drawn_at_the_given_place_and_size() -> None:
    gray = np.full((200, 300, 3), 128, np.uint8)
    written = draw_text(gray, ["HELLO"], 0.1, (0.5, 0.5), (255, 0, 0))
    rows, columns = np.nonzero((written != gray).any(axis=2))
    assert columns.min() >= 150
    assert rows.min() >= 100
    assert 10 <= np.ptp(rows) + 1 <= 20  # capitals are about 0.7 of a font's size
    assert (written[rows, columns, 0] >= 128).all()


def test_an_unknown_kind_is_named_with_the_nearest(lesion: np.ndarray) -> None:
    with pytest.raises(UsageError, match="'crops'; did you mean 'crop'"):
        make_copy(lesion, "crops", np.random.default_rng(0))
