"""k-NN, logistic regression and the grid, compared with scikit-learn, the SGD of torch, and the probe."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.heads.linear import LinearClassifier
from dinomed.adapters.heads.solved.grid import GridClassifier, GridConfig, Stack, build_stacks, train_stacks
from dinomed.adapters.heads.solved.knn import KnnClassifier, KnnConfig
from dinomed.adapters.heads.solved.logistic import LogisticClassifier, LogisticConfig, fit_logistic
from dinomed.adapters.heads.solved.solve import Examples, auroc_of_logits, best_of, macro_auroc
from dinomed.features.compute import Features
from dinomed.features.knn import knn_probabilities

DIM, BLOCKS, CLASSES = 6, 4, 3


def examples(count: int, seed: int, blocks: int = 1, multilabel: bool = False) -> Examples:
    """Features in which the last block's class token tells the class a little."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, CLASSES, count)
    cls, mean = rng.normal(size=(2, count, blocks * DIM)).astype(np.float32)
    cls[:, -DIM : -DIM + CLASSES] += 1.5 * np.eye(CLASSES, dtype=np.float32)[targets]
    if multilabel:
        marks = np.eye(CLASSES)[targets]
        marks[::5, 0] = np.nan
        return Examples(cls, mean, marks)
    return Examples(cls, mean, targets)


def features(part: Examples) -> Features:
    return Features(torch.from_numpy(part.cls), torch.from_numpy(part.mean))


def logits(adapter: Adapter, part: Examples) -> torch.Tensor:
    with torch.no_grad():
        return adapter(features(part))


def test_knn_votes_as_the_probe_does_and_survives_saving() -> None:
    train, val = examples(80, 0), examples(40, 1)
    adapter = KnnClassifier(KnnConfig(), DIM, CLASSES)
    chosen = adapter.solve(train, val, None, 0).chosen
    shares = knn_probabilities(train.cls, train.targets, val.cls, CLASSES)
    scores = {k: macro_auroc(val.targets, table) for k, table in shares.items()}
    assert chosen["tried"] == pytest.approx({str(k): score for k, score in scores.items()}, abs=1e-3)  # near ties
    probabilities = logits(adapter, val).softmax(1).numpy()
    # faiss and torch sum in another order; shares below 1e-6 are lifted to it
    np.testing.assert_allclose(probabilities, shares[chosen["k"]], atol=1e-5)
    fresh = KnnClassifier(KnnConfig(), DIM, CLASSES)
    fresh.load_state_dict(adapter.state_dict())
    assert (logits(fresh, val) == logits(adapter, val)).all()


def test_balanced_votes_keep_a_rare_class() -> None:
    train, val = examples(200, 0), examples(60, 1)
    rare = train.targets != 2
    rare[np.flatnonzero(~rare)[:8]] = True
    few = Examples(train.cls[rare], train.mean[rare], train.targets[rare])
    weight = len(few) / (CLASSES * np.bincount(few.targets))
    plain, balanced = (KnnClassifier(KnnConfig(k=20), DIM, CLASSES) for _ in range(2))
    plain.solve(few, val, None, 0)
    balanced.solve(few, val, weight, 0)
    recall = [
        (logits(head, val).argmax(1).numpy()[val.targets == 2] == 2).mean() for head in (plain, balanced)
    ]  # fmt: skip
    assert recall[1] > recall[0]


def test_knn_of_several_labels_is_the_share_of_neighbours_with_a_known_label() -> None:
    train, val = examples(50, 0, multilabel=True), examples(20, 1, multilabel=True)
    adapter = KnnClassifier(KnnConfig(k=50), DIM, CLASSES)
    adapter.solve(train, val, None, 0)
    probabilities = logits(adapter, val).sigmoid().numpy()
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train.cls, val.cls)]
    weight = np.exp((unit[1].astype(float) @ unit[0].T.astype(float) - 1) / 0.07)
    known = ~np.isnan(train.targets)
    np.testing.assert_allclose(probabilities, weight @ np.nan_to_num(train.targets) / (weight @ known), atol=1e-4)


