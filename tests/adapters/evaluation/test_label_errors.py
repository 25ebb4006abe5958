"""Label errors: planted errors are found with a stated precision, by folds and neighbours of other groups."""

import numpy as np
import pytest

from dinomed.adapters.evaluation import label_errors
from dinomed.adapters.evaluation.label_errors import (
    RANKED_COLUMNS,
    confident_classes,
    find_label_errors,
    neighbor_votes,
    out_of_fold_probabilities,
)
from dinomed.datasets.splits import make_folds
from dinomed.errors import UsageError
from dinomed.features.neighbors import search_exactly

CLASSES = ("melanoma", "nevus", "scar")


def drawn_features(seed: int, count: int = 400) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Features of three classes, two images a group, the second near the first; classes of 60, 30 and 10%."""
    rng = np.random.default_rng(seed)
    targets = np.repeat(rng.choice(3, count // 2, p=[0.6, 0.3, 0.1]), 2)
    centres = rng.normal(size=(3, 16)) * 2
    own = np.repeat(rng.normal(size=(count // 2, 16)), 2, axis=0)
    features = centres[targets] + own + 0.05 * rng.normal(size=(count, 16))
    return features.astype(np.float32), targets, [f"g{i // 2}" for i in range(count)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_errors_are_found_although_the_second_image_of_a_group_repeats_them(seed: int) -> None:
    features, targets, groups = drawn_features(seed)
    wrong = np.zeros(len(targets), bool)
    wrong[np.random.default_rng(seed).choice(200, 20, replace=False) * 2] = True
    wrong[1::2] = wrong[::2]  # whole groups, so that the nearest image has the wrong label too
    labels = [CLASSES[(target + 1) % 3 if bad else target] for target, bad in zip(targets, wrong, strict=True)]
    result = find_label_errors(features, labels, groups)
    suspects = result.rows[result.suspects]
    # Measured: precision 1 for all three, 0.1 by chance; recall 0.75, 0.35 (two classes are near each other) and 0.6.
    assert wrong[suspects].mean() >= 0.9
    assert wrong[suspects].sum() >= 0.3 * wrong.sum()
    assert wrong[result.rows[:20]].mean() >= 0.9  # the most doubtful come first
    right = [CLASSES[targets[row]] for row in suspects if wrong[row]]
    named = [
        result.classes[c] for c, row in zip(result.predicted[result.suspects], suspects, strict=True) if wrong[row]
    ]
    assert np.mean([a == b for a, b in zip(right, named, strict=True)]) >= 0.9
    assert (np.diff(result.scores) <= 0).all()


def test_clean_labels_give_few_suspects_and_images_without_a_label_are_left_out() -> None:
    features, targets, groups = drawn_features(3)
    labels: list[str | None] = [CLASSES[target] for target in targets]
    labels[7] = None
    result = find_label_errors(features, labels, groups)
    assert 7 not in result.rows
    assert len(result.rows) == 399
    assert result.suspects.mean() < 0.03


def test_a_prediction_never_uses_its_own_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_errors, "CS", (0.01,))  # which C is chosen depends on all labels
    features, targets, groups = drawn_features(4, 120)
    units = np.unique(groups, return_inverse=True)[1]
    parts = np.array(make_folds(groups, [CLASSES[target] for target in targets], 5))
    before, usable = out_of_fold_probabilities(features, targets, parts, 3)
    assert usable.all()
    changed = targets.copy()
    inside = parts == parts[0]
    changed[inside] = (changed[inside] + 1) % 3
    after, _ = out_of_fold_probabilities(features, changed, parts, 3)
    np.testing.assert_allclose(after[inside], before[inside], atol=1e-9)
    assert not np.allclose(after[~inside], before[~inside], atol=1e-3)
    votes = neighbor_votes(features, targets, units, 3)
    alone = targets.copy()
    alone[units == units[0]] = (alone[units == units[0]] + 1) % 3
    np.testing.assert_array_equal(
        neighbor_votes(features, alone, units, 3)[units == units[0]], votes[units == units[0]]
    )
    np.testing.assert_allclose(votes.sum(axis=1), 1)


def test_the_confident_joint_is_that_of_the_paper() -> None:
    # thresholds: mean of column 0 over label 0 = 0.6, of column 1 over label 1 = 0.7
    probabilities = np.array([[0.9, 0.1], [0.3, 0.7], [0.45, 0.55], [0.65, 0.35], [0.1, 0.9], [0.15, 0.85]])
    labels = np.array([0, 0, 1, 0, 1, 1])
    assert confident_classes(probabilities, labels).tolist() == [0, -1, -1, 0, 1, 1]
    assert confident_classes(probabilities[:, ::-1], 1 - labels).tolist() == [1, -1, -1, 1, 0, 0]
    probabilities[1] = [0.2, 0.8]
    assert confident_classes(probabilities, labels)[1] == 1  # labelled 0, confident of 1


def test_the_predicted_class_is_the_one_that_made_the_image_a_suspect(monkeypatch: pytest.MonkeyPatch) -> None:
    # thresholds: 0.5, 0.9 and 0.35; the first image reaches the one of the third class alone
    table = np.array([[0.1, 0.5, 0.4], [0.9, 0.05, 0.05], *[[0.05, 0.9, 0.05]] * 2, *[[0.3, 0.35, 0.35]] * 2])
    monkeypatch.setattr(label_errors, "out_of_fold_probabilities", lambda *_: (table, np.ones(6, bool)))
    result = find_label_errors(np.eye(6), list("aabbcc"), list("uvwxyz"), folds=2)
    predicted = {int(row): result.classes[c] for row, c in zip(result.rows, result.predicted, strict=True)}
    assert result.by_prediction[result.rows == 0]
    assert predicted[0] == "c"
    assert predicted[1] == "b"  # counted as its label: the most probable other class


def test_a_class_is_suggested_only_where_the_neighbours_support_it(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.tile([0.05, 0.9, 0.05], (6, 1))
    votes = np.array([[0.6, 0.2, 0.2], [0.2, 0.6, 0.2], *[[0.1, 0.8, 0.1]] * 2, *[[0.0, 0.1, 0.9]] * 2])
    monkeypatch.setattr(label_errors, "out_of_fold_probabilities", lambda *_: (table, np.ones(6, bool)))
    monkeypatch.setattr(label_errors, "neighbor_votes", lambda *_: votes)
    result = find_label_errors(np.eye(6), list("aabbcc"), list("uvwxyz"), folds=2)
    ranked = {entry["image"]: entry for entry in result.ranked(list("012345"))}
    assert set(ranked["0"]) == set(RANKED_COLUMNS)
    assert [ranked[name]["suggested"] for name in "014"] == [None, "b", None]  # most neighbours of 0 have the label a
    assert [ranked[name]["predicted"] for name in "014"] == ["b", "b", "b"]  # the class of the numbers is always named
    assert (ranked["0"]["predicted_probability"], ranked["0"]["neighbors_with_predicted"]) == (0.9, 0.2)


def test_weak_predictions_give_a_warning_with_their_quality() -> None:
    features, targets, groups = drawn_features(7)
    labels = [CLASSES[target] for target in targets]
    good = find_label_errors(features, labels, groups)
    assert good.quality()["balanced_accuracy"] > 0.9
    assert good.quality()["auroc"] > 0.95
    assert good.warnings() == []
    weak = find_label_errors(np.random.default_rng(0).normal(size=features.shape), labels, groups)
    assert weak.quality()["auroc"] < 0.6
    assert "below 0.8): many suspects may be difficult images" in weak.warnings()[0]


def test_predictions_that_rank_unequal_classes_well_are_not_weak(monkeypatch: pytest.MonkeyPatch) -> None:
    # The large class is the most probable one everywhere (balanced accuracy 0.5), but the ranking is perfect.
    table = np.array([*[[0.95, 0.05]] * 8, *[[0.7, 0.3]] * 2])
    monkeypatch.setattr(label_errors, "out_of_fold_probabilities", lambda *_: (table, np.ones(10, bool)))
    result = find_label_errors(np.eye(10), ["nevus"] * 8 + ["scar"] * 2, [*"abcdefghij"], folds=2)
    assert result.quality() == {"balanced_accuracy": 0.5, "auroc": 1.0}
    assert result.warnings() == []


@pytest.mark.parametrize(
    ("labels", "groups", "judged"),
    [
        (list("aabb"), list("ttuu"), 0),  # each class in one group
        (list("aaaaaaaaaab"), list("cdefghijklm"), 10),  # one class in one group
    ],
)
def test_fewer_than_two_judged_classes_give_a_warning_and_no_quality(
    labels: list[str], groups: list[str], judged: int
) -> None:
    features = np.random.default_rng(0).normal(size=(len(labels), 4)).astype(np.float32)
    result = find_label_errors(features, labels, groups, folds=2)
    assert len(result.rows) == judged
    assert result.quality() == {"balanced_accuracy": None, "auroc": None}
    assert f"fewer than two classes could be judged, and {len(labels) - judged} images" in result.warnings()[0]
    assert len(result.warnings()) == 1


def test_a_search_among_large_groups_is_bounded_and_gives_the_same_votes(monkeypatch: pytest.MonkeyPatch) -> None:
    features, targets, _ = drawn_features(6, 60)
    units = np.repeat([0, 1], [50, 10])
    expected = neighbor_votes(features, targets, units, 3)
    pairs = []

    def count(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        pairs.append(len(queries) * k)
        return search_exactly(queries, vectors, k)

    monkeypatch.setattr(label_errors, "search_exactly", count)
    monkeypatch.setattr(label_errors, "_MAX_PAIRS", 200)
    np.testing.assert_array_equal(neighbor_votes(features, targets, units, 3), expected)
    assert max(pairs) <= 200


def test_labels_that_are_no_classes_and_too_few_groups_are_refused() -> None:
    features, targets, groups = drawn_features(5, 20)
    with pytest.raises(UsageError, match="the labels have 1 values"):
        find_label_errors(features, ["a"] * 20, groups)
    with pytest.raises(UsageError, match=r"`folds=11`: the images have 10 groups .* give 2 to 10 folds"):
        find_label_errors(features, [CLASSES[target] for target in targets], groups, folds=11)
    one_group = [*["a"] * 18, "b", "b"]  # class b is in one group: no other fold has it
    result = find_label_errors(features, one_group, groups)
    assert result.not_judged == [18, 19]
    assert not set(result.rows) & {18, 19}
