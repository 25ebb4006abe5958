"""Training of classifiers. It takes seconds on two cores if features are cached."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.fitting.build import at_image_size, build_adapter, extract_splits, gather, scaled_size
from dinomed.adapters.fitting.data import Splits, fit_splits, widen
from dinomed.adapters.fitting.feature_sources.cached import CachedFeatureSource, Gather
from dinomed.adapters.fitting.feature_sources.source import FeatureSource
from dinomed.adapters.fitting.head_fit import FitOutcome, HeadFit
from dinomed.adapters.fitting.loop import BestEpoch
from dinomed.adapters.fitting.optimizers import check_precision
from dinomed.adapters.heads.solved.solve import Examples, SolvedClassifier
from dinomed.adapters.tasks.classify.answer import Answer, calibrate, join_sizes
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.adapters.tasks.classify.groups import Groups, group_images, label_groups
from dinomed.adapters.tasks.classify.labels import prevalence
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.features.compute import Features
from dinomed.metrics.classification import classification_metrics
from dinomed.metrics.multilabel import multilabel_metrics


class ClassifierFit(HeadFit):
    """Fit of a classifier; the temperature and the thresholds are fitted on val.

    The epoch with the lowest loss on val is kept; k, C or the head of a grid is chosen by the macro AUROC on val.
    Examples are images, or groups of images.
    """

    description = "training the classifier"
    config: ClassifyConfig
    chosen: dict[str, Any]

    def select_rows(self, manifest: Manifest) -> Splits:
        columns, config = self.config.label_columns, self.config
        stratify = columns.columns[0] if len(columns.columns) == 1 else None
        splits = fit_splits(columns.usable(manifest), stratify, config.seed)
        self.classes = columns.names(splits.train)
        train, val = splits.train, splits.val
        self.groups = [group_rows(part, config) for part in (train, val)] if config.unit == "group" else []
        if self.groups:
            of_train, of_val = self.groups
            train, val = label_groups(of_train, train, columns), label_groups(of_val, val, columns)
        self.labels, _ = columns.read_targets(train, self.classes, "train")
        self.val_labels, self.val_names = columns.read_targets(val, self.classes, "val")
        self.val_units = val.units()
        if self.val_labels.ndim == 1 and not (self.val_labels < len(self.classes)).any():
            raise UsageError("no image in val has a class of train; correct the splits, or scan with `split=none`")
        return splits

    def fold_rows(self, manifest: Manifest) -> tuple[Manifest, list[tuple[str, ...]]]:
        columns = self.config.label_columns
        usable = columns.usable(manifest)
        return usable, columns.labels_of_rows(usable)

    def image_size(self, backbone: FrozenBackbone) -> int:
        return self.config.image_size or backbone.preprocessing.image_size

    def build(self) -> Adapter:
        self.targets = torch.from_numpy(self.labels).__getitem__
        return build_adapter(self.config, self.backbone, len(self.classes), width=self.config.answer.width)

    def feature_parts(self) -> list[tuple[FrozenBackbone, Manifest, Manifest]]:
        train, val = (each.manifest for each in self.groups) if self.groups else (self.splits.train, self.splits.val)
        scales = (1.0,) if self.groups else self.config.scales
        sized = [at_image_size(self.backbone, scaled_size(self.backbone, scale)) for scale in scales if scale != 1.0]
        return [(backbone, train, val) for backbone in ([self.backbone] * (1.0 in scales) + sized)]

    def open_features(self, cache: str | Path) -> FeatureSource:
        if not self.groups and self.config.scales == (1.0,):
            return super().open_features(cache)
        check_precision(self.config.fit, self.backbone.device)
        pooled = self._features_of_groups(cache) if self.groups else self._features_of_sizes(cache)
        train, val = (partial(take_rows, part.cls, part.mean) for part in pooled)
        arrays = pooled[0].cls.cpu().numpy(), pooled[0].mean.cpu().numpy()
        return CachedFeatureSource(self.backbone, (train, val), arrays, self.targets)

    def _features_of_groups(self, cache: str | Path) -> list[Features]:
        """Return the features of the groups of train and of val."""
        blocks, device = len(self.adapter.feature_spec.blocks), self.backbone.device
        train, val = (groups.manifest for groups in self.groups)
        splits = replace(self.splits, train=train, val=val)
        stores = extract_splits(self.backbone, splits, self.adapter, cache, self.shared_blocks)
        return [
            Features(*(torch.from_numpy(groups.pool(tokens, self.config.pool, blocks)).to(device)
                       for tokens in (store.cls, store.mean)))
            for groups, store in zip(self.groups, stores, strict=True)
        ]  # fmt: skip

    def _features_of_sizes(self, cache: str | Path) -> list[Features]:
        """Return the features of all sizes of the images of train and of val, concatenated."""
        blocks, device = len(self.adapter.feature_spec.blocks), self.backbone.device
        stores = []
        for scale in self.config.scales:
            resized = at_image_size(self.backbone, scaled_size(self.backbone, scale))
            stores.append(extract_splits(resized, self.splits, self.adapter, cache, self.shared_blocks))
        return [
            join_sizes([gather(store[part], range(len(store[part])), device) for store in stores], blocks)
            for part in (0, 1)
        ]

    def train(self, folder: Path, *, measured: bool = True) -> BestEpoch:
        self.chosen = {}
        return self._solve() if isinstance(self.adapter, SolvedClassifier) else super().train(folder, measured=measured)

    def _solve(self) -> BestEpoch:
        """Solve the head in closed form; it may need fewer blocks than were tried."""
        assert isinstance(self.adapter, SolvedClassifier)
        assert isinstance(self.features, CachedFeatureSource)
        gathers, tried = self.features.gathers, self.adapter.feature_spec.blocks
        train, val = (
            Examples(features.cls.cpu().numpy(), features.mean.cpu().numpy(), labels)
            for labels, gather in zip((self.labels, self.val_labels), gathers, strict=True)
            for features in [gather(range(len(labels)))]
        )
        weight = None if self.weight is None else self.weight.double().cpu().numpy()
        with torch.no_grad():
            solution = self.adapter.solve(train, val, weight, self.config.seed)
        self.adapter, self.chosen = solution.adapter.eval().to(self.backbone.device), solution.chosen
        self.features.gathers = (gathers[0], of_blocks(gathers[1], tried, self.adapter.feature_spec.blocks))
        return BestEpoch(0, 0.0, {})

    @cached_property
    def weight(self) -> Tensor | None:
        """Weight of each class in the loss, float32 (classes,), on the device."""
        if self.config.class_weights == "none" or self.labels.ndim == 2:
            return None
        return class_weights(self.labels, len(self.classes)).to(self.backbone.device)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.ndim == 1:
            return cross_entropy(outputs, targets, self.weight)
        known = ~targets.isnan()
        return binary_cross_entropy_with_logits(outputs[known], targets[known].to(outputs))

    def score(self, outcome: FitOutcome) -> tuple[str, float]:
        return "auroc", float(outcome.validation["auroc"])

    def validate(self) -> tuple[float, dict[str, float]]:
        targets, logits = torch.from_numpy(self.val_labels).to(self.backbone.device), self._val_logits()
        if targets.ndim == 2:  # labels that occur only in val are left out; of classes, their images
            targets = targets[:, : len(self.classes)]
        else:
            known = targets < len(self.classes)
            targets, logits = targets[known], logits[known]
        value = self.loss(logits, targets).item()
        return -value, {"val_loss": value}

    def finish(self, best: BestEpoch) -> FitOutcome:
        logits = self._val_logits().cpu()
        answer = calibrate(self.config.answer, logits.numpy(), self.val_labels, self.val_units, self.config.coverage)
        metrics = measure(self.val_labels, answer.probabilities(logits).numpy(), self.val_names, answer)
        training = {
            "label_column": self.config.label_columns.title,
            "classes": prevalence(self.labels, self.classes),
            "units": {"train": len(self.labels), "val": len(self.val_labels), "unit": self.config.unit},
        }
        training |= {"chosen": self.chosen} if self.chosen else {}
        usage = answer.model_dump(mode="json")
        return FitOutcome(self.classes, metrics, usage, training=training, chosen=self.chosen)

    def _val_logits(self) -> Tensor:
        return torch.cat([outputs for _, outputs in self.val_outputs(len(self.val_labels))])


def measure(targets: np.ndarray, probabilities: np.ndarray, names: Sequence[str], answer: Answer) -> dict[str, Any]:
    """Compute the metrics; probabilities (N, K) get columns of nan for names that occur only in these targets."""
    wide = widen(probabilities, len(names))
    if answer.multilabel:
        thresholds = [*answer.thresholds, *[None] * len(names)][: len(names)]
        return multilabel_metrics(targets, wide, names, thresholds)
    return classification_metrics(targets, wide, names)


def class_weights(labels: np.ndarray, num_classes: int) -> Tensor:
    """Return N / (classes * N of the class), float32: the sum over the images gives each class the same weight."""
    counts = np.bincount(labels, minlength=num_classes)
    return torch.from_numpy(len(labels) / (num_classes * np.maximum(counts, 1))).float()


def group_rows(manifest: Manifest, config: ClassifyConfig) -> Groups:
    """Return the groups of some rows, with the frames that the head reads."""
    return group_images(manifest, config.frames, fill=config.pool == "concat")


def take_rows(cls: Tensor, mean: Tensor, rows: Sequence[int]) -> Features:
    """Return some rows of pooled features."""
    return Features(cls[list(rows)], mean[list(rows)])


def of_blocks(gather: Gather, blocks: Sequence[int], wanted: Sequence[int]) -> Gather:
    """Return a function that gathers features of `blocks` and keeps only the blocks `wanted`."""
    if tuple(blocks) == tuple(wanted):
        return gather
    places = [list(blocks).index(block) for block in wanted]

    def pick(tokens: Tensor) -> Tensor:
        return tokens.unflatten(1, (len(blocks), -1))[:, places].flatten(1)

    def gather_wanted(rows: Sequence[int]) -> Features:
        features = gather(rows)
        return Features(pick(features.cls), pick(features.mean))

    return gather_wanted
