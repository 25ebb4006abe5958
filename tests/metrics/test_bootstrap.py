"""The cluster bootstrap against a plain loop and a known variance; whole groups; the seed."""

import time

import numpy as np
import pytest

from dinomed.metrics.bootstrap import bootstrap, bootstrap_mean, draw_groups
from dinomed.metrics.classification import Predictions


def test_as_many_whole_groups_as_there_are_are_drawn() -> None:
    groups = ["a", "b", "a", "c", "b", "a"]
    counts = np.concatenate(list(draw_groups(groups, 400, 0)))
    assert counts.shape == (400, 6)
    assert (counts[:, 0] == counts[:, 2]).all()
    assert (counts[:, 1] == counts[:, 4]).all()
    assert (counts[:, [0, 1, 3]].sum(1) == 3).all()
    assert counts[:, 0].mean() == pytest.approx(1, abs=0.15)  # 3 deviations of the mean of 400 draws


def test_the_interval_of_a_mean_equals_theory_for_groups() -> None:
    rng = np.random.default_rng(0)
    effect = rng.normal(size=300)
    values = np.repeat(effect, 4) + 0.1 * rng.normal(size=1200)
    by_group = bootstrap_mean(values, np.repeat(np.arange(300), 4).tolist(), resamples=2000)[0]
    by_image = bootstrap_mean(values, list(range(1200)), resamples=2000)[0]
    half = 1.96 * values.reshape(300, 4).mean(1).std() / np.sqrt(300)
    # 2000 resamples know a 2.5th percentile to about 3% of the deviation's width
    assert by_group.high - by_group.low == pytest.approx(2 * half, rel=0.08)
    assert by_image.high - by_image.low < 0.6 * (by_group.high - by_group.low)  # images of a group are no new news


def test_the_intervals_equal_those_of_a_loop_over_resamples() -> None:
    rng = np.random.default_rng(3)
    labels, probabilities = rng.integers(0, 3, 60), rng.dirichlet(np.ones(3), 60)
    groups = rng.integers(0, 25, 60).tolist()
    predictions = Predictions(labels, probabilities, ["a", "b", "c"])
    interval = bootstrap(lambda counts: predictions.values(counts)["auroc"], groups, resamples=50, seed=7)[0]
    values = []
    for counts in np.concatenate(list(draw_groups(groups, 50, 7))).astype(int):
        drawn = np.repeat(np.arange(60), counts)
        values.append(Predictions(labels[drawn], probabilities[drawn], ["a", "b", "c"]).values()["auroc"][0])
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=1e-12)


def test_the_seed_determines_the_resamples() -> None:
    values, groups = np.random.default_rng(0).normal(size=50), list(range(50))
    first, same, other_seed = (bootstrap_mean(values, groups, resamples=100, seed=seed) for seed in (0, 0, 1))
    assert first == same != other_seed


def test_undefined_resamples_are_counted_and_too_few_give_no_interval() -> None:
    rare = np.array([1.0] + [np.nan] * 9)
    intervals = bootstrap_mean(np.stack([rare, np.ones(10)], 1), list(range(10)))
    assert 250 < intervals[0].undefined < 450  # a given one of ten is missed by 0.9^10 = 35% of the resamples
    assert (intervals[0].low, intervals[0].high) == (1.0, 1.0)
    assert intervals[1].undefined == 0
    for groups in ([], ["one"], ["one", "one"]):
        alone = bootstrap_mean(np.ones(len(groups)), groups)
        assert np.isnan([alone[0].low, alone[0].high]).all()
    nothing = bootstrap_mean(np.full((10, 2), np.nan), list(range(10)))
    assert [np.isnan(interval.low) for interval in nothing] == [True, True]


def test_a_thousand_resamples_of_two_thousand_images_take_seconds() -> None:
    rng = np.random.default_rng(0)
    labels, probabilities = rng.integers(0, 7, 2000), rng.dirichlet(np.ones(7), 2000)
    predictions = Predictions(labels, probabilities, list("abcdefg"))
    began = time.process_time()
    bootstrap(lambda counts: predictions.values(counts)["auroc"], rng.integers(0, 1500, 2000).tolist())
    assert time.process_time() - began < 20  # 2 s on one core; a loop over scikit-learn takes 15 minutes