def test_knn_gives_a_label_that_no_neighbour_knows_its_share_of_the_training_examples() -> None:
    train = Examples(
        np.eye(4, DIM, dtype=np.float32),
        np.zeros((4, DIM), np.float32),
        np.array([[1, np.nan, 0], [1, 1, 0], [0, 1, 1], [1, 0, 1]]),
    )
    adapter = KnnClassifier(KnnConfig(k=1, tokens="cls"), DIM, CLASSES)
    adapter.solve(train, train, None, 0)
    shares = logits(adapter, train).sigmoid().numpy()
    np.testing.assert_allclose(shares[0], [1, 2 / 3, 0], atol=2e-6)
    np.testing.assert_allclose(shares[1], [1, 1, 0], atol=2e-6)


def test_logistic_regression_is_that_of_scikit_learn_on_standardised_features() -> None:
    train, val = examples(120, 0), examples(50, 1)
    weight = len(train) / (CLASSES * np.bincount(train.targets))
    adapter = LogisticClassifier(LogisticConfig(cs=(0.1,)), DIM, CLASSES)
    assert adapter.solve(train, val, weight, 0).chosen["C"] == 0.1
    shift, scale = train.cls.mean(0, dtype=float), train.cls.std(0, dtype=float)
    model = LogisticRegression(C=0.1, class_weight="balanced", tol=1e-8, max_iter=1000)
    expected = model.fit((train.cls - shift) / scale, train.targets).predict_proba((val.cls - shift) / scale)
    np.testing.assert_allclose(logits(adapter, val).softmax(1).numpy(), expected, atol=1e-4)


def test_logistic_regression_of_several_labels_is_one_for_each_label_on_known_examples() -> None:
    train, val = examples(120, 0, multilabel=True), examples(50, 1, multilabel=True)
    train.targets[:, 2] = 0  # a label that training never has
    adapter = LogisticClassifier(LogisticConfig(cs=(1.0,)), DIM, CLASSES)
    adapter.solve(train, val, None, 0)
    probabilities = logits(adapter, val).sigmoid().numpy()
    shift, scale = train.cls.mean(0, dtype=float), train.cls.std(0, dtype=float)
    known = ~np.isnan(train.targets[:, 0])
    model = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000)
    model.fit(((train.cls - shift) / scale)[known], train.targets[known, 0])
    np.testing.assert_allclose(probabilities[:, 0], model.predict_proba((val.cls - shift) / scale)[:, 1], atol=1e-4)
    assert probabilities[:, 2] == pytest.approx(0.5 / 121, abs=1e-6)


