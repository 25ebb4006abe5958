"""The PCA picture: foreground is found whatever the sign of the component."""

import numpy as np
import pytest

from dinomed.features.projection import pca_colours


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_middle_is_coloured_and_the_border_black(sign: float) -> None:
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
    one = rng.normal(size=(1, 8, 8, 6))
    colours = pca_colours(np.concatenate([one, one]), foreground_only=False)
    assert np.array_equal(colours[0], colours[1])
    assert colours.std() > 0
