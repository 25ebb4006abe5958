import numpy as np

from dinomed.apps.pages.overlay import HALO, LINE, draw_mask, grow, line_width_px, outline


def _disc(side: int, radius: int) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side] - side // 2
    return (rows**2 + columns**2 <= radius**2).astype(np.uint8)


def test_grow_is_a_square_dilation() -> None:
    mask = np.zeros((9, 9), bool)
    mask[4, 4] = True
    grown = grow(mask, 2)
    assert grown[2:7, 2:7].all()
    assert grown.sum() == 25


def test_outline_is_the_rim_inside_the_mask() -> None:
    mask = _disc(101, 30)
    rim = outline(mask, 2)
    assert (mask[rim] == 1).all()
    assert not rim[50, 50]
    assert rim[50, 80]  # the outermost pixel of the disc
    assert rim[50, 79]
    assert not rim[50, 77]  # (78 is 2 px from the background diagonally)


def test_a_mask_that_ends_at_the_picture_s_edge_has_no_line_there() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[:, :10] = 1
    assert outline(mask, 1).sum() == 20  # the column at its border with the background, not the picture's edges


def test_draw_mask_colours_line_halo_and_inside_only() -> None:
    image = np.full((101, 101, 3), 180, np.uint8)
    mask = _disc(101, 30)
    drawn = draw_mask(image, mask)
    assert tuple(drawn[50, 80]) == LINE
    assert tuple(drawn[50, 81]) == HALO
    assert (drawn[0, 0] == 180).all()
    assert (drawn[50, 50] != 180).any()
    assert (draw_mask(image, mask, fill=0)[50, 50] == 180).all()
    assert (image == 180).all()  # the input is not changed


def test_an_empty_mask_leaves_the_picture_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 255, (30, 40, 3)).astype(np.uint8)
    assert (draw_mask(image, np.zeros((30, 40), np.uint8)) == image).all()


def test_line_width_grows_with_the_picture() -> None:
    assert line_width_px((150, 200)) == 2
    assert line_width_px((3000, 4000)) == 11
