"""PCA colours: the foreground does not depend on the sign of the component."""

import numpy as np
import pytest

from dinomed.features.projection import pca_colours


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_foreground_is_coloured_and_the_border_black(sign: float) -> None:
    rng = np.random.default_rng(0)
    patches = rng.normal(0, 0.1, (3, 16, 16, 8))
    patches[:, 5:11, 5:11, 0] += 5 * sign
    colours = pca_colours(patches)
    assert colours.shape == (3, 16, 16, 3)
    shown = colours.any(-1)
    assert shown[:, 5:11, 5:11].mean() > 0.9
    assert not shown[:, :4].any()


def test_a_feature_has_the_same_colour_in_every_picture() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(8, 8, 6)), rng.normal(1, 3, size=(8, 8, 6))
    second[:4, 2] = first[5, 3:7]  # four patches of the first picture, elsewhere in the second
    colours = pca_colours(np.stack([first, second]), foreground_only=False)
    assert np.array_equal(colours[1, :4, 2], colours[0, 5, 3:7])
    assert np.abs(colours[0].astype(int) - colours[1]).mean() > 10
    # Which components they are is decided by all pictures together, so another companion gives other colours.
    alone = pca_colours(first[None], foreground_only=False)
    assert np.abs(alone[0].astype(int) - colours[0]).mean() > 10


def test_colours_follow_the_directions_in_which_features_differ_most() -> None:
    rng = np.random.default_rng(2)
    strengths = np.array([0.1, 9.0, 0.1, 3.0, 0.1, 1.0])
    patches = rng.normal(size=(2, 12, 12, 6)) * strengths
    colours = pca_colours(patches, foreground_only=False).reshape(-1, 3).astype(float)
    for component, channel in enumerate([1, 3, 5]):  # red, green and blue, strongest first
        correlation = np.corrcoef(colours[:, component], patches[..., channel].ravel())[0, 1]
        assert abs(correlation) > 0.9  # 288 samples of unequal variance: nearly the axes themselves
