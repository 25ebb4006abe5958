"""Training of classifiers. It takes seconds on two cores if features are cached."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.bundle import BundleOutput, open_output, save_bundle
from dinomed.adapters.fitting.build import at_image_size, build_adapter, extract_splits, gather
from dinomed.adapters.fitting.data import Splits, fit_splits, widen
from dinomed.adapters.fitting.feature_source import (
    CachedFeatureSource,
    FeatureSource,
    check_precision,
    in_precision,
    open_feature_source,
)
from dinomed.adapters.fitting.fit_record import FitResult, fit_key, split_rows, training_record
from dinomed.adapters.fitting.loop import BestEpoch, run_epochs
from dinomed.adapters.heads.solve import Examples, SolvedClassifier
from dinomed.adapters.tasks.classify.answer import Answer, calibrate
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.adapters.tasks.classify.groups import Groups, check_labels, group_images
from dinomed.adapters.tasks.classify.labels import prevalence
from dinomed.adapters.training_images import hash_training_images
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.features.cache import FeatureCache
from dinomed.features.compute import Features
from dinomed.metrics.classification import classification_metrics
from dinomed.metrics.multilabel import multilabel_metrics


@dataclass(frozen=True)
class Part:
    """The examples of a split.

    Attributes:
        targets: labels, as in `Examples`.
        names: names of all classes in the split.
        gather: indices of examples to their features, on the device.
    """

    targets: np.ndarray
    names: list[str]
    gather: Callable[[Sequence[int]], Features]

    def __len__(self) -> int:
        return len(self.targets)

    def of_blocks(self, have: Sequence[int], wanted: Sequence[int]) -> "Part":
        """Return the part with only the blocks `wanted` out of `have`: a solved head may need fewer blocks."""
        if tuple(have) == tuple(wanted):
            return self
        places = [list(have).index(block) for block in wanted]

        def pick(x: Tensor) -> Tensor:
            return x.unflatten(1, (len(have), -1))[:, places].flatten(1)

        def fewer(rows: Sequence[int]) -> Features:
            features = self.gather(rows)
            return Features(pick(features.cls), pick(features.mean))

        return replace(self, gather=fewer)

    def examples(self) -> Examples:
        """Return all examples with their pooled features, on the CPU."""
        features = self.gather(range(len(self)))
        return Examples(features.cls.cpu().numpy(), features.mean.cpu().numpy(), self.targets)


def fit_classifier(
    backbone: FrozenBackbone,
    manifest: Manifest,
    out: str | Path,
    config: ClassifyConfig | None = None,
    *,
    cache: str | Path,
    overwrite: bool = False,
) -> FitResult:
    """Fit a classifier on the split train, and write a bundle.

    The epoch with the lowest loss on val is kept; k, C or the head of a grid is chosen by the macro AUROC on val. The
    temperature and the thresholds are fitted on val.

    Args:
        backbone: the frozen backbone.
        manifest: images with labels.
        out: folder of the bundle.
        config: settings; None for the defaults.
        overwrite: replace an older adapter in `out`.
        cache: folder of cached features (`dinomed.features.extract.default_cache`).

    Raises:
        UsageError: there are no labels, only one class or no split train; a group is in two splits; images of a group
            have different labels (unit: group); or `out` is in use.
    """
    config = config or ClassifyConfig()
    columns = config.label_columns
    stratify = columns.columns[0] if len(columns.columns) == 1 else None
    splits = fit_splits(columns.usable(manifest), stratify, config.seed)
    classes = columns.names(splits.train)
    parts = (splits.train, splits.val)
    groups = [_groups(part, config) for part in parts]
    rows = [
        part if part_groups is None else part_groups.first() for part, part_groups in zip(parts, groups, strict=True)
    ]
    targets, _ = columns.read_targets(rows[0], classes, "train")
    val_targets, val_names = columns.read_targets(rows[1], classes, "val")
    if val_targets.ndim == 1 and not (val_targets < len(classes)).any():
        raise UsageError("no image in val has a class of train; correct the splits, or scan with --split none")
    backbone = at_image_size(backbone, config.image_size or backbone.preprocessing.image_size)
    adapter = build_adapter(config, backbone, len(classes), width=config.answer.width)
    used = splits if groups[0] is None else _frames(splits, groups)
    with open_output(out, config, overwrite=overwrite) as output:
        take = torch.from_numpy(targets).__getitem__
        if config.live:
            features = open_feature_source(backbone, used, adapter, config, cache, take)
            val = Part(val_targets, val_names, features.val)
        else:
            check_precision(config.fit, backbone.device)
            caches = extract_splits(backbone, used, adapter, cache)
            train, val = (
                Part(
                    known,
                    names,
                    _gatherer(store, part_groups, config, len(adapter.feature_spec.blocks), backbone.device),
                )
                for known, names, store, part_groups in zip(
                    (targets, val_targets), (classes, val_names), caches, groups, strict=True
                )
            )
            features = CachedFeatureSource(backbone, (train.gather, val.gather), _pooled(train, caches[0]), take)
        if isinstance(adapter, SolvedClassifier):
            tried = adapter.feature_spec.blocks
            adapter, best, chosen = _solve(adapter, train, val, config)
            val = val.of_blocks(tried, adapter.feature_spec.blocks)
        else:
            key = fit_key(config, splits, backbone)
            best, chosen = _train(adapter, features, targets, val, config, output, key, backbone.device), {}
        adapter.to(backbone.device)
        with torch.no_grad():
            logits = _logits(adapter, val, config.fit.batch_size).cpu()
        answer = calibrate(config.answer, logits.numpy(), val.targets)
        metrics = measure(val.targets, answer.probabilities(logits).numpy(), val.names, answer)
        training = training_record(config, splits, best, backbone) | {
            "label_column": columns.title,
            "classes": prevalence(targets, classes),
            "units": {"train": len(targets), "val": len(val), "unit": config.unit},
        }
        if chosen:
            training["chosen"] = chosen
        save_bundle(
            output, adapter, backbone, classes=classes, seen=hash_training_images((splits.train, splits.val)),
            usage=answer.model_dump(mode="json"), validation=metrics, training=training,
            tuned=features.tuned(),
        )  # fmt: skip
    return FitResult(output.folder, best.epoch, metrics, chosen=chosen)


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


def _groups(manifest: Manifest, config: ClassifyConfig) -> Groups | None:
    if config.unit == "image":
        return None
    groups = group_images(manifest, config.frames, fill=config.pool == "concat")
    check_labels(groups, manifest, config.columns)
    return groups


def _frames(splits: Splits, groups: Sequence[Groups | None]) -> Splits:
    """Return the splits with only the frames of the groups."""
    train, val = groups
    assert train is not None
    assert val is not None
    return replace(splits, train=train.manifest, val=val.manifest)


def _gatherer(
    cache: FeatureCache, groups: Groups | None, config: ClassifyConfig, blocks: int, device: torch.device
) -> Callable[[Sequence[int]], Features]:
    if groups is None:
        return lambda rows: gather(cache, rows, device)
    cls, mean = (torch.from_numpy(groups.pool(x, config.pool, blocks)).to(device) for x in (cache.cls, cache.mean))
    return lambda rows: Features(cls[list(rows)], mean[list(rows)])


def _weight(targets: np.ndarray, config: ClassifyConfig, num_classes: int) -> Tensor | None:
    if config.class_weights == "none" or targets.ndim == 2:
        return None
    return class_weights(targets, num_classes)


def _solve(
    adapter: SolvedClassifier, train: Part, val: Part, config: ClassifyConfig
) -> tuple[Adapter, BestEpoch, dict[str, Any]]:
    weight = _weight(train.targets, config, len(train.names))
    with torch.no_grad():
        solution = adapter.solve(
            train.examples(), val.examples(), None if weight is None else weight.double().numpy(), config.seed
        )
    return solution.adapter.eval(), BestEpoch(0, 0.0, {}), solution.chosen


def _pooled(train: Part, cache: FeatureCache) -> tuple[np.ndarray, np.ndarray]:
    """Return class tokens and mean patch tokens of all training examples."""
    if cache.key.patches:
        return cache.cls, cache.mean
    features = train.gather(range(len(train)))
    return features.cls.cpu().numpy(), features.mean.cpu().numpy()


def _train(
    adapter: Adapter, features: FeatureSource, targets: np.ndarray, val: Part, config: ClassifyConfig,
    output: BundleOutput, key: str, device: torch.device,
) -> BestEpoch:  # fmt: skip
    """Train the head by epochs, in place."""
    adapter.calibrate(features.cls, features.mean)
    adapter.to(device)
    classes = adapter.num_classes
    weight = _weight(targets, config, classes)
    weight = None if weight is None else weight.to(device)
    val_y = torch.from_numpy(val.targets).to(device)
    if val_y.ndim == 2:
        val_y, known = val_y[:, :classes], torch.ones(len(val_y), dtype=torch.bool, device=device)
    else:
        known = val_y < classes
    forward = in_precision(adapter, config.fit.precision, device)

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        if targets.ndim == 1:
            return cross_entropy(logits, targets, weight)
        known_labels = ~targets.isnan()
        return binary_cross_entropy_with_logits(logits[known_labels], targets[known_labels].to(logits))

    def validate() -> tuple[float, dict[str, float]]:
        value = loss(_logits(adapter, val, config.fit.batch_size)[known], val_y[known]).item()
        return -value, {"val_loss": value}

    return run_epochs(
        features.model(adapter), config.fit, count=len(targets), batches=features.train,
        batch_loss=lambda batch: loss(forward(batch.features), batch.targets),
        validate=validate, seed=config.seed, folder=output.stage, key=key, description="training the classifier",
        groups=features.groups(adapter, config.fit),
    )  # fmt: skip


def _logits(adapter: Adapter, part: Part, batch_size: int) -> Tensor:
    return torch.cat([adapter(part.gather(rows)) for rows in split_rows(len(part), batch_size)])
