"""Parts of the benchmark of rules for whole videos, whose run takes minutes."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

Script = Callable[[str], ModuleType]


def test_each_rule_marks_the_videos_that_it_states(script: Script) -> None:
    videos = script("whole_videos")
    over = [np.arange(20) < count for count in (0, 1, 3, 6, 10, 11)]  # 0, 5, 15, 30, 50 and 55% of the frames
    rates = videos.marked(over[1:], [False, False, True, False, True])
    assert (rates["videos"], rates["frames"], rates["frames over the limit"]) == (5, 100, 0.31)
    names = ("most", "half", "quarter", "tenth", "any", "mean")
    assert [rates[name] for name in names] == [0.2, 0.4, 0.6, 0.8, 1.0, 0.4]


def test_foreign_videos_are_marked_and_those_of_the_reference_are_not(script: Script) -> None:
    videos, rng = script("whole_videos"), np.random.default_rng(0)
    reference = rng.normal(1, 0.1, (200, 8))
    kinds = {"like": [rng.normal(1, 0.1, (6, 8)) for _ in range(5)], "foreign": [rng.normal(-1, 0.1, (6, 8))]}
    rates = videos.judge_all(reference, [str(row) for row in range(200)], kinds)
    assert (rates["like"]["most"], rates["foreign"]["most"], rates["foreign"]["mean"]) == (0, 1, 1)


def test_sequences_are_rows_that_follow_each_other(script: Script) -> None:
    videos = script("whole_videos")
    assert videos.runs_of(list(range(5, 14))) == [[5, 6, 7, 8], [9, 10, 11, 12]]
    assert videos.rows_by(["b", "a", "b"]) == {"b": [0, 2], "a": [1]}


def test_abstained_sequences_are_those_of_low_confidence(script: Script) -> None:
    videos, rng = script("whole_videos"), np.random.default_rng(0)
    labels = np.array(["x", "y"] * 60)
    vectors = rng.normal(0, 1, (120, 2)) + 1.2 * np.stack([labels == "x", labels == "y"], axis=1)
    units = [str(row) for row in range(60)]
    sequences = [vectors[row : row + 1].repeat(3, axis=0) for row in range(60)]
    results = videos.judge_abstention(
        (vectors[:60], labels[:60]), (vectors[60:], labels[60:], units), sequences, labels[:60]
    )
    assert results["most"] == results["mean"] == results["answer"] == results["any"]  # all frames are equal
    assert 0 < results["answer"]["abstained"] < 1
    assert results["answer"]["wrong of the kept"] < results["answer"]["wrong of the abstained"]
    assert results["validation"]["abstained"] == pytest.approx(0.2, abs=0.05)
