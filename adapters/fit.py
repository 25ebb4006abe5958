"""Training of a head of any task: a manifest and a frozen backbone to a bundle; and the choice among several heads."""

import shutil
from collections import defaultdict
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path
from time import monotonic
from typing import Any

import pyarrow as pa
import torch

from dinomed.adapters.adapter import FeatureSpec
from dinomed.adapters.bundle import CONFIG_FILE, open_output, save_bundle
from dinomed.adapters.fitting.build import at_image_size
from dinomed.adapters.fitting.config import TrainConfig, adapter_class
from dinomed.adapters.fitting.data import Splits
from dinomed.adapters.fitting.head_fit import FitOutcome, FitResult, HeadFit, training_record
from dinomed.adapters.fitting.loop import LOG_FILE, REFIT_LOG_FILE, STATE_FOLDER, BestEpoch
from dinomed.adapters.fitting.optimizers import resolve_precision
from dinomed.adapters.fitting.tune import TunedBackbone
from dinomed.adapters.task import find_task
from dinomed.adapters.training_images import hash_training_images
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.config import to_yaml
from dinomed.datasets.manifest import Manifest
from dinomed.features.extract import extract, resolve_blocks
from dinomed.features.familiarity.fit import choose_reference_rows, fit_reference
from dinomed.features.familiarity.reference import TrainingReference
from dinomed.io.files import write_text
from dinomed.log import logger
from dinomed.loggers.names import LOGGER_FOLDERS

CANDIDATE_FOLDER, REFIT_FOLDER = "candidate", "refit"


@dataclass(frozen=True)
class FinishedFit:
    """A fit after its last step.

    `opened` are the features that were opened; a solved head may need fewer blocks. `refitted` is the number of images
    of train and val on which the head was trained again; 0 if it was not.
    """

    fit: HeadFit
    opened: FeatureSpec
    best: BestEpoch
    outcome: FitOutcome
    refitted: int = 0


def fit_head(
    backbone: FrozenBackbone,
    manifest: Manifest,
    out: str | Path,
    config: TrainConfig,
    *,
    cache: str | Path,
    overwrite: bool = False,
    pool: Manifest | None = None,
) -> FitResult:
    """Fit a head on the split train, choose on val, and write a bundle. `HeadFit` describes the steps.

    The epoch with the best score on val is kept; where val is small, the last one, and a segmenter is trained again on
    train and val (`dinomed.adapters.fitting.config.FitConfig`). Classifiers and depth estimators are scored by the
    loss, segmenters by the Dice; k, C or the head of a grid is chosen by the macro AUROC. The head ``auto`` is the best
    of several heads (`choose_head`).

    Args:
        backbone: the frozen backbone.
        manifest: images with targets.
        out: folder of the bundle.
        config: settings; their class decides the task.
        cache: folder of cached features (`dinomed.features.extract.default_cache`).
        overwrite: replace an older adapter in `out`.
        pool: images of all folds of a cross-validation, whose features are computed together.

    Raises:
        UsageError: there are no targets, only one class or no split train; a group is in two splits; `out` is in use;
            or the package of a logger is missing.
        DinomedError: an image, a mask or a depth map is damaged.
    """
    tried = list[dict[str, Any]]()
    first, candidates = prepare_fit(config, backbone)
    first.splits = replace(first.select_rows(manifest), pool=pool)
    with open_output(out, config, overwrite=overwrite) as output:
        if candidates:
            done, tried = choose_head(first, candidates, backbone, cache, output.stage)
            kept = next(row["head"] for row in tried if row["kept"])
            write_text(output.stage / CONFIG_FILE, to_yaml(candidates[kept]))
        else:
            first.backbone = at_image_size(backbone, first.image_size(backbone), first.config.aspect)
            done = run_fit(first, cache, output.stage)
        splits, outcome = done.fit.splits, done.outcome
        if pool is None and done.fit.refits():
            state = output.stage / STATE_FOLDER / REFIT_FOLDER
            done = refit(done, cache, state)
            (state / LOG_FILE).replace(output.stage / REFIT_LOG_FILE)  # a resumed training writes it again
        fit = done.fit
        training = training_record(fit.config, splits, done.best, fit.backbone) | outcome.training
        training |= {"refitted_on": done.refitted} if done.refitted else {}
        tuned = fit.features.tuned()
        save_bundle(
            output, fit.adapter, fit.backbone, classes=outcome.classes, threshold=outcome.threshold,
            seen=hash_training_images((splits.train, splits.val)), usage=outcome.usage,
            validation=outcome.validation, tuned=tuned,
            reference=reference_of_fit(fit, done.opened, tuned, cache),
            training=training | ({"tried": tried} if tried else {}),
        )  # fmt: skip
    return FitResult(
        output.folder, done.best.epoch, outcome.validation, outcome.threshold, outcome.chosen, tried, done.refitted
    )


