import numpy as np

from dinomed.adapters.evaluation.mask_baselines import otsu_mask


def test_threshold_is_the_best_split_by_exhaustive_search() -> None:
    gray = np.random.default_rng(0).normal([80, 170], [20, 15], (500, 2)).clip(0, 255).astype(np.uint8)
    values = gray.ravel().astype(float)

    def within(cut: int) -> float:
        low, high = values[values <= cut], values[values > cut]
        return sum(len(part) * part.var() for part in (low, high) if len(part))

    values_of_dark = gray[otsu_mask(gray[..., None].repeat(3, axis=-1)) == 1]
    best = min(range(int(values.min()), int(values.max())), key=within)
    assert within(int(values_of_dark.max())) == within(best)


def test_the_dark_side_is_the_lesion() -> None:
    image = np.full((20, 30, 3), 200, np.uint8)
    image[5:10, 5:10] = 60
    assert otsu_mask(image).sum() == 25
    assert otsu_mask(image)[7, 7] == 1


def test_a_picture_of_one_gray_has_an_answer() -> None:
    assert otsu_mask(np.full((4, 4, 3), 7, np.uint8)).shape == (4, 4)