@pytest.mark.parametrize("multilabel", [False, True])
def test_every_head_of_the_grid_is_trained_as_it_would_be_alone(multilabel: bool) -> None:
    train = examples(70, 0, BLOCKS, multilabel)
    config = GridConfig(learning_rates=(0.01, 0.5), steps=25, batch_size=16)
    weight = None if multilabel else np.array([1.0, 2.0, 0.5])
    x = torch.from_numpy(np.concatenate([train.cls, train.mean[:, -DIM:]], 1))
    targets = torch.from_numpy(train.targets)
    stacks = build_stacks(DIM, BLOCKS, 2, CLASSES, seed=0)
    alone = [(stack.weight.clone(), stack.bias.clone()) for stack in stacks]
    train_stacks(stacks, x, targets, weight, config, seed=3)
    for stack, (start, bias) in zip(stacks, alone, strict=True):
        for head, rate in enumerate(config.learning_rates):
            linear = torch.nn.Linear(start.shape[2], CLASSES)
            with torch.no_grad():
                linear.weight.copy_(start[:, head])
                linear.bias.copy_(bias[:, head])
            optimizer = torch.optim.SGD(linear.parameters(), lr=rate * 16 / 256, momentum=0.9)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
            generator, waiting = torch.Generator().manual_seed(3), torch.zeros(0, dtype=torch.int64)
            for _ in range(config.steps):
                if len(waiting) < 16:
                    waiting = torch.cat([waiting, torch.randperm(70, generator=generator)])
                batch, waiting = waiting[:16], waiting[16:]
                out, y = linear(x[batch][:, stack.columns]), targets[batch]
                if multilabel:
                    known = ~y.isnan()
                    loss = binary_cross_entropy_with_logits(out[known], y[known].float())
                else:
                    loss = cross_entropy(out, y, torch.tensor(weight).float())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            # float32 through 25 steps; a wrong momentum, rate or weight shows in the first digit
            torch.testing.assert_close(stack.weight[:, head], linear.weight.detach(), atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(stack.bias[:, head], linear.bias.detach(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("standardise", [False, True])
def test_the_grid_returns_its_best_head_as_a_linear_classifier(standardise: bool) -> None:
    train, val = examples(150, 0, BLOCKS), examples(60, 1, BLOCKS)
    config = GridConfig(learning_rates=(1e-4, 0.1), steps=60, batch_size=32, standardise=standardise)
    grid = GridClassifier(config, DIM, CLASSES)
    solution = grid.solve(train, val, None, 0)
    tried = solution.chosen["tried"]
    assert len(tried) == solution.chosen["heads"] == 8
    assert solution.chosen["score"] == max(row["score"] for row in tried)
    assert isinstance(solution.adapter, LinearClassifier)
    plain = solution.adapter
    blocks = plain.config.blocks
    cut = Examples(val.cls[:, -len(blocks) * DIM :], val.mean[:, -len(blocks) * DIM :], val.targets)
    assert auroc_of_logits(val.targets, logits(plain, cut).numpy()) == pytest.approx(solution.chosen["score"], abs=1e-9)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("index", [0, 1])
def test_each_head_of_the_grid_equals_a_linear_classifier(place: int, index: int) -> None:
    val = examples(20, 1, BLOCKS)
    grid = GridClassifier(GridConfig(learning_rates=(0.1, 0.2)), DIM, CLASSES)
    stack: Stack = build_stacks(DIM, BLOCKS, 2, CLASSES, seed=1)[place]
    generator = torch.Generator().manual_seed(0)
    shift, scale = torch.randn(5 * DIM, generator=generator), torch.rand(5 * DIM, generator=generator) + 0.5
    plain = grid._to_linear(stack, index, shift, scale)
    blocks = len(plain.config.blocks)
    cut = Examples(val.cls[:, -blocks * DIM :], val.mean[:, -blocks * DIM :], val.targets)
    expected = stack.logits((grid._inputs(val) - shift) * scale)[:, index].T
    torch.testing.assert_close(logits(plain, cut), expected, atol=1e-5, rtol=1e-5)


def test_a_grid_with_diverged_heads_keeps_a_head_that_did_not_diverge() -> None:
    train, val = examples(60, 0), examples(30, 1)
    huge = Examples(train.cls * 1e18, train.mean * 1e18, train.targets)
    big = Examples(val.cls * 1e18, val.mean * 1e18, val.targets)
    config = GridConfig(blocks=(-1,), learning_rates=(1e-30, 1e30), steps=20)
    solution = GridClassifier(config, DIM, CLASSES).solve(huge, big, None, 0)
    assert solution.chosen["learning_rate"] == 1e-30
    assert logits(solution.adapter, big).isfinite().all()


def test_classes_are_ranked_by_probability_as_scikit_learn_and_the_evaluation_do() -> None:
    rng = np.random.default_rng(0)
    targets, scores = rng.integers(0, CLASSES, 60), rng.normal(size=(60, CLASSES))
    scores[np.arange(60), targets] += 1
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    expected = roc_auc_score(targets, shares, multi_class="ovr")
    assert auroc_of_logits(targets, scores) == pytest.approx(expected, abs=1e-12)
    assert auroc_of_logits(targets, scores + rng.normal(size=(60, 1)) * 9) == pytest.approx(expected, abs=1e-12)
    marks = np.eye(CLASSES)[targets]  # as labels each of its own: a sigmoid ranks as its logit does
    assert auroc_of_logits(marks, scores) == pytest.approx(roc_auc_score(marks, scores, average="macro"), abs=1e-12)


def test_the_strength_of_a_logistic_regression_is_chosen_as_the_probe_chooses() -> None:
    train, val = examples(150, 0), examples(60, 1)
    adapter = LogisticClassifier(LogisticConfig(tokens="cls"), DIM, CLASSES)
    tried = adapter.solve(train, val, None, 0).chosen["tried"]
    path = fit_logistic(train.cls, train.targets)
    aurocs = [
        roc_auc_score(val.targets, path.probabilities(val.cls, i), multi_class="ovr") for i in range(len(path.cs))
    ]
    assert list(tried.values()) == pytest.approx(aurocs, abs=1e-9)


def test_the_first_setting_is_chosen_if_no_score_is_defined() -> None:
    assert best_of(["a", "b"], [float("nan")] * 2) == (0, "a")
    assert best_of(["a", "b", "c"], [0.5, 0.7, 0.7]) == (1, "b")
    assert np.isnan(macro_auroc(np.zeros(4, int), np.ones((4, 1))))
