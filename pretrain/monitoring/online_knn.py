"""What the features are worth while they are learned: k-NN on labelled images, at every checkpoint.

The loss does not tell: it falls in a collapse too, and rises when the teacher sharpens.
"""

import math
from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np
import torch

from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.datasets.manifest import Manifest
from dinomed.distributed import gather_objects, rank, world_size
from dinomed.features.knn import knn_probabilities
from dinomed.features.loading import load_batches
from dinomed.log import logger
from dinomed.metrics.classification import classification_metrics

K = 20
MAX_QUERIES = 500
_BATCH = 64


class OnlineKNN:
    """Class tokens of some training images vote on those of validation images (Caron et al. 2021, section 4.1)."""

    def __init__(self, train: Manifest, queries: Manifest, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self.parts = (train, queries)
        self.classes = sorted({*train.column("label")})
        self.labels = [np.array([self.classes.index(name) for name in part.column("label")]) for part in self.parts]

    def measure(self, backbone: VisionTransformer, device: torch.device) -> dict[str, float]:
        """``knn_auroc`` (macro), ``knn_balanced_accuracy``, ``knn_accuracy``, each in 0 to 1. All ranks take part."""
        train, queries = (self._features(part, backbone, device) for part in self.parts)
        votes = knn_probabilities(train, self.labels[0], queries, len(self.classes), ks=(K,))
        metrics = classification_metrics(self.labels[1], next(iter(votes.values())), self.classes)
        return {f"knn_{name}": metrics[name] for name in ("auroc", "balanced_accuracy", "accuracy")}

    def chance(self, start: float, now: float) -> float:
        """By how much the macro AUROC of these validation images may fall from `start` to `now` by chance: two standard
        errors of one measurement, by Hanley and McNeil's formula at the mean of both, as if nothing had changed.

        The error of the difference lies between none (features as they were) and 1.4 times that (nothing in common).
        K curves of one class against the rest hold K - 1 comparisons, so the variance of their mean is that of a curve
        over K - 1; with two classes both curves are the same.
        """
        counts = np.bincount(self.labels[1], minlength=len(self.classes))
        counts = counts[counts > 0]
        errors = [auroc_error((start + now) / 2, int(n), int(counts.sum() - n)) for n in counts]
        return 2 * math.sqrt(sum(error**2 for error in errors) / (len(errors) * (len(errors) - 1)))

    @torch.no_grad()
    def _features(self, part: Manifest, backbone: VisionTransformer, device: torch.device) -> np.ndarray:
        own = part.take(list(range(rank(), len(part), world_size())))
        was_training = backbone.training
        backbone.eval()
        rows = []
        blank = torch.zeros(self.preprocessing.channels, *[self.preprocessing.image_size] * 2)
        for batch in load_batches(own, self.preprocessing, _BATCH):
            # an image that can no longer be read counts as black; the run warns of it
            pixels = torch.stack([blank if image.pixels is None else image.pixels for image in batch])
            rows.append(backbone(pixels.to(device)).cls.float().cpu().numpy())
        backbone.train(was_training)
        everyone = gather_objects(
            np.concatenate(rows) if rows else np.empty((0, backbone.config.embed_dim), np.float32)
        )
        out = np.empty((len(part), backbone.config.embed_dim), np.float32)
        for index, features in enumerate(everyone):
            out[index :: world_size()] = features
        return out


def auroc_error(auroc: float, positives: int, negatives: int) -> float:
    """The standard error of an AUROC of so many examples (Hanley and McNeil 1982, eq. 1; exact where the scores of both
    classes are exponential, and close elsewhere).

    >>> round(auroc_error(0.8, 100, 100), 3)
    0.031
    """
    both_positive, both_negative = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = auroc * (1 - auroc) + (positives - 1) * (both_positive - auroc**2)
    variance += (negatives - 1) * (both_negative - auroc**2)
    return math.sqrt(max(variance, 0.0) / (positives * negatives))


def choose_labelled(manifest: Manifest, train: Manifest, preprocessing: Preprocessing, limit: int) -> OnlineKNN | None:
    """The online k-NN of a collection: up to `limit` labelled images of `train` and `MAX_QUERIES` of val; None for a
    limit of 0, and, as is then said, without labels, without val or with one class only."""
    if limit == 0:
        return None
    for column in ("label", "split"):
        if not manifest.has(column):
            _tell(f"{manifest.called} has no {column}s; for one: {manifest.scan_again('--labels FILE.csv')}")
            return None
    voters = _some(_labelled(train), limit)
    known = {*voters.column("label")} if len(voters) else set()
    queries = _labelled(manifest.select(split="val"))
    queries = _some(queries.take([i for i, name in enumerate(queries.column("label")) if name in known]), MAX_QUERIES)
    if len(known) < 2 or len(Counter(queries.column("label"))) < 2:
        _tell(f"the labelled images of {manifest.called} in train and val are not of two classes each")
        return None
    return OnlineKNN(voters, queries, preprocessing)


def _tell(reason: str) -> None:
    if rank() == 0:
        logger.info(f"no online k-NN will tell what the features are worth: {reason}")


def _labelled(manifest: Manifest) -> Manifest:
    return manifest.take([i for i, value in enumerate(manifest.column("label")) if value is not None])


def _some(manifest: Manifest, limit: int) -> Manifest:
    """At most `limit` rows, evenly over the manifest."""
    if len(manifest) <= limit:
        return manifest
    return manifest.take(np.linspace(0, len(manifest) - 1, limit).round().astype(int).tolist())


@dataclass
class Progress:
    """The history of a figure that should rise (the k-NN's AUROC); kept in checkpoints."""

    start: float | None = None
    best: float | None = None
    best_step: int = 0
    waiting: int = 0  # measurements since the best one

    def add(self, step: int, value: float) -> bool:
        """Whether `value` is the best so far."""
        if self.start is None:
            self.start = value
        better = self.best is None or value > self.best
        if better:
            self.best, self.best_step, self.waiting = value, step, 0
        else:
            self.waiting += 1
        return better

    def as_dict(self) -> dict[str, float | int | None]:
        return asdict(self)