def prepare_fit(config: TrainConfig, backbone: FrozenBackbone) -> tuple[HeadFit, dict[str, TrainConfig]]:
    """Check the settings, and return the fit of the head, and the candidates of the head ``auto`` by title.

    Without a choice of heads there are no candidates; with it the fit is that of the first one. The precision `auto`
    of the fit is replaced by that of the device; the candidates keep it, as their settings are for any device.

    Raises:
        UsageError: see `HeadFit.check`.
    """
    task = find_task(config.task)
    chooses = adapter_class(config.task, config.head.name).chooses
    candidates = task.candidates(config, backbone) if chooses else {}
    fits = [task.head_fit(resolve_precision(each, backbone.device)) for each in (candidates.values() or [config])]
    for fit in fits:
        fit.check(backbone)
    return fits[0], candidates


def run_fit(fit: HeadFit, cache: str | Path, folder: Path) -> FinishedFit:
    """Run the steps of a fit after the selection of its rows and its image size; state and log go to `folder`."""
    fit.adapter, fit.cache = fit.build(), cache
    fit.features, opened = fit.open_features(cache), fit.adapter.feature_spec
    best = fit.train(folder)
    with torch.no_grad():
        return FinishedFit(fit, opened, best, fit.finish(best))


def refit(done: FinishedFit, cache: str | Path, folder: Path) -> FinishedFit:
    """Train the head of a finished fit again, from its initial weights, on the images of train and val.

    Nothing is chosen or measured on val again: the outcome stays that of the head that did not see val.

    Args:
        done: a fit whose settings are those of the new one.
        cache: folder of cached features.
        folder: where the state and the log of the training are written.
    """
    fit, splits = copy(done.fit), done.fit.splits
    images = join_splits(splits)
    logger.info(
        f"the head is trained again on all {len(images)} images of train and val, which takes as long again "
        "(fit.refit=never disables it)"
    )
    # the same augmentation, also where val has another modality; no blocks of other candidates of `auto`
    augment = fit.config.augmentation(splits.train, fit.backbone)
    fit.config, fit.shared_blocks = fit.config.model_copy(update={"augment": augment}), ()
    fit.splits = replace(splits, train=images)
    del done.fit.features, done.fit.adapter, fit.features  # memory, which the second training needs too
    folder.mkdir(parents=True, exist_ok=True)
    fit.adapter = fit.build()
    fit.features = fit.open_features(cache)
    best = fit.train(folder, measured=False)
    fit.config = done.fit.config
    return replace(done, fit=fit, best=best, refitted=len(images))


def join_splits(splits: Splits) -> Manifest:
    """Return the images of train and then those of val."""
    return replace(splits.train, table=pa.concat_tables([splits.train.table, splits.val.table]))


