"""PCA colours of constructed feature fields, whose parts are known."""

import numpy as np
import pytest

from dinomed.errors import UsageError
from dinomed.explore.pca import find_foreground, foreground_scores, pca_colours, principal_components


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_foreground_is_coloured_and_the_border_black(sign: float) -> None:
    rng = np.random.default_rng(0)
    patches = rng.normal(0, 0.1, (3, 16, 16, 8))
    patches[:, 5:11, 5:11, 0] += 5 * sign
    colours = pca_colours(patches, find_foreground(patches))
    assert colours.shape == (3, 16, 16, 3)
    shown = colours.any(-1)
    assert shown[:, 5:11, 5:11].mean() > 0.9
    assert not shown[:, :4].any()


def field() -> tuple[np.ndarray, np.ndarray]:
    """Two images of an object of four parts before a background: patches (2, 16, 16, 12), and the part of each patch,
    0 for the background. The object has another place in the second image."""
    rng = np.random.default_rng(3)
    parts = np.zeros((2, 16, 16), int)
    for image, (row, column) in enumerate(((4, 3), (6, 7))):
        for number, (y, x) in enumerate(((0, 0), (0, 4), (4, 0), (4, 4)), 1):
            parts[image, row + y : row + y + 4, column + x : column + x + 4] = number
    means = np.zeros((5, 12))
    means[1:, 0] = 6  # what the object has and the background lacks
    means[np.arange(1, 5), np.arange(1, 5)] = 2
    return means[parts] + rng.normal(0, 0.1, (*parts.shape, 12)), parts


def test_a_constructed_field_returns_its_parts() -> None:
    patches, parts = field()
    foreground = find_foreground(patches)
    assert np.array_equal(foreground, parts > 0)
    colours = pca_colours(patches, foreground).astype(float)
    assert not colours[parts == 0].any()
    centres = np.stack([colours[parts == part].mean(axis=0) for part in range(1, 5)])
    nearest = np.linalg.norm(colours[foreground][:, None] - centres, axis=-1).argmin(axis=1) + 1
    assert np.array_equal(nearest, parts[foreground])  # in both images a part has its colour, and no other part has it
    apart = np.linalg.norm(centres[:, None] - centres, axis=-1) + 999 * np.eye(4)
    assert apart.min() > 100  # of 441, the diagonal of the colour cube


def test_flip_takes_the_other_side_and_a_higher_threshold_less() -> None:
    patches, parts = field()
    assert np.array_equal(find_foreground(patches, flip=True), parts == 0)
    scores = foreground_scores(patches)
    assert (scores.mean(), scores.std()) == (pytest.approx(0, abs=1e-9), pytest.approx(1))
    higher = find_foreground(patches, threshold=float(scores[parts > 0].mean()))
    assert 0 < higher.sum() < (parts > 0).sum()
    with pytest.raises(UsageError, match=r"threshold=50.* leaves 0 patches"):
        find_foreground(patches, threshold=50)


def test_components_equal_those_of_a_singular_value_decomposition() -> None:
    x = np.random.default_rng(4).normal(size=(50, 6)) * np.arange(6, 0, -1)
    mean, basis = principal_components(x, 3)
    _, _, expected = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    assert np.allclose(mean, x.mean(axis=0))
    assert np.allclose(np.abs(basis.T @ expected[:3].T), np.eye(3), atol=1e-9)
    assert (basis[np.abs(basis).argmax(axis=0), [0, 1, 2]] > 0).all()


def test_a_feature_has_the_same_colour_in_every_picture() -> None:
    rng = np.random.default_rng(1)
    first, other = rng.normal(size=(8, 8, 6)), rng.normal(1, 3, size=(8, 8, 6))
    other[:4, 2] = first[5, 3:7]  # four patches of the first picture, elsewhere in the second
    colours = pca_colours(np.stack([first, other]))
    assert np.array_equal(colours[1, :4, 2], colours[0, 5, 3:7])
    assert np.abs(colours[0].astype(int) - colours[1]).mean() > 10
    # Which components they are is decided by all pictures together, so another companion gives other colours.
    alone = pca_colours(first[None])
    assert np.abs(alone[0].astype(int) - colours[0]).mean() > 10


def test_colours_follow_the_directions_in_which_features_differ_most() -> None:
    rng = np.random.default_rng(2)
    strengths = np.array([0.1, 9.0, 0.1, 3.0, 0.1, 1.0])
    patches = rng.normal(size=(2, 12, 12, 6)) * strengths
    colours = pca_colours(patches).reshape(-1, 3).astype(float)
    for component, channel in enumerate([1, 3, 5]):  # red, green and blue, strongest first
        correlation = np.corrcoef(colours[:, component], patches[..., channel].ravel())[0, 1]
        assert abs(correlation) > 0.9  # 288 samples of unequal variance: nearly the axes themselves
