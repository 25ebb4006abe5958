"""Fitting segmenters on cached features: minutes on two cores."""

from collections.abc import Sequence
from pathlib import Path

import torch
from monai.losses import DiceCELoss
from torch import Tensor
from torch.nn.functional import interpolate

from dinomed.adapters.build import at_image_size, build_adapter, default_segment_size, extract_splits, gather
from dinomed.adapters.bundle import open_output, save_bundle
from dinomed.adapters.config_segment import SegmentConfig
from dinomed.adapters.data import fit_splits, masked
from dinomed.adapters.fitting import FitResult, chunks, training_record
from dinomed.adapters.loop import run_epochs
from dinomed.adapters.masks import Masks, choose_threshold, dice
from dinomed.adapters.seen import collect_seen
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.features.store import FeatureStore

LESION = "lesion"


def fit_segmenter(
    backbone: FrozenBackbone,
    manifest: Manifest,
    out: str | Path,
    config: SegmentConfig | None = None,
    *,
    store: str | Path,
    overwrite: bool = False,
) -> FitResult:
    """Fit a segmenter on the split train by Dice + cross-entropy, keep the epoch with the best Dice on val, choose the
    threshold on val at the images' own size, write a bundle to `out`.

    Args:
        store: where features are kept (`dinomed.features.extract.default_store`).

    Raises:
        UsageError: no masks, no train split, a group in two splits, or `out` is in use.
    """
    config = config or SegmentConfig()
    splits = fit_splits(masked(manifest), None, config.seed)
    size = config.image_size or default_segment_size(backbone)
    backbone = at_image_size(backbone, size)
    adapter = build_adapter(config, backbone, num_classes=1)
    with open_output(out, config, overwrite=overwrite) as output:
        train, val = extract_splits(backbone, splits, adapter, store)
        masks, val_masks = Masks(splits.train, size, "train"), Masks(splits.val, size, "val")
        adapter.calibrate(train.cls, train.mean)
        adapter.to(backbone.device)
        loss = DiceCELoss(sigmoid=True)

        def logits(store: FeatureStore, rows: Sequence[int]) -> Tensor:
            return adapter(gather(store, rows, backbone.device))

        def batch_loss(indices: Tensor) -> Tensor:
            rows = indices.tolist()
            up = interpolate(logits(train, rows), (size, size), mode="bilinear")
            return loss(up, masks.take(rows).to(up))

        def validate() -> tuple[float, dict[str, float]]:
            scores = []
            for rows in chunks(len(val), config.fit.batch_size):
                up = interpolate(logits(val, rows), (size, size), mode="bilinear")
                scores.append(dice(up > 0, val_masks.take(rows).to(up)))
            mean = torch.cat(scores).mean().item()
            return mean, {"val_dice": mean}

        best = run_epochs(
            adapter, config.fit, count=len(train), batch_loss=batch_loss, validate=validate, seed=config.seed,
            folder=output.stage, description="training the segmenter",
        )  # fmt: skip
        threshold, val_dice = choose_threshold(splits.val, lambda rows: logits(val, rows))
        metrics = {"n": len(val), "dice": val_dice, "dice_at_training_size": best.values["val_dice"]}
        seen = collect_seen((splits.train, splits.val))
        training = training_record(config, splits, best, backbone)
        save_bundle(
            output, adapter, backbone, classes=[LESION], seen=seen, threshold=threshold, validation=metrics,
            training=training,
        )  # fmt: skip
    return FitResult(output.folder, best.epoch, metrics, threshold)
