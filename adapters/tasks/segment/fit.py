"""Training of segmenters. It takes minutes on two cores if features are cached."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.fitting.build import build_adapter
from dinomed.adapters.fitting.data import Splits, fit_splits
from dinomed.adapters.fitting.head_fit import FitOutcome, HeadFit
from dinomed.adapters.fitting.loop import BestEpoch
from dinomed.adapters.fitting.windows import RandomWindows
from dinomed.adapters.inference.dense import Views
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.adapters.tasks.segment.losses import build_loss
from dinomed.adapters.tasks.segment.mask_schema import MASK, MaskSchema, build_mask_schema, resolve_mask_schema
from dinomed.adapters.tasks.segment.masks import (
    Masks,
    WholeMasks,
    choose_thresholds,
    dice_of_logits,
    dice_of_maps,
    dice_of_targets,
    shrink_targets,
)
from dinomed.adapters.tasks.segment.predict import SegmentPredictor
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.io.prefetch import prefetch
from dinomed.metrics.uncertainty.abstention import AbstentionTable, abstention_table

LOSS = "1 - Dice"
DEFAULT_THRESHOLD = 0.5
"""Threshold of all classes where val has too few groups to choose one; Dice with cross-entropy is calibrated for it."""
MEASURED = ("dice_at_training_size", "dice_by_windows")
"""Names of the Dice on val after each epoch: without windows, and with them."""


class SegmenterFit(HeadFit):
    """Fit of a segmenter; the epoch with the best Dice on val is kept.

    If classes are not exclusive, thresholds are chosen on val, at the size of the images, with the mirror images, sizes
    or windows with which the bundle predicts. With few groups in val the last epoch is kept, thresholds are 0.5, and
    the head is trained again on train and val (`dinomed.adapters.fitting.config.FitConfig`).
    """

    description, can_refit = "training the segmenter", True
    config: SegmentConfig

    def __init__(self, config: SegmentConfig) -> None:
        super().__init__(config)
        self._found: dict[str, MaskSchema] = {}

    def select_rows(self, manifest: Manifest) -> Splits:
        self.schema, splits = prepare_masks(manifest, self.config, self._found)
        return splits

    def refits(self) -> bool:
        window, val = self.config.window, self.splits.val
        sides = zip(val.column("width"), val.column("height"), strict=True)
        if window and self.config.crop is None and max(map(max, sides)) > window:
            return False  # larger images of val cannot be used as a whole, see `prepare_masks`
        return super().refits()

    def fold_rows(self, manifest: Manifest) -> tuple[Manifest, list[tuple[str, ...]]]:
        schema = resolve_mask_schema(manifest, self.config.kind, self.config.classes, self._found)
        usable = schema.usable(manifest)
        return usable, [()] * len(usable)

    def target_columns(self) -> tuple[str, ...]:
        schema = build_mask_schema(self.config.kind, self.config.classes)
        return (MASK,) if schema is None else schema.columns

    def build_untrained(self) -> Adapter:
        return build_adapter(self.config, self.backbone, num_classes=len(self.schema.names))

    def feature_parts(self) -> list[tuple[FrozenBackbone, Manifest, Manifest]]:
        return [] if self.config.crop is not None else super().feature_parts()  # random windows are not kept

    def build(self) -> Adapter:
        adapter = self.build_untrained()
        views = views_of_config(self.config, adapter.flips, adapter.scales)
        self.usage: dict[str, Any] = {"mask_schema": self.schema.to_dict(), "views": vars(views)}
        self.plain = not views.native and not views.flips and adapter.one_pass
        self.criterion = build_loss(self.config.loss, self.schema.exclusive, self.config.tversky_alpha)
        self.read_masks()
        return adapter

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        parts = len(outputs) // len(targets)  # of the head, each of which has the loss
        return self.criterion(self.stretch(outputs, targets), targets.repeat(parts, 1, 1, 1) if parts > 1 else targets)

    def validate(self) -> tuple[float, dict[str, float]]:
        dice = self._dice_of_squares() if self.windows is None else self._dice_by_windows()
        return (mean := float(np.mean(list(dice)))), {"val_dice": mean}

    def score(self, outcome: FitOutcome) -> tuple[str, float]:
        metrics = outcome.validation
        return "dice", float(next(metrics[key] for key in ("dice", *MEASURED) if key in metrics))

    def finish(self, best: BestEpoch) -> FitOutcome:
        measured = MEASURED[self.windows is not None]
        metrics: dict[str, Any] = {"n": len(self.splits.val), measured: best.values["val_dice"]}
        thresholds: list[float] = []
        if not self.schema.exclusive:
            predicted = None if self.plain else self.predictor.manifest_maps(self.splits.val)

            def probabilities(row: int, shape: tuple[int, int]) -> np.ndarray:
                if predicted is not None:
                    return next(predicted)
                maps = self.adapter(self.features.val([row]))  # from features that are computed already
                return self.backbone.preprocessing.from_input(maps.float(), shape)[0].sigmoid().cpu().numpy()

            fixed = DEFAULT_THRESHOLD if self.val_is_small() else None
            thresholds, metrics["dice"] = choose_thresholds(self.splits.val, probabilities, self.schema, fixed)
            self.usage |= {"thresholds": thresholds, "thresholds_origin": "val" if fixed is None else "fixed"}
        self.usage["abstention"] = self._measure_confidence().model_dump(mode="json")
        threshold = thresholds[0] if len(thresholds) == 1 else None
        return FitOutcome(list(self.schema.names), metrics, self.usage, threshold)

    def _measure_confidence(self) -> AbstentionTable:
        """Compare the confidence of the masks of val with their Dice, at the chosen thresholds."""
        predictor, schema, val = self.predictor, self.schema, self.splits.val
        predicted = None if self.plain else predictor.manifest_maps(val)
        confidence, losses = [], []
        for row, targets in enumerate(prefetch(partial(schema.read, val), range(len(val)), None)):
            if predicted is not None:
                maps = next(predicted)
            else:
                outputs = self.adapter(self.features.val([row])).float()
                maps = predictor.resized(outputs, targets.shape[1:])
            confidence.append(predictor.confidence(maps))
            losses.append(1 - dice_of_targets(predictor.decide(maps), targets, schema))
        return abstention_table(np.array(confidence), np.array(losses), val.units(), LOSS)

    def read_masks(self) -> None:
        """Read the masks of train and val: set `targets`, `val_masks` and `digest`, and `windows` if set."""
        config, splits, reading = self.config, self.splits, self.backbone.preprocessing
        train: Masks | WholeMasks
        if config.crop is None:
            train = Masks(splits.train, reading, "train", self.schema)
            self.targets = train.take
        else:
            assert config.window is not None
            train = WholeMasks(splits.train, "train", self.schema)
            self.targets = lambda rows: torch.zeros(len(rows))  # windows have their own
            shrink = partial(shrink_targets, schema=self.schema, reading=reading)
            self.windows = RandomWindows(config.window, config.crop, train.read, train.marked, shrink, train.background)
        self.val_masks = Masks(splits.val, reading, "val", self.schema)
        self.digest = train.digest() + self.val_masks.digest()

    @property
    def predictor(self) -> SegmentPredictor:
        """The predictor of the future bundle with what is chosen so far, while head and backbone are still trained.

        It makes the choices on val valid for the predictions of the bundle.
        """
        return SegmentPredictor(self.draft_record(self.schema.names, self.usage), self.adapter, self.features.backbone)

    def _dice_of_squares(self) -> Iterator[float]:
        for rows, outputs in self.val_outputs(len(self.splits.val)):
            targets = self.val_masks.take(rows).to(self.backbone.device)
            yield from dice_of_logits(self.stretch(outputs, targets), targets, self.schema).tolist()

    def _dice_by_windows(self) -> Iterator[float]:
        val_masks = prefetch(partial(self.schema.read, self.splits.val), range(len(self.splits.val)), None)
        for maps, known in zip(self.predictor.manifest_maps(self.splits.val), val_masks, strict=True):
            yield dice_of_maps(maps, known, self.schema)


def prepare_masks(
    manifest: Manifest, config: SegmentConfig, found: dict[str, MaskSchema] | None = None
) -> tuple[MaskSchema, Splits]:
    """Return the mask schema, and the rows of train and val with masks; `found` as for `resolve_mask_schema`."""
    schema = resolve_mask_schema(manifest, config.kind, config.classes, found)
    splits = fit_splits(schema.usable(manifest), None, config.seed)
    if len(splits.train) < 2:
        raise UsageError("train has only one image with a mask; a segmenter needs two or more")
    sides = zip(splits.train.column("width"), splits.train.column("height"), strict=True)
    if config.window and config.crop is None and (longest := max(map(max, sides))) > config.window:
        raise UsageError(
            f"window {config.window}: train has images of {longest} px, which are used as a whole; add "
            "`settings=['crop=0.5']` to train on random windows of them, half of which contain a part of the mask, or "
            f"give a window of {longest} or more"
        )
    return schema, splits


def views_of_config(config: SegmentConfig, flips: bool, scales: tuple[float, ...]) -> Views:
    """Return the views of the bundle: those of the settings, else the defaults of the head."""
    return Views(
        flips=flips if config.flips is None else config.flips,
        scales=(1.0,) if config.window else scales if config.scales is None else config.scales,
        window=config.window,
        overlap=config.overlap,
    )
