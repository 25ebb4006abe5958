"""Few-shot evaluation of a segmentation head: Dice by the number of images with masks, over several draws.

Images are drawn by group (`draw_images`) from train and val; a fifth of the drawn groups are the validation split of
the draw, on which the epoch and the threshold are chosen. So a number of masks counts all masks that were used. The
features of all drawn images are computed once. Each image is predicted in one pass, without mirror images, other sizes
or windows.
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinomed.adapters.evaluation.draws import draw_images, interval_over_draws
from dinomed.adapters.evaluation.few_shot import Shots
from dinomed.adapters.evaluation.mask_baselines import baseline_guesses, score_baseline
from dinomed.adapters.fitting.build import at_image_size, build_adapter, default_image_size
from dinomed.adapters.fitting.config import adapter_class
from dinomed.adapters.fitting.data import Splits, select_split
from dinomed.adapters.fitting.feature_sources.choose import open_feature_source
from dinomed.adapters.fitting.feature_sources.source import FeatureSource, TrainingBatch
from dinomed.adapters.fitting.head_fit import calibration_rows, split_rows
from dinomed.adapters.fitting.optimizers import BatchIndices
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.adapters.tasks.segment.fit import SegmenterFit
from dinomed.adapters.tasks.segment.mask_schema import MaskSchema, resolve_mask_schema
from dinomed.adapters.tasks.segment.masks import Masks, dice_of_targets
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.config import build_config, merge
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.splits import check_splits
from dinomed.errors import UsageError
from dinomed.features.compute import Features
from dinomed.features.finite import naming
from dinomed.io.prefetch import prefetch
from dinomed.log import logger
from dinomed.notice import RESEARCH_USE
from dinomed.progress import track

COUNTS: Shots = (10, 25, 50, 100, 200, None)
QUICK: dict[str, Any] = {
    "augment": "none", "augment_copies": 4, "flips": False, "scales": [1.0],
    "fit": {"epochs": 10, "min_steps": 200, "patience": 10, "batch_size": 16, "learning_rate": 3e-3},
}  # fmt: skip
"""Defaults of the fits, which are shorter than those of ``dinomed train segment`` and without augmentation."""


def few_shot_config(settings: Mapping[str, Any]) -> SegmentConfig:
    """Return the settings of the fits of all draws.

    Args:
        settings: settings that override `QUICK`, nested.

    Raises:
        UsageError: a setting is unknown, or asks for features that cannot be computed once for all draws.
    """
    config = build_config(SegmentConfig, merge(QUICK, settings), "few-shot settings")
    for name, active in {
        "tune": config.tune.active, "crop": config.crop is not None, "window": config.window is not None,
        "flips": bool(config.flips), "scales": config.scales != (1.0,),
        "augment_copies=0": config.augment.active and not config.augment_copies,
    }.items():  # fmt: skip
        if active:
            raise UsageError(f"{name}: few-shot uses features that are computed once, in one pass; leave it out")
    return config


@dataclass(frozen=True)
class MaskPool:
    """Images to draw from and test images, with their features and masks.

    Attributes:
        images: all images that any draw uses.
        test: images on which the fits are measured.
        features: of `images` (train) and of `test` (val).
        masks: of `images`.
    """

    backbone: FrozenBackbone
    schema: MaskSchema
    images: Manifest
    test: Manifest
    features: FeatureSource
    masks: Masks


class DrawnFeatureSource(FeatureSource):
    """Features of the images of one draw, from those of the pool."""

    def __init__(self, pool: FeatureSource, train: Sequence[int], val: Sequence[int]) -> None:
        self.pool, self.backbone = pool, pool.backbone
        self.rows, self.val_rows = torch.tensor(train), list(val)
        self.cls, self.mean = pool.cls[list(train)], pool.mean[list(train)]

    def train(self, batches: Iterable[BatchIndices]) -> Iterator[TrainingBatch]:
        return self.pool.train(replace(batch, indices=self.rows[batch.indices]) for batch in batches)

    def val(self, rows: Sequence[int]) -> Features:
        return self.pool.plain([self.val_rows[row] for row in rows])


class DrawnFit(SegmenterFit):
    """Fit on one draw; `rows` are the rows of its training and validation images in the pool."""

    def __init__(self, config: SegmentConfig, pool: MaskPool, rows: tuple[list[int], list[int]]) -> None:
        super().__init__(config)
        self.pool, self.rows, self.schema, self.backbone = pool, rows, pool.schema, pool.backbone
        self.splits = Splits(pool.images.take(rows[0]), pool.images.take(rows[1]), made=True)

    def read_masks(self) -> None:
        self.val_masks = self.pool.masks.of_rows(self.rows[1])

    def open_features(self, cache: str | Path) -> FeatureSource:
        return DrawnFeatureSource(self.pool.features, *self.rows)

    def sample_patches(self) -> Iterator[np.ndarray]:
        for place in calibration_rows(len(self.rows[0])):
            patches = self.pool.features.plain([self.rows[0][place]]).patches
            assert patches is not None
            yield patches[0].float().cpu().numpy()

    def run(self) -> np.ndarray:
        """Fit the head and return the Dice of each test image at its own size, float64 (N,)."""
        self.adapter = self.build()
        self.features = self.open_features("")
        with tempfile.TemporaryDirectory() as folder:
            best = self.train(Path(folder))
        with torch.no_grad():
            self.finish(best)
            return np.array(list(self._test_dice()))

    def _test_dice(self) -> Iterator[float]:
        test, schema = self.pool.test, self.schema
        known, names = prefetch(partial(schema.read, test), range(len(test)), None), test.column("image")
        for rows in split_rows(len(test), self.predictor.batch_size):
            targets = [next(known) for _ in rows]
            sizes = [planes.shape[1:] for planes in targets]
            with naming(names, rows[0]):
                maps = self.predictor.outputs_of_features(self.pool.features.val(rows), sizes)
            for planes, probabilities in zip(targets, maps, strict=True):
                yield dice_of_targets(self.predictor.decide(probabilities), planes, schema)


def few_shot_masks(
    backbone: FrozenBackbone,
    manifest: Manifest,
    config: SegmentConfig,
    *,
    cache: str | Path,
    shots: Shots = COUNTS,
    seeds: int = 5,
    split: str = "test",
) -> dict[str, Any]:
    """Evaluate a segmentation head by the number of images with masks.

    Args:
        backbone: the frozen backbone.
        manifest: images with masks and splits.
        config: of `few_shot_config`; its seed is that of the first draw.
        cache: folder of cached features (`dinomed.features.extract.default_cache`).
        shots: numbers of images; None for all.
        seeds: number of draws for each number.
        split: split for the metrics, test or val.

    Returns:
        `shots`, a row for each number: `shots` (None: all), `images` used, `draws`, and `dice` with the `mean`, the
        `sd` over the draws, and the ends `low` and `high` of the 95% interval over draws and groups of test images;
        `baselines`, the same without training; and the identity of backbone and settings.

    Raises:
        UsageError: there are no masks, a split is empty, a group is in two splits, a draw is too small, or the head
            needs several passes of an image.
    """
    kind = adapter_class("segment", config.head.name)
    if kind.chooses:
        raise UsageError(
            f"head {config.head.name} is a choice among heads; few-shot is for one: name it, such as linear"
        )
    if not kind.one_pass:
        raise UsageError(f"head {config.head.name} reads several passes of each image; few-shot is for heads of one")
    schema = resolve_mask_schema(manifest, config.kind, config.classes)
    rows = schema.usable(manifest)
    test = select_split(rows, split)
    check_splits(rows.groups(), rows.column("split"), rows.column("image"))
    kept = {"train", "val"} - {split}
    candidates = rows.take([i for i, name in enumerate(rows.column("split")) if name in kept])
    if not len(candidates):
        raise UsageError(f"{manifest.called} has no image with a mask in train; there is nothing to draw from")
    draws = list(_draws(candidates, shots, seeds, config.seed))
    used = {image for _, _, drawn in draws for image in drawn.column("image")}
    images = candidates.take([i for i, image in enumerate(candidates.column("image")) if image in used])
    pool = open_pool(backbone, schema, images, test, config, cache)
    place = {image: row for row, image in enumerate(pool.images.column("image"))}
    values: dict[int | None, list[np.ndarray]] = defaultdict(list)
    sizes: dict[int | None, int] = {}
    for count, seed, drawn in track(draws, "few-shot"):
        parts = [[place[image] for image in drawn.select(split=name).column("image")] for name in ("train", "val")]
        fit = DrawnFit(config.model_copy(update={"seed": seed}), pool, (parts[0], parts[1]))
        values[count].append(fit.run())
        sizes[count] = len(drawn)
    units = test.units()
    guesses = baseline_guesses(test, pool.masks, len(pool.images), schema)
    baselines = {name: score_baseline(guess, test, schema)[None] for name, guess in guesses.items()}
    return {
        "purpose": RESEARCH_USE,
        "task": "segment",
        "split": split,
        "backbone": {"name": backbone.name, "fingerprint": backbone.fingerprint},
        "image_size": pool.backbone.preprocessing.image_size,
        "aspect": pool.backbone.preprocessing.aspect,
        "head": config.head.model_dump(mode="json"),
        "unit": "groups" if rows.has("group") else "images",
        "seeds": seeds,
        "n": len(test),
        "groups": len(set(units)),
        "pool": {"images": len(candidates), "groups": len(set(candidates.units()))},
        "shots": [
            {"shots": count, "images": sizes[count], "draws": len(runs), "dice": _summary(np.stack(runs), units)}
            for count, runs in values.items()
        ],
        "baselines": [{"name": name, "dice": _summary(dice, units)} for name, dice in baselines.items()],
        "settings": config.model_dump(mode="json"),
    }


def _draws(pool: Manifest, shots: Shots, seeds: int, first_seed: int) -> Iterator[tuple[int | None, int, Manifest]]:
    """Yield number, seed and images of each draw; numbers that the pool does not have are left out."""
    too_many = [count for count in shots if count is not None and count > len(pool)]
    if too_many:
        logger.warning(f"only {len(pool)} images with masks to draw from: {', '.join(map(str, too_many))} left out")
    counts = [count for count in shots if count not in too_many]
    if not counts:
        raise UsageError(f"`shots`: there are only {len(pool)} images with masks; give smaller numbers, or all")
    for count in counts:
        for seed in range(first_seed, first_seed + (1 if count is None else seeds)):
            drawn = draw_images(pool, count, seed)
            splits = drawn.column("split")
            if splits.count("train") < 2 or not splits.count("val"):
                raise UsageError(
                    f"{len(drawn)} images with masks, drawn by group, are of {len(set(drawn.units()))} groups: a fit "
                    "needs two images for training and another group for validation; give larger numbers in `shots`"
                )
            yield count, seed, drawn


def open_pool(
    backbone: FrozenBackbone, schema: MaskSchema, images: Manifest, test: Manifest, config: SegmentConfig,
    cache: str | Path,
) -> MaskPool:  # fmt: skip
    """Compute the features of the images to draw from and of the test images; read the masks to draw from."""
    size = config.image_size or default_image_size(backbone, adapter_class("segment", config.head.name).grid)
    backbone = at_image_size(backbone, size, config.aspect)
    if backbone.preprocessing.aspect == "keep":
        raise UsageError("heads on few masks take squares; leave `aspect=keep` out, or give pad")
    masks = Masks(images, backbone.preprocessing, "train", schema)
    adapter = build_adapter(config, backbone, len(schema.names))
    features = open_feature_source(backbone, Splits(images, test, made=False), adapter, config, cache, masks.take)
    return MaskPool(backbone, schema, images, test, features, masks)


def _summary(values: np.ndarray, units: Sequence[str]) -> dict[str, float]:
    """Return mean, spread over the draws and interval of values (draws, N)."""
    means = values.mean(axis=1)
    low, high = interval_over_draws(values, units)
    return {
        "mean": float(means.mean()), "sd": float(means.std(ddof=1)) if len(means) > 1 else 0.0, "low": low, "high": high
    }  # fmt: skip