def candidate_fits(
    prepared: HeadFit, candidates: Mapping[str, TrainConfig], backbone: FrozenBackbone
) -> dict[str, HeadFit]:
    """Return a fit for each candidate, with the blocks whose features it shares with others of its image size.

    `prepared` is a fit whose rows are selected; all candidates use them.
    """
    fits = {title: copy(prepared) for title in candidates}
    blocks: dict[Any, set[int]] = defaultdict(set)
    sharing: dict[str, Any] = {}  # title -> what candidates have in common that read the same pass
    for title, config in candidates.items():
        fit, kind = fits[title], adapter_class(config.task, config.head.name)
        fit.config = resolve_precision(config, backbone.device)
        fit.backbone = at_image_size(backbone, fit.image_size(backbone), config.aspect)
        sharing[title] = kind.uses_patches, fit.backbone.preprocessing.image_size
        head = kind.resolve_config(config.head, backbone)
        blocks[sharing[title]].update(resolve_blocks(head.blocks, backbone.depth))
    for title, fit in fits.items():
        fit.shared_blocks = tuple(sorted(blocks[sharing[title]]))
    return fits


def choose_head(
    prepared: HeadFit, candidates: Mapping[str, TrainConfig], backbone: FrozenBackbone, cache: str | Path, stage: Path
) -> tuple[FinishedFit, list[dict[str, Any]]]:
    """Fit each candidate on train and return the one with the best metric on val, the first of equal ones.

    Candidates of the same image size share the features of their blocks, which are extracted once. After an
    interruption each candidate is resumed from its own state.

    Args:
        prepared: a fit whose rows are selected; all candidates use them.
        candidates: settings by title.
        backbone: the frozen backbone.
        cache: folder of cached features.
        stage: folder in whose state each candidate has a folder; the logs of the kept one are moved to it.

    Returns:
        The kept fit, and a row for each candidate: ``head``, its metric on val, ``seconds`` and ``kept``.
    """
    fits = candidate_fits(prepared, candidates, backbone)
    best: tuple[float, str, FinishedFit] | None = None
    rows: list[dict[str, Any]] = []
    for number, title in enumerate(candidates, start=1):
        logger.info(f"head {number} of {len(candidates)}: {title}")
        fit = fits.pop(title)  # so that only the features of the best one stay in memory
        folder, began = stage / STATE_FOLDER / f"{CANDIDATE_FOLDER}_{number}", monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        done = run_fit(fit, cache, folder)
        metric, value = fit.score(done.outcome)
        rows.append({"head": title, metric: value, "seconds": round(monotonic() - began, 1), "kept": False})
        logger.info(f"{title}: {metric} {value:.4f} on val")
        rank = float("-inf") if isnan(value) else value
        if best is None or rank > best[0]:
            best = rank, title, done
            (stage / LOG_FILE).unlink(missing_ok=True)
            for name in LOGGER_FOLDERS:
                shutil.rmtree(stage / name, ignore_errors=True)
            for name in (LOG_FILE, *LOGGER_FOLDERS):
                if (folder / name).exists():
                    (folder / name).rename(stage / name)
    assert best is not None
    _, kept, done = best
    return done, [{**row, "kept": row["head"] == kept} for row in rows]


def reference_of_fit(
    fit: HeadFit, spec: FeatureSpec, tuned: TunedBackbone | None, cache: str | Path
) -> TrainingReference:
    """Measure the training images of a fit for the check of unlike images.

    Features of whole images without augmentation are used if the fit has computed them, else they are computed.

    Args:
        fit: a fit that is trained.
        spec: the features that were opened.
        tuned: the backbone after the fit, if it was trained too.
        cache: folder of cached features.
    """
    rows, block = choose_reference_rows(len(fit.splits.train)), spec.blocks[-1]
    train = fit.splits.train.take(rows)
    backbone, width = fit.backbone if tuned is None else tuned.backbone, fit.backbone.embed_dim
    computed = fit.features.mean
    if tuned is None and fit.windows is None and computed.shape == (len(fit.splits.train), len(spec.blocks) * width):
        means = computed[rows][:, -width:]
    else:
        means = extract(backbone, train, cache=cache, blocks=(block,), description="features of train").mean
    units = fit.splits.train.units()
    return fit_reference(means, [units[row] for row in rows], backbone, train, block)
