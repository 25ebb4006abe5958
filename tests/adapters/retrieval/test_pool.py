"""Pooling and whitening, compared with float64."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from dinomed.adapters.retrieval.pool import Pooling, fit_whitening, parse_pool
from dinomed.errors import UsageError
from dinomed.features.compute import Features
from dinomed.features.pooling import generalised_mean


@pytest.fixture
def features() -> Features:
    generator = torch.Generator().manual_seed(0)
    return Features(
        torch.randn(3, 8, generator=generator),
        torch.randn(3, 8, generator=generator),
        torch.randn(3, 8, 4, 5, generator=generator),
    )


def test_gem_is_the_generalised_mean_and_lies_between_mean_and_maximum(features: Features) -> None:
    patches = features.patches
    clipped = np.maximum(patches.numpy().astype(np.float64), 1e-6)
    for power in (1.0, 3.0, 7.5):
        expected = (clipped**power).mean(axis=(2, 3)) ** (1 / power)
        assert np.abs(generalised_mean(patches, power).numpy() - expected).max() < 1e-5  # float32, values of order 1
    assert torch.allclose(
        generalised_mean(patches, 64), torch.from_numpy(clipped.max(axis=(2, 3))).float(), rtol=0.06
    )  # 20^(1/64)


def test_gem_does_not_overflow_at_any_power() -> None:
    assert torch.isfinite(
        generalised_mean(torch.full((1, 2, 3, 3), 1e4), 64)
    ).all()  # 1e4 to the 64th is beyond float32


def test_each_pooling(features: Features) -> None:
    assert torch.equal(Pooling(tokens="cls")(features), features.cls)
    assert torch.equal(Pooling(tokens="mean")(features), features.mean)
    both = Pooling(tokens="cls+mean")(features)
    assert both.shape == (3, 16)
    assert torch.allclose(both[:, :8].norm(dim=1), torch.ones(3))  # both halves weigh the same
    assert torch.allclose(both[:, 8:].norm(dim=1), torch.ones(3))
    assert Pooling(tokens="gem").feature_spec.patches
    assert not Pooling(tokens="cls").feature_spec.patches


def test_whitening_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((300, 10)) @ rng.standard_normal((10, 10))).astype(np.float32)
    ours = fit_whitening(x, 4)(x)
    theirs = PCA(4, whiten=True, svd_solver="full").fit_transform(x.astype(np.float64))
    assert np.abs(np.cov(ours.T) - np.eye(4)).max() < 5e-3  # N for N - 1, and the ridge of 1e-4
    assert np.abs(np.abs(ours) - np.abs(theirs)).max() < 0.02  # signs of components are arbitrary


def test_directions_without_variance_are_not_amplified() -> None:
    x = np.zeros((50, 6), np.float32)
    x[:, 0] = np.linspace(-1, 1, 50)
    assert np.abs(fit_whitening(x, 5)(x + 1e-6)).max() < 3


@pytest.mark.parametrize("dimension", [0, 11, 20])
def test_too_many_whitened_dimensions_are_refused(dimension: int) -> None:
    with pytest.raises(UsageError, match="allow 1 to 10 dimensions"):
        fit_whitening(np.random.default_rng(0).standard_normal((40, 10)), dimension)


def test_a_misspelt_pooling_is_named() -> None:
    with pytest.raises(UsageError, match="did you mean 'mean'"):
        parse_pool("maen")
