"""Cross-validation: an adapter for each fold, and the ensemble of all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dinomed.adapters.bundle import WEIGHTS_FILE, made_with, read_record
from dinomed.adapters.card import CARD_FILE, build_card
from dinomed.adapters.evaluated import EvaluatedUnits
from dinomed.adapters.fit import fit_head, prepare_fit
from dinomed.adapters.fitting.build import at_image_size
from dinomed.adapters.fitting.config import TrainConfig
from dinomed.adapters.fitting.head_fit import FitResult, HeadFit
from dinomed.adapters.folds.plan import (
    PLAN_FILE,
    TABLE_FILE,
    FoldedImages,
    assign_folds,
    begin,
    build_plan,
    check_no_adapter,
    end,
    fold_name,
    is_plan,
)
from dinomed.adapters.folds.replace import finish_replacing, remove_leftovers, replace_ensemble
from dinomed.adapters.folds.report import OutOfFold, evaluate_out_of_fold, tabulate
from dinomed.adapters.inference.ensemble.record import (
    ENSEMBLE_FILE,
    MAX_MEMBERS,
    EnsembleRecord,
    hash_members,
    read_ensemble,
    refer_to_members,
    write_ensemble,
)
from dinomed.adapters.record import AdapterRecord
from dinomed.adapters.reference import refer_to
from dinomed.adapters.task import find_task
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.errors import DinomedError, UsageError
from dinomed.io.files import read_json, write_json, write_text
from dinomed.io.output_folder import STAGE, claimed_folder, finish_publishing, open_output_folder
from dinomed.log import logger


@dataclass(frozen=True)
class FoldsResult(FitResult):
    """Result of a cross-validation; `validation` are the metrics out of fold.

    Attributes:
        table: the content of `cross_validation.json`; see `dinomed.adapters.folds.report.tabulate`.
        members: folders of the adapters of the folds.
        out_of_fold: the predictions of all images, fold by fold, each by the member that was not trained on it; None
            if an earlier call had completed the cross-validation, except that it was killed while it moved the files.
    """

    table: dict[str, Any] = field(default_factory=dict)
    members: tuple[Path, ...] = ()
    out_of_fold: EvaluatedUnits | None = None


@dataclass(frozen=True)
class PreparedFolds:
    """The images of a cross-validation in their folds, and the fit of the task, which knows their targets."""

    fit: HeadFit
    images: FoldedImages


def prepare_folds(config: TrainConfig, manifest: Manifest, folds: int) -> PreparedFolds:
    """Divide the images of train and val into folds, and check the rows of each; this needs no backbone.

    Raises:
        UsageError: there are fewer groups than folds, a class is in one fold only, the task has no ensembles, or there
            are more than `MAX_MEMBERS` folds; see also `HeadFit.select_rows`.
    """
    task = find_task(config.task)
    if not task.has_ensembles:
        raise UsageError(f"`folds={folds}`: a {task.title} has no ensembles; leave it out")
    if folds > MAX_MEMBERS:
        raise UsageError(f"`folds={folds}`: an ensemble has at most {MAX_MEMBERS} members; give fewer folds")
    if config.fit.refit == "always":
        raise UsageError("fit.refit=always: each fold measures a member that never saw it; leave it out")
    fit = task.head_fit(config)
    images = assign_folds(fit, manifest, folds, config.seed)
    for fold in range(folds):  # before anything is removed or trained
        fit.select_rows(images.of_fold(fold))
    return PreparedFolds(fit, images)


def train_folds(
    backbone: FrozenBackbone,
    manifest: Manifest,
    out: str | Path,
    config: TrainConfig,
    folds: int,
    *,
    cache: str | Path,
    overwrite: bool = False,
    prepared: PreparedFolds | None = None,
) -> FoldsResult:
    """Train an adapter for each fold, and write the ensemble of all of them.

    The images of train and val together are divided into folds by group, stratified by class; test is not touched. The
    adapter `fold_k` has fold k as its val and is trained on the others. The trainings of all folds share features that
    are neither augmented nor of a tuned backbone: they are computed once. The out-of-fold predictions pass each image
    through the backbone once more. After an interruption the same call keeps the finished folds and resumes the one
    that was interrupted.

    The ensemble averages calibrated probabilities or maps. Thresholds of a classifier are chosen on the out-of-fold
    predictions; a segmenter has the mean of the thresholds of its members. There is no further temperature.

    Args:
        backbone: the frozen backbone.
        manifest: images with targets.
        out: folder of the ensemble.
        config: settings; their class decides the task.
        folds: number of folds, at least 2.
        cache: folder of cached features.
        overwrite: replace an earlier ensemble in `out`, which stays until the new one is complete, or start an
            unfinished one again, after the settings and the rows of all folds are checked. If the replacement is
            interrupted, the same call continues it; if only files were left to be moved, nothing is trained.
        prepared: what `prepare_folds` returned for the same arguments; None calls it.

    Raises:
        UsageError: see `prepare_folds`; `out` is in use, holds an adapter, or unfinished folds of other settings,
            images, or another number; see also `HeadFit.check`.
        DinomedError: an image, a mask or a depth map is damaged.
    """
    task = find_task(config.task)
    prepared = prepared or prepare_folds(config, manifest, folds)
    prepare_fit(config, backbone)
    fit, folded = prepared.fit, prepared.images
    plan = build_plan(fit, folds, backbone.fingerprint, folded.images)
    names = [fold_name(fold) for fold in range(folds)]
    check_no_adapter(Path(out))
    if not overwrite:
        remove_leftovers(Path(out))
    with claimed_folder(out, marker=ENSEMBLE_FILE, overwrite=overwrite) as folder:
        try:
            if finish_replacing(folder):
                if not overwrite:
                    raise UsageError(
                        f"output folder {folder} holds the ensemble of an earlier call, which is now complete; add "
                        "`overwrite=True` to replace it"
                    )
                if is_plan(folder / STAGE / PLAN_FILE, plan):
                    return _read_result(folder, names)
            prefix = begin(folder, plan, overwrite=overwrite)
            places = [folder / f"{prefix}{name}" for name in names]
            for fold, place in enumerate(places):
                _train_fold(backbone, folded, fold, place, config, folds, cache)
            references, records = refer_to_members(folder, names, prefix)
            load = lambda *_, image_size=None, aspect=None, **__: at_image_size(backbone, image_size, aspect)
            outcome = evaluate_out_of_fold(task, places, folded, records, load, str(backbone.device))
            table = tabulate(outcome, task.name)
            adapter = _as_adapter(folder, records, folded, outcome, table, config, backbone).model_copy(
                update={"weights_sha256": hash_members(references)}
            )
            record = EnsembleRecord(adapter=adapter, members=references)
            target = folder / STAGE if prefix else folder
            write_json(target / TABLE_FILE, table)
            write_text(target / CARD_FILE, build_card(adapter))
            write_ensemble(target, record)
            if prefix:
                replace_ensemble(folder)
        finally:
            end(folder)
    return FoldsResult(
        folder, 0, table["metrics"], outcome.use.threshold, table=table,
        members=tuple(folder / name for name in names), out_of_fold=outcome.use.evaluated,
    )  # fmt: skip


def _read_result(folder: Path, names: Sequence[str]) -> FoldsResult:
    """Return the result of a complete cross-validation, without its predictions out of fold."""
    table, threshold = read_json(folder / TABLE_FILE), read_ensemble(folder).adapter.threshold
    members = tuple(folder / name for name in names)
    return FoldsResult(folder, 0, table["metrics"], threshold, table=table, members=members)


def _train_fold(
    backbone: FrozenBackbone, folded: FoldedImages, fold: int, place: Path, config: TrainConfig, folds: int,
    cache: str | Path,
) -> None:  # fmt: skip
    """Train the adapter of a fold, unless it is there already."""
    if (place / STAGE).is_dir():  # killed while its files were moved
        finish_publishing(place, WEIGHTS_FILE)
    if not (place / WEIGHTS_FILE).is_file():
        logger.info(f"{fold_name(fold)} of {folds}")
        fit_head(backbone, folded.of_fold(fold), place, config, cache=cache, pool=folded.images)
        return
    if (place / STAGE).is_dir():
        with open_output_folder(place, marker=WEIGHTS_FILE, overwrite=True):
            pass
    record = read_record(place)
    data = record.training.get("data", {})
    expected = {name: folded.part(fold, inside=name == "val").fingerprint for name in ("train", "val")}
    if record.backbone.fingerprint != _at_record(backbone, record).fingerprint or any(
        data.get(name, {}).get("manifest") != value for name, value in expected.items()
    ):
        raise DinomedError(
            f"{place} is no adapter of this cross-validation: it was trained on other images, or on another backbone; "
            "add `overwrite=True` to start again"
        )
    logger.info(f"{fold_name(fold)} of {folds} is trained already")


def _at_record(backbone: FrozenBackbone, record: AdapterRecord) -> FrozenBackbone:
    return at_image_size(backbone, record.preprocessing.image_size, record.preprocessing.aspect)


def _as_adapter(
    folder: Path, records: Sequence[AdapterRecord], folded: FoldedImages, outcome: OutOfFold, table: dict[str, Any],
    config: TrainConfig, backbone: FrozenBackbone,
) -> AdapterRecord:  # fmt: skip
    """Return the record of the ensemble as an adapter."""
    first = records[0]
    return AdapterRecord(
        task=first.task,
        head={"name": "ensemble", "members": sorted({str(record.head.get("name")) for record in records})},
        classes=first.classes,
        threshold=outcome.use.threshold,
        usage=outcome.use.usage,
        backbone=refer_to(_at_record(backbone, first), folder),
        tuned=first.tuned,
        preprocessing=first.preprocessing,
        validation=table["metrics"],
        training={
            "config": config.model_dump(mode="json"),
            "folds": len(records),
            "data": {
                "folds": {"images": len(folded.images), "manifest": folded.images.fingerprint},
                "by_group": folded.images.has("group"),
            },
            **({"classes": folded.labels} if folded.labels else {}),
            "left_out": outcome.use.left_out,
            "unlike_check": first.training["unlike_check"],  # an ensemble uses that of its first member
            **made_with(),
        },
        weights_sha256="",
    )
