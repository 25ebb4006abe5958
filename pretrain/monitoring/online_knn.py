"""Online k-NN evaluation during pretraining, on labelled images at every checkpoint.

The loss does not show the quality of the features: it falls in a collapse too, and rises when the teacher sharpens.
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
from dinomed.errors import DinomedError
from dinomed.features.knn import knn_probabilities
from dinomed.features.loading import load_batches
from dinomed.log import ALL_RANKS, logger
from dinomed.metrics.classification import classification_metrics

NUM_NEIGHBOURS = 20
MAX_VAL_IMAGES = 500
_BATCH = 64


class OnlineKNN:
    """k-NN classification of validation images by the class tokens of training images (Caron et al. 2021, section 4.1).

    `parts` and `labels` hold the training images and the validation images, in this order.
    """

    def __init__(self, train: Manifest, val: Manifest, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self.parts = (train, val)
        self.classes = sorted({*train.column("label")})
        self.labels = [np.array([self.classes.index(name) for name in part.column("label")]) for part in self.parts]
        self._reported: set[str] = set()

    def measure(self, backbone: VisionTransformer, device: torch.device) -> dict[str, float]:
        """Compute ``knn_auroc`` (macro), ``knn_balanced_accuracy`` and ``knn_accuracy``, each in 0 to 1.

        All ranks must call it. Images that cannot be read any more are left out, with a warning.

        Raises:
            DinomedError: no image of train or of val can be read.
        """
        features, labels = list[np.ndarray](), list[np.ndarray]()
        for part, all_labels in zip(self.parts, self.labels, strict=True):
            of_part = self._features(part, backbone, device)
            is_read = ~np.isnan(of_part).all(axis=1)
            if not is_read.any():
                raise DinomedError(
                    f"none of the {len(part):,} images of online k-NN can be used; check the disk, then scan again"
                )
            features.append(of_part[is_read])
            labels.append(all_labels[is_read])
        votes = knn_probabilities(features[0], labels[0], features[1], len(self.classes), ks=(NUM_NEIGHBOURS,))
        metrics = classification_metrics(labels[1], next(iter(votes.values())), self.classes)
        return {f"knn_{name}": metrics[name] for name in ("auroc", "balanced_accuracy", "accuracy")}

    def chance_fall(self, initial: float, now: float) -> float:
        """Return by how much the macro AUROC of these validation images may fall from `initial` to `now` by chance.

        It is two standard errors of one measurement, by Hanley and McNeil's formula at the mean of both values, as if
        the features had not changed. The error of the difference lies between 0 (equal features) and 1.4 times that
        (independent features). The K curves of one class against the others hold K - 1 comparisons, so the variance of
        their mean is that of one curve divided by K - 1; with two classes both curves are the same.
        """
        counts = np.bincount(self.labels[1], minlength=len(self.classes))
        counts = counts[counts > 0]
        errors = [auroc_error((initial + now) / 2, int(n), int(counts.sum() - n)) for n in counts]
        return 2 * math.sqrt(sum(error**2 for error in errors) / (len(errors) * (len(errors) - 1)))

    @torch.no_grad()
    def _features(self, part: Manifest, backbone: VisionTransformer, device: torch.device) -> np.ndarray:
        """Compute the class tokens (N, C), float32; nan for an image that cannot be read.

        Each rank computes every `world_size()`-th image.
        """
        images = part.take(list(range(rank(), len(part), world_size())))
        was_training = backbone.training
        backbone.eval()
        rows, problems = list[np.ndarray](), set[str]()
        blank = torch.zeros(self.preprocessing.channels, *[self.preprocessing.image_size] * 2)
        for batch in load_batches(images, self.preprocessing, _BATCH):
            pixels = torch.stack([blank if image.pixels is None else image.pixels for image in batch])
            tokens = backbone(pixels.to(device)).cls.float().cpu().numpy()
            tokens[[image.pixels is None for image in batch]] = np.nan
            rows.append(tokens)
            problems |= {str(image.error) for image in batch if image.pixels is None}
        backbone.train(was_training)
        if new := sorted(problems - self._reported):
            more = f" and {len(new) - 1:,} more" if len(new) > 1 else ""
            logger.warning(f"online k-NN leaves out an image{more}: {new[0]}", extra=ALL_RANKS)
            self._reported |= problems
        features_of_ranks = gather_objects(
            np.concatenate(rows) if rows else np.empty((0, backbone.config.embed_dim), np.float32)
        )
        features = np.empty((len(part), backbone.config.embed_dim), np.float32)
        for index, of_rank in enumerate(features_of_ranks):
            features[index :: world_size()] = of_rank
        return features


def auroc_error(auroc: float, positives: int, negatives: int) -> float:
    """Return the standard error of an AUROC of `positives` and `negatives` examples (Hanley and McNeil 1982, eq. 1).

    It is exact if the scores of both classes are exponential, and a good approximation for other distributions.

    >>> round(auroc_error(0.8, 100, 100), 3)
    0.031
    """
    two_positives, two_negatives = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = auroc * (1 - auroc) + (positives - 1) * (two_positives - auroc**2)
    variance += (negatives - 1) * (two_negatives - auroc**2)
    return math.sqrt(max(variance, 0.0) / (positives * negatives))


def build_online_knn(manifest: Manifest, train: Manifest, preprocessing: Preprocessing, limit: int) -> OnlineKNN | None:
    """Build the online k-NN from up to `limit` labelled images of `train` and `MAX_VAL_IMAGES` of the val split.

    Returns:
        None if `limit` is 0; also, with a message, if there are no labels, no val split, or fewer than two classes.
    """
    if limit == 0:
        return None
    for column in ("label", "split"):
        if not manifest.has(column):
            remedy = manifest.scan_again("--labels FILE.csv")
            logger.info(f"online k-NN is disabled: {manifest.called} has no {column}s; to add them: {remedy}")
            return None
    voters = _spaced(_labelled(train), limit)
    known = {*voters.column("label")} if len(voters) else set()
    val = _labelled(manifest.select(split="val"))
    val = _spaced(val.take([i for i, name in enumerate(val.column("label")) if name in known]), MAX_VAL_IMAGES)
    if len(known) < 2 or len(Counter(val.column("label"))) < 2:
        logger.info(f"online k-NN is disabled: train or val of {manifest.called} has labels of fewer than two classes")
        return None
    return OnlineKNN(voters, val, preprocessing)


def _labelled(manifest: Manifest) -> Manifest:
    return manifest.take([i for i, value in enumerate(manifest.column("label")) if value is not None])


def _spaced(manifest: Manifest, limit: int) -> Manifest:
    """Return at most `limit` rows, evenly spaced over the manifest."""
    if len(manifest) <= limit:
        return manifest
    return manifest.take(np.linspace(0, len(manifest) - 1, limit).round().astype(int).tolist())


@dataclass
class KnnHistory:
    """First and best value of the k-NN AUROC; kept in checkpoints."""

    start: float | None = None  # the first value
    best: float | None = None
    best_step: int = 0
    waiting: int = 0  # measurements since the best one

    def add(self, step: int, value: float) -> bool:
        """Add a measurement, and return whether it is the best so far."""
        if self.start is None:
            self.start = value
        is_best = self.best is None or value > self.best
        if is_best:
            self.best, self.best_step, self.waiting = value, step, 0
        else:
            self.waiting += 1
        return is_best

    def as_dict(self) -> dict[str, float | int | None]:
        """Return the fields as JSON values."""
        return asdict(self)
