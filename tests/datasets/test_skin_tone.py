"""The individual typology angle on constructed colours, and what is left out of it."""

import numpy as np
import pytest

from dinomed.datasets.skin_tone import tone_category, typology_angle


def angle_of(rgb: tuple[int, int, int]) -> float:
    """The angle of a colour by the formulas of sRGB (IEC 61966-2-1) and CIELAB (D65)."""
    values = np.array(rgb) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x = matrix @ linear / np.array([0.95047, 1.0, 1.08883])
    f = np.where(x > (6 / 29) ** 3, np.cbrt(x), x / (3 * (6 / 29) ** 2) + 4 / 29)
    return float(np.degrees(np.arctan2(116 * f[1] - 16 - 50, 200 * (f[1] - f[2]))))


def picture(skin: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A dark lesion with a red margin on skin."""
    image = np.full((120, 160, 3), skin, np.uint8)
    lesion = np.zeros((120, 160), bool)
    lesion[45:75, 60:100] = True
    image[40:80, 55:105] = (170, 60, 60)
    image[lesion] = (60, 30, 20)
    return image, lesion


@pytest.mark.parametrize(
    ("skin", "tone"),
    [
        ((244, 224, 208), "very light"), ((225, 185, 150), "light"), ((200, 155, 120), "intermediate"),
        ((180, 136, 100), "tan"), ((130, 92, 66), "brown"), ((92, 64, 52), "dark"),
    ],
)  # fmt: skip
def test_the_angle_of_a_colour_is_that_of_the_formulas(skin: tuple[int, int, int], tone: str) -> None:
    image, lesion = picture(skin)
    angle = typology_angle(image, lesion)
    assert angle == pytest.approx(angle_of(skin), abs=0.3)  # tables of the library have about 0.1 of L* and b*
    assert angle is not None
    assert tone_category(angle) == tone


def test_hair_reflections_borders_and_the_margin_of_the_lesion_are_left_out() -> None:
    image, lesion = picture((214, 172, 136))
    clean = typology_angle(image, lesion)
    image[:, :25] = 0  # a black border
    image[::12] = (25, 18, 15)  # hair
    image[5:25, 120:150] = 255  # a reflection
    assert typology_angle(image, lesion) == clean


def test_an_image_without_skin_has_no_angle() -> None:
    image, lesion = picture((214, 172, 136))
    assert typology_angle(image, np.ones_like(lesion)) is None
    assert typology_angle(np.zeros_like(image), lesion) is None
    blue, _ = picture((120, 150, 220))
    assert typology_angle(blue, lesion) is None
