"""The mapping from the logits of a classifier to its prediction, which the bundle stores under `usage`.

It holds whether labels exclude each other, the temperature, the thresholds, and whether a prediction is for an image or
for a group of images.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from dinomed.adapters.record import AdapterRecord, parse_usage
from dinomed.adapters.tasks.classify.groups import FRAMES
from dinomed.config import Config
from dinomed.features.compute import Features
from dinomed.metrics.calibration import TEMPERATURES, fit_temperature
from dinomed.metrics.operating import youden_threshold
from dinomed.metrics.uncertainty.abstention import AbstentionTable, abstention_table
from dinomed.metrics.uncertainty.conformal import COVERAGE, conformal_limit, prediction_sets, required_groups
from dinomed.metrics.uncertainty.cross_conformal import CrossLimits, cross_limits

DECIMALS = 6
"""Decimals of probabilities in the table of predictions."""


class SetLimit(Config):
    """The limit of prediction sets, chosen on val (`dinomed.metrics.uncertainty.conformal`).

    Attributes:
        coverage: probability with which the set of a new image holds its true class.
        limit: probability that a class needs to be in a set; 0 for sets that hold all classes.
        groups: number of groups of val on which the limit was chosen.
    """

    coverage: float = Field(gt=0, lt=1)
    limit: float = Field(ge=0, le=1)
    groups: int = Field(ge=0)

    @property
    def problem(self) -> str | None:
        """The reason why the sets hold all classes, or None."""
        needed = required_groups(self.coverage)
        if self.limit > 0:
            return None
        if self.groups < needed:
            return f"val has {self.groups} groups, and {needed} are needed for a coverage of {self.coverage:g}"
        return f"on val no limit reaches a coverage of {self.coverage:g}"


class Answer(Config):
    """How logits become a prediction.

    Attributes:
        multilabel: use a sigmoid for each label, not one softmax.
        temperature: logits are divided by it; None if val could not determine it.
        thresholds: for each class the probability with the largest sensitivity + specificity on val, against the rest;
            None where val has no such images.
        sets: limit of prediction sets; None for labels that may occur together.
        cross: of an ensemble for images, the calibration of its prediction sets.
        abstention: thresholds of the confidence, measured on val.
        unit: predict an image, or a group by the features of at most `frames` of its images.
        pool: average the features of a group, or concatenate them.
        frames: largest number of images of a group.
        width: number of images, or of sizes of an image, whose features the head reads together.
        scales: factors of the image size at which an image is read.
        columns: columns of the labels.
        separator: text between labels in one cell.
    """

    multilabel: bool = False
    temperature: float | None = Field(None, ge=TEMPERATURES[0], le=TEMPERATURES[1])
    thresholds: tuple[float | None, ...] = ()
    sets: SetLimit | None = None
    cross: CrossLimits | None = None
    abstention: AbstentionTable | None = None
    unit: Literal["image", "group"] = "image"
    pool: Literal["mean", "concat"] = "mean"
    frames: int = Field(FRAMES, ge=1, le=100_000)
    width: int = Field(1, ge=1, le=100_000)
    scales: tuple[Annotated[float, Field(ge=0.25, le=4)], ...] = Field((1.0,), min_length=1, max_length=16)
    columns: tuple[str, ...] = ("label",)
    separator: str | None = None

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return calibrated probabilities (B, K) of logits (B, K); their sum is 1 unless `multilabel`."""
        scaled = logits.float() / (self.temperature or 1.0)
        return scaled.sigmoid() if self.multilabel else scaled.softmax(-1)

    def prediction_sets(self, values: np.ndarray) -> np.ndarray | None:
        """Return which classes are in the prediction set of each image, bool (N, K), from probabilities (N, K).

        The result is None for an adapter without sets, and for an ensemble, whose sets need those of its members.
        """
        return None if self.sets is None else prediction_sets(values, self.sets.limit)

    def confidence(self, values: np.ndarray, decision: np.ndarray | None = None) -> np.ndarray:
        """Return how sure predictions are, float64 (N,), from probabilities (N, K), rounded as in the table.

        It is the probability of the predicted class; of labels that may occur together the smallest probability that
        the decision about a label, present or absent by its threshold, is right.

        Args:
            values: probabilities (N, K).
            decision: probabilities (N, K) that decide the prediction; None for `values`.
        """
        rounded = np.round(np.asarray(values, np.float64), DECIMALS)
        chosen = np.asarray(values if decision is None else decision, np.float64)
        if not self.multilabel:
            return np.asarray(rounded[np.arange(len(rounded)), chosen.argmax(axis=1)])
        return np.asarray(np.where(self.decide(chosen), rounded, 1 - rounded).min(axis=1))

    def losses(self, values: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return the loss of each prediction, float64 (N,): 1 for a wrong class, or the share of wrong known labels.

        Args:
            values: probabilities (N, K).
            targets: int (N,), or float (N, L) of 0, 1 and nan; labels beyond K are never predicted.
        """
        if not self.multilabel:
            return np.asarray(values.argmax(axis=1) != targets, float)
        wide = np.pad(values, ((0, 0), (0, targets.shape[1] - values.shape[1])))
        known = ~np.isnan(targets)
        wrong = (self.decide(wide) != (targets == 1)) & known
        return np.asarray(wrong.sum(axis=1) / np.maximum(known.sum(axis=1), 1))

    def decide(self, values: np.ndarray) -> np.ndarray:
        """Return which labels that may occur together are present, bool (..., K), from probabilities (..., K)."""
        return np.asarray(values >= self.limits(values.shape[-1]))

    def limits(self, count: int) -> np.ndarray:
        """Return the probability at which each of the first `count` labels is present; 0.5 if val gave none."""
        chosen = [0.5 if value is None else value for value in self.thresholds]
        return np.array([*chosen, *[0.5] * count])[:count]

    @property
    def loss_name(self) -> str:
        """Name of the loss of `losses`."""
        return "share of wrong labels" if self.multilabel else "share of wrong classes"

    def alone(self, features: Features, blocks: int) -> Features:
        """Return the features of images as groups of one image: for concatenation each image fills every place."""
        if self.unit == "image" or self.width == 1:
            return features

        def repeat(x: Tensor) -> Tensor:
            return x.unflatten(1, (blocks, -1)).repeat(1, 1, self.width).flatten(1)

        return Features(repeat(features.cls), repeat(features.mean))


def join_sizes(parts: Sequence[Features], blocks: int) -> Features:
    """Concatenate the pooled features of several sizes of the same images: each block then holds those of all sizes."""

    def join(tokens: Sequence[Tensor]) -> Tensor:
        return torch.cat([x.unflatten(1, (blocks, -1)) for x in tokens], dim=2).flatten(1)

    return Features(join([part.cls for part in parts]), join([part.mean for part in parts]))


def mean_logits(answers: Sequence[Answer], logits: Sequence[Tensor]) -> Tensor:
    """Return logits whose probabilities are the mean of the calibrated probabilities of several classifiers.

    The softmax (or sigmoid) of the result, without a temperature, is that mean. It is computed in float64.

    Args:
        answers: of the classifiers, all exclusive or all for labels that may occur together.
        logits: of each, (B, K), before its temperature.

    Returns:
        float32 (B, K).
    """
    scaled = torch.stack([x.double() / (answer.temperature or 1.0) for answer, x in zip(answers, logits, strict=True)])
    if answers[0].multilabel:
        present, absent = logsigmoid(scaled).logsumexp(0), logsigmoid(-scaled).logsumexp(0)
        return (present - absent).float()
    return (scaled.log_softmax(-1).logsumexp(0) - math.log(len(scaled))).float()


def combine_answers(
    answers: Sequence[Answer],
    values: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    groups: Sequence[Sequence[object]],
) -> Answer:
    """Return the answer of the mean of several classifiers.

    The probabilities of the members are calibrated, and no further temperature is fitted. All else is chosen on the
    out-of-fold probabilities: the thresholds with the largest sensitivity + specificity, and for a prediction by image
    the calibration of prediction sets and the thresholds of confidence.

    Args:
        answers: of the classifiers, which differ in temperature, thresholds and scales only.
        values: for each fold the probabilities of its images by the member that was not trained on them, float (n, K).
        targets: for each fold int (n,), or float (n, L) of 0, 1 and nan.
        groups: for each fold the group of its images, n.
    """
    scales = tuple(sorted({scale for answer in answers for scale in answer.scales}))
    width = answers[0].width if answers[0].unit == "group" else len(scales)
    changes = {"temperature": None, "sets": None, "abstention": None, "scales": scales, "width": width}
    scores, labels = np.concatenate(values), np.concatenate(targets)
    answer = answers[0].model_copy(update={**changes, "thresholds": youden_thresholds(scores, labels)})
    if answer.unit == "group":
        return answer
    units = [group for names in groups for group in names]
    abstention = abstention_table(answer.confidence(scores), answer.losses(scores, labels), units, answer.loss_name)
    cross = None
    if (limit := answers[0].sets) is not None:
        cross = cross_limits(list(map(_of_label, values, targets)), groups, limit.coverage)
    return answer.model_copy(update={"cross": cross, "abstention": abstention})


def _of_label(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the probability of the true class, float64 (N,); -1 for a class beyond those of `scores` (N, K)."""
    known = targets < scores.shape[1]
    return np.where(known, scores[np.arange(len(scores)), np.where(known, targets, 0)], -1.0)


def youden_thresholds(values: np.ndarray, targets: np.ndarray) -> tuple[float | None, ...]:
    """Return the threshold of each of K classes with the largest sensitivity + specificity, None if it is undefined.

    Args:
        values: probabilities, float (N, K).
        targets: int (N,), or float (N, L) of 0, 1 and nan, with L >= K.
    """
    thresholds = []
    for index in range(values.shape[1]):
        positive = targets[:, index] if targets.ndim == 2 else (targets == index).astype(float)
        rows = ~np.isnan(positive)
        thresholds.append(youden_threshold(positive[rows] == 1, values[rows, index]))
    return tuple(thresholds)


def answer_from(record: AdapterRecord) -> Answer:
    """Return the answer of a record.

    Raises:
        DinomedError: a setting is missing or out of its range, in a record that was changed.
    """
    return parse_usage(Answer, record.usage)


def calibrate(
    answer: Answer,
    logits: np.ndarray,
    targets: np.ndarray,
    groups: Sequence[object] | None = None,
    coverage: float = COVERAGE,
) -> Answer:
    """Fit the temperature, the thresholds and the limit of prediction sets on val.

    Images of classes beyond K, which the head does not know, are left out of the temperature. A temperature at the end
    of its range is not used: val is then perfectly separated, or uninformative.

    Args:
        answer: the answer before calibration.
        logits: float32 (N, K).
        targets: int (N,), or float (N, L) for labels that may occur together.
        groups: group of each row, N; None if each row is one of its own.
        coverage: probability with which a prediction set holds the true class.
    """
    num_classes = logits.shape[1]
    targets = targets[:, :num_classes] if targets.ndim == 2 else targets
    known = np.ones(len(targets), bool) if targets.ndim == 2 else targets < num_classes
    temperature = fit_temperature(logits[known], targets[known], "sigmoid" if answer.multilabel else "softmax")
    if temperature is not None and not TEMPERATURES[0] * 1.01 < temperature < TEMPERATURES[1] * 0.99:
        temperature = None
    scaled = answer.model_copy(update={"temperature": temperature})
    scores = scaled.probabilities(torch.from_numpy(logits)).double().numpy()
    answer = scaled.model_copy(update={"thresholds": youden_thresholds(scores, targets)})
    units = list(range(len(targets))) if groups is None else groups
    losses = answer.losses(scores, targets)
    abstention = abstention_table(answer.confidence(scores), losses, units, answer.loss_name)
    sets = None
    if targets.ndim == 1:
        limit = conformal_limit(_of_label(scores, targets), units, coverage)
        sets = SetLimit(coverage=coverage, limit=limit, groups=len(set(units)))
    return answer.model_copy(update={"sets": sets, "abstention": abstention})
