"""From a classifier's logits to its answer, as its bundle records it under `usage`: labels that exclude each other or
not, the temperature, thresholds, and whether an answer is for an image or for a group of them."""

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dinomed.adapters.record import AdapterRecord
from dinomed.adapters.tasks.classify.groups import FRAMES
from dinomed.config import Config
from dinomed.features.compute import Features
from dinomed.metrics.calibration import TEMPERATURES, fit_temperature
from dinomed.metrics.operating import youden_threshold


class Answer(Config):
    """How logits become an answer.

    `multilabel`: a sigmoid for each label in place of one softmax. `temperature`: logits are divided by it first (null:
    validation could not tell). `thresholds`: one a class, at which val had the largest sensitivity + specificity
    against the rest (null: val has no such images). `unit` group: one answer for a group, by the features of at most
    `frames` of its images, averaged, or (`concat`) of `frames` beside each other; `width` is how many images the head
    sees at once.
    """

    multilabel: bool = False
    temperature: float | None = Field(None, gt=0)
    thresholds: tuple[float | None, ...] = ()
    unit: Literal["image", "group"] = "image"
    pool: Literal["mean", "concat"] = "mean"
    frames: int = Field(FRAMES, ge=1)
    width: int = Field(1, ge=1)
    columns: tuple[str, ...] = ("label",)
    separator: str | None = None

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, K) -> (B, K): calibrated, of sum 1 unless labels do not exclude each other."""
        scaled = logits.float() / (self.temperature or 1.0)
        return scaled.sigmoid() if self.multilabel else scaled.softmax(-1)

    def alone(self, features: Features, blocks: int) -> Features:
        """Features of images as those of groups of one: for concatenation, each image in every place."""
        if self.width == 1:
            return features

        def repeat(x: Tensor) -> Tensor:
            return x.unflatten(1, (blocks, -1)).repeat(1, 1, self.width).flatten(1)

        return Features(repeat(features.cls), repeat(features.mean))


def answer_from(record: AdapterRecord) -> Answer:
    """What the record says; of a record of format 2, which says nothing, the plain answer it stood for."""
    if not record.usage:
        return Answer(columns=(str(record.training.get("label_column", "label")),))
    return Answer.model_validate(record.usage)


def calibrate(answer: Answer, logits: np.ndarray, targets: np.ndarray) -> Answer:
    """The answer with temperature and thresholds from the logits (N, K) of val and its targets.

    Images of classes beyond K, which the head does not know, are left out of the temperature. A temperature at the end
    of its range (val is separated, or tells nothing) is left out.
    """
    num_classes = logits.shape[1]
    targets = targets[:, :num_classes] if targets.ndim == 2 else targets
    known = np.ones(len(targets), bool) if targets.ndim == 2 else targets < num_classes
    found = fit_temperature(logits[known], targets[known], "sigmoid" if answer.multilabel else "softmax")
    if found is not None and not TEMPERATURES[0] * 1.01 < found < TEMPERATURES[1] * 0.99:
        found = None
    scaled = answer.model_copy(update={"temperature": found})
    scores = scaled.probabilities(torch.from_numpy(logits)).double().numpy()
    thresholds = []
    for index in range(num_classes):
        own = targets[:, index] if targets.ndim == 2 else (targets == index).astype(float)
        judged = ~np.isnan(own)
        thresholds.append(youden_threshold(own[judged] == 1, scores[judged, index]))
    return scaled.model_copy(update={"thresholds": tuple(thresholds)})
