"""Gaps between subgroups against a plain loop, and the coverage of their intervals in a simulation."""

import numpy as np
import pytest

from dinomed.metrics.bootstrap import Statistic, draw_groups
from dinomed.metrics.gaps import measure_gaps


def mean_of(values: np.ndarray, rows: list[int]) -> Statistic:
    part = values[rows]
    return lambda counts: np.stack([counts @ part, -(counts @ part)], axis=1) / counts.sum(axis=1, keepdims=True)


def test_the_gap_and_its_interval_equal_a_loop_over_resamples() -> None:
    rng = np.random.default_rng(0)
    values, groups = rng.random(90), rng.integers(0, 40, 90).tolist()
    rows = [list(range(30)), list(range(25, 60)), list(range(60, 90))]  # rows may be in two subgroups
    statistics = [mean_of(values, part) for part in rows]
    means = np.array([values[part].mean() for part in rows])
    table, gaps = measure_gaps(statistics, rows, groups, np.ones((3, 2), bool), np.array([False, True]), resamples=60)
    np.testing.assert_allclose(table, np.stack([means, -means], axis=1), rtol=1e-12)
    gap, same = gaps
    assert gap is not None
    assert same is not None
    assert (gap.worst, gap.best) == (means.argmin(), means.argmax()) == (same.worst, same.best)
    assert gap.value == pytest.approx(means.max() - means.min())
    drawn_rows = sorted({*rows[gap.worst], *rows[gap.best]})
    differences = []
    for counts in np.concatenate(list(draw_groups([groups[i] for i in drawn_rows], 60, 0))):
        count = dict(zip(drawn_rows, counts, strict=True))
        best, worst = (np.average(values[rows[s]], weights=[count[i] for i in rows[s]]) for s in (gap.best, gap.worst))
        differences.append(best - worst)
    assert (gap.interval.low, gap.interval.high) == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])))
    assert (same.interval.low, same.interval.high) == pytest.approx((gap.interval.low, gap.interval.high))


def test_a_subgroup_that_is_not_judged_or_undefined_is_neither_worst_nor_best() -> None:
    values = np.array([0.0] * 4 + [0.5] * 4 + [0.7] * 4 + [np.nan] * 4)
    rows = [list(range(start, start + 4)) for start in (0, 4, 8, 12)]
    judged = np.array([[False, False], [True, True], [True, False], [True, True]])
    statistics = [mean_of(values, part) for part in rows]
    _, gaps = measure_gaps(statistics, rows, list(range(16)), judged, np.zeros(2, bool), resamples=20)
    assert gaps[0] is not None
    assert (gaps[0].worst, gaps[0].best) == (1, 2)
    assert gaps[1] is None  # only one judged subgroup is left
    equal = [mean_of(np.ones(16), part) for part in rows]
    _, gaps = measure_gaps(equal, rows, list(range(16)), np.ones((4, 2), bool), np.zeros(2, bool), resamples=20)
    assert gaps[0] is not None
    assert (gaps[0].value, gaps[0].interval.low, gaps[0].interval.high) == (0, 0, 0)
    assert gaps[0].worst != gaps[0].best


def test_the_interval_of_a_known_gap_covers_it_and_one_over_images_does_not() -> None:
    rng = np.random.default_rng(7)
    true_gap, covered, covered_by_images, trials = 1.0, 0, 0, 200
    rows = [list(range(160)), list(range(160, 320))]
    groups = np.repeat(np.arange(80), 4).tolist()
    for trial in range(trials):
        effect = np.repeat(rng.normal(size=80), 4)  # the images of a patient are alike
        values = effect + 0.3 * rng.normal(size=320) + np.repeat([0.0, true_gap], 160)
        for units in (groups, list(range(320))):
            _, gaps = measure_gaps(
                [mean_of(values, part) for part in rows], rows, units, np.ones((2, 2), bool), np.zeros(2, bool),
                resamples=200, seed=trial,
            )  # fmt: skip
            assert gaps[0] is not None
            signed = true_gap if gaps[0].best == 1 else -true_gap
            inside = gaps[0].interval.low <= signed <= gaps[0].interval.high
            covered += inside and units is groups
            covered_by_images += inside and units is not groups
    # 95% of 200 is 190; three standard deviations of the binomial are 9.2, and 40 groups a side lose about 1%
    assert covered / trials >= 0.9
    assert covered_by_images / trials < 0.8
