"""Splits: never a group on two sides, classes spread, the seed decides (reliability rows 20 and 24)."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinomed.datasets.splits import SPLITS, check_splits, explain_gaps, make_folds, make_splits, split_name
from dinomed.errors import UsageError

rows = st.lists(st.tuples(st.sampled_from("ABCDEFGHIJ"), st.sampled_from(["x", "y", None])), max_size=60)


@settings(max_examples=100, deadline=None)
@given(rows, st.integers(0, 9))
def test_no_group_is_in_two_splits_whatever_the_groups(rows: list[tuple[str, str | None]], seed: int) -> None:
    groups, labels = [row[0] for row in rows], [row[1] for row in rows]
    splits = make_splits(groups, labels, seed=seed)
    assert len(splits) == len(rows)
    check_splits(groups, splits, groups)  # raises if one is
    assert make_splits(groups, labels, seed=seed) == splits
    backwards = make_splits(groups[::-1], labels[::-1], seed=seed)
    assert backwards[::-1] == splits  # the order of the images does not matter
    if len(set(groups)) >= 3:
        assert set(splits) >= {"train", "test"}


def test_shares_are_met_for_every_class() -> None:
    labels = ["rare"] * 40 + ["common"] * 960
    splits = make_splits([f"g{i // 2}" for i in range(1000)], labels)
    for label, total in Counter(labels).items():
        for split, share in zip(SPLITS, (0.7, 0.1, 0.2), strict=True):
            count = sum(
                image_label == label and image_split == split
                for image_label, image_split in zip(labels, splits, strict=True)
            )
            assert abs(count - share * total) <= 2  # groups of two images cannot be cut


def test_one_large_group_does_not_fill_the_test_set() -> None:
    groups = ["big"] * 40 + ["second"] * 30 + [f"g{i}" for i in range(30)]
    counts = Counter(make_splits(groups, [None] * 100))
    assert counts["train"] >= 60
    assert counts["val"] >= 5
    assert counts["test"] >= 5


def test_few_groups_still_reach_every_split() -> None:
    assert sorted(make_splits(list("abc"), [None] * 3)) == ["test", "train", "val"]
    assert make_splits(["a"], [None]) == ["train"]
    assert make_splits([], []) == []


def test_seeds_differ_and_ratios_are_obeyed() -> None:
    groups = [str(i) for i in range(100)]
    assert make_splits(groups, [None] * 100, seed=1) != make_splits(groups, [None] * 100, seed=2)
    assert Counter(make_splits(groups, [None] * 100, ratios=(8, 0, 2))) == {"train": 80, "test": 20}


@pytest.mark.parametrize("ratios", [(1, 2), (0, 0.5, 0.5), (0.7, -0.1, 0.4), (float("nan"), 1, 1)])
def test_bad_ratios_are_refused(ratios: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="ratios"):
        make_splits(["a"], [None], ratios=ratios)


def test_a_group_in_two_splits_is_named() -> None:
    with pytest.raises(UsageError, match=r"one group has c in train and a in test \(and 1 more groups\)"):
        check_splits(["p1", "p2", "p1", "p2"], ["test", "train", "train", "val"], list("abcd"))
    check_splits(["p1", None, "p1", None], ["train", "test", None, "train"], list("abcd"))
    with pytest.raises(UsageError, match="one group has b in train and a in external"):  # a manifest of another tool
        check_splits(["p1", "p1"], ["external", "train"], list("ab"))


def test_a_class_with_one_sample_is_reported() -> None:
    labels = ["many"] * 20 + ["single"]
    groups = [str(i) for i in range(21)]
    splits = make_splits(groups, labels)
    assert explain_gaps(groups, labels, splits) == ["class 'single' (1 group) is not in val or test"]


def test_names_of_splits() -> None:
    assert [split_name(word) for word in ("Training", " VALIDATION ", "valid", "dev", "TEST", "fold1", "")] == [
        "train", "val", "val", "val", "test", None, None,
    ]  # fmt: skip


def test_folds_keep_groups_whole_and_classes_even() -> None:
    rng = np.random.default_rng(0)
    groups = [f"g{i}" for i in rng.integers(0, 90, 300)]
    label_of = {group: "ab"[int(rng.random() < 0.3)] for group in sorted(set(groups))}
    labels = [label_of[group] for group in groups]
    parts = make_folds(groups, labels, 5)
    assert len({(group, part) for group, part in zip(groups, parts, strict=True)}) == len(set(groups))
    for label in "ab":
        counts = np.bincount([part for part, own in zip(parts, labels, strict=True) if own == label], minlength=5)
        assert counts.max() - counts.min() <= 7  # the largest group of a class has 7 images
    order = rng.permutation(300)
    again = make_folds([groups[i] for i in order], [labels[i] for i in order], 5)
    assert [parts[i] for i in order] == again  # the order of the images does not matter
    assert make_folds(groups, labels, 5, seed=1) != parts


def test_folds_with_fewer_groups_than_folds_are_refused() -> None:
    with pytest.raises(UsageError, match=r"`folds=4`: the images have 3 groups .* give 2 to 3 folds"):
        make_folds(["a", "b", "c", "c"], ["x"] * 4, 4)
    with pytest.raises(UsageError, match=r"the images have 2 groups .* give 2 folds$"):
        make_folds(["a", "b", "b"], ["x"] * 3, 3)
    with pytest.raises(UsageError, match="folds need two groups or more"):
        make_folds(["a", "a"], ["x"] * 2, 2)
