"""The plan of a cross-validation: the images of each fold, and the inputs that must be equal for a call to continue an
interrupted one."""

import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import ValidationError

from dinomed.adapters.bundle import CONFIG_FILE, RECORD_FILE, WEIGHTS_FILE
from dinomed.adapters.card import CARD_FILE
from dinomed.adapters.fitting.data import list_names
from dinomed.adapters.fitting.head_fit import HeadFit
from dinomed.adapters.fitting.loop import LOG_FILE, STATE_FOLDER
from dinomed.adapters.inference.ensemble.record import ENSEMBLE_FILE
from dinomed.config import Config
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.splits import check_splits, make_folds
from dinomed.errors import DinomedError, UsageError
from dinomed.io.files import hash_json, read_json, sha256_file, write_json
from dinomed.io.output_folder import LOCK_FILE, STAGE
from dinomed.loggers.names import LOGGER_FOLDERS

PLAN_FILE, TABLE_FILE = "folds.json", "cross_validation.json"
NEW = "new_"
"""Prefix of the folders of folds that will replace those of an ensemble. They lie beside the old ones, at the same
depth, since adapters refer to their backbone by a relative path."""
FORMAT = "dinomed.folds/1"
FOLD_ENTRIES = frozenset(
    (WEIGHTS_FILE, RECORD_FILE, CONFIG_FILE, CARD_FILE, LOG_FILE, LOCK_FILE, STAGE, *LOGGER_FOLDERS)
)
"""Everything that a training writes to the folder of a fold."""


@dataclass(frozen=True)
class FoldedImages:
    """N images in K folds.

    Attributes:
        images: the rows of train and val that have targets.
        folds: fold of each row, 0 to K - 1.
        labels: number of images of each label, if the task has labels.
    """

    images: Manifest
    folds: list[int]
    labels: dict[str, int]

    def of_fold(self, fold: int) -> Manifest:
        """Return all rows, those of a fold as the split val and the others as train."""
        return with_splits(self.images, ["val" if each == fold else "train" for each in self.folds])

    def part(self, fold: int, *, inside: bool) -> Manifest:
        """Return the rows of a fold (`inside`), or of all other folds."""
        return self.images.take([row for row, each in enumerate(self.folds) if (each == fold) == inside])


class FoldPlan(Config):
    """The inputs of a cross-validation; a call continues only a plan that is equal to its own.

    Attributes:
        settings: of the training of each fold, without the loggers.
        folds: number of folds.
        backbone: fingerprint of the backbone.
        images: hash of all columns of the images but the split, and of the files of masks or depth maps.
    """

    format: Literal["dinomed.folds/1"] = FORMAT  # type: ignore[assignment]
    settings: dict[str, Any]
    folds: int
    backbone: str
    images: str


def fold_name(fold: int) -> str:
    """Return the name of the folder of a fold, counted from 0.

    >>> fold_name(0)
    'fold_1'
    """
    return f"fold_{fold + 1}"


def with_splits(manifest: Manifest, splits: Sequence[str]) -> Manifest:
    """Return a manifest with other splits."""
    table, column = manifest.table, pa.array(list(splits), pa.string())
    if "split" in table.column_names:
        table = table.set_column(table.column_names.index("split"), "split", column)
    else:
        table = table.append_column("split", column)
    return replace(manifest, table=table)


def assign_folds(fit: HeadFit, manifest: Manifest, folds: int, seed: int) -> FoldedImages:
    """Assign the images of train and val to folds, by group and stratified by their labels.

    Without splits all images are used. Images of test, and images without a split beside others, are left out.

    Args:
        fit: the fit of the task; it knows which rows have targets.
        manifest: images with targets.
        folds: number of folds, at least 2.
        seed: of the folds.

    Raises:
        UsageError: there are fewer groups than folds, a group of these images is in test too, or a class is in one fold
            only.
    """
    rows = manifest
    if manifest.has("split"):
        splits, groups = manifest.column("split"), manifest.groups()
        in_test = {group for group, split in zip(groups, splits, strict=True) if split == "test"}
        check_splits([group if group in in_test else None for group in groups], splits, manifest.column("image"))
        rows = manifest.take([row for row, split in enumerate(splits) if split in ("train", "val")])
        if not len(rows):
            raise UsageError(f"{manifest.called} has no image in train or val; the folds are made of these splits")
    usable, labels = fit.fold_rows(rows)
    strata = ["\0".join(names) if names else None for names in labels]
    parts = make_folds(usable.units(), strata, folds, seed)
    places: dict[str, set[int]] = defaultdict(set)
    counts: dict[str, int] = defaultdict(int)
    for names, part in zip(labels, parts, strict=True):
        for name in names:
            places[name].add(part)
            counts[name] += 1
    single = sorted(name for name, used in places.items() if len(used) == 1)
    if single:
        raise UsageError(
            f"`folds={folds}`: images of {list_names('class', 'classes', single)} are in one fold only, so the head of "
            "this fold would not know it; a class needs images of two groups or more: add some, or leave it out"
        )
    return FoldedImages(usable, parts, dict(sorted(counts.items())))


def build_plan(fit: HeadFit, folds: int, backbone: str, images: Manifest) -> FoldPlan:
    """Return the plan of a cross-validation. Loggers are no part of it.

    Args:
        fit: the fit of the task, with its settings.
        folds: number of folds.
        backbone: fingerprint of the backbone.
        images: the images of all folds.
    """
    columns = {name: values for name, values in images.table.to_pydict().items() if name != "split"}
    paths = [images.root / path for name in fit.target_columns() for path in images.column(name)]
    files = [sha256_file(path) if path.is_file() else None for path in paths]  # the fit reports missing ones
    digest = hash_json([columns, files])
    settings = fit.config.model_dump(mode="json", exclude={"fit": {"loggers"}})
    return FoldPlan(settings=settings, folds=folds, backbone=backbone, images=digest)


def check_no_adapter(folder: Path) -> None:
    """Raise a `UsageError` if a folder holds an adapter, or the unfinished training of one, instead of folds."""
    if (folder / WEIGHTS_FILE).exists() or (folder / STAGE / STATE_FOLDER).exists():
        raise UsageError(
            f"output folder {folder} holds an adapter, or its unfinished training; choose another folder for `folds`"
        )


def begin(folder: Path, plan: FoldPlan, *, overwrite: bool) -> str:
    """Write the plan into the stage of a locked output folder, or check that the plan there is the same.

    An ensemble in the folder stays until the new one is complete: the new folds are trained beside the old ones
    (`NEW`), and an interrupted replacement with the same plan is continued. An unfinished cross-validation without an
    ensemble is removed first with `overwrite`.

    Returns:
        The prefix of the names of the folders of the folds: `NEW`, or an empty text.

    Raises:
        UsageError: the folder holds folds of another plan or without one, or a fold that would be removed holds files
            that no training writes.
        DinomedError: its plan is damaged.
    """
    path, folds, new = folder / STAGE / PLAN_FILE, fold_folders(folder), fold_folders(folder, NEW)
    if (folder / ENSEMBLE_FILE).is_file():
        check_removable(folds)
        if new and is_plan(path, plan):
            return NEW
        remove_folds(new)
        _write_plan(path, plan)
        return NEW
    if overwrite:
        remove_folds([*folds, *new])
        for name in (TABLE_FILE, CARD_FILE):
            (folder / name).unlink(missing_ok=True)
    elif new or (folds and not path.is_file()):
        raise UsageError(
            f"output folder {folder} holds folds of an earlier training whose settings are unknown; choose another "
            "folder, or add `overwrite=True` to start again"
        )
    elif folds and (old := _read_plan(path)) != plan:
        names = {
            "settings": "other settings",
            "folds": "another number of folds",
            "backbone": "another backbone",
            "images": "other images, labels or masks",
        }
        changed = [text for name, text in names.items() if getattr(old, name) != getattr(plan, name)]
        raise UsageError(
            f"output folder {folder} holds an unfinished training of {old.folds} folds with {' and '.join(changed)}; "
            "give the same, or add `overwrite=True` to start again"
        )
    if overwrite or not folds:
        _write_plan(path, plan)
    return ""


def end(folder: Path) -> None:
    """Remove the plan of a finished cross-validation, or of one in which no fold was begun."""
    if not fold_folders(folder, NEW if (folder / ENSEMBLE_FILE).is_file() else ""):
        (folder / STAGE / PLAN_FILE).unlink(missing_ok=True)


def fold_folders(folder: Path, prefix: str = "") -> list[Path]:
    """Return the folders of folds in an output folder, in the order of their numbers."""
    start = f"{prefix}fold_"
    places = [place for place in folder.glob(f"{start}*") if place.name.removeprefix(start).isdecimal()]
    return sorted(filter(Path.is_dir, places), key=lambda place: int(place.name.removeprefix(start)))


def check_removable(folds: Sequence[Path]) -> None:
    """Raise a `UsageError` if the folder of a fold holds files that no training writes."""
    for place in folds:
        others = ["a link"] if place.is_symlink() else sorted({entry.name for entry in place.iterdir()} - FOLD_ENTRIES)
        if others:
            raise UsageError(
                f"{place} cannot be replaced: it holds other files ({', '.join(others[:5])}); move them, or choose "
                "another output folder"
            )


def remove_folds(folds: Sequence[Path]) -> None:
    """Remove the folders of folds. Raise a `UsageError` as `check_removable`; nothing is removed then."""
    check_removable(folds)
    for place in folds:
        shutil.rmtree(place)


def _write_plan(path: Path, plan: FoldPlan) -> None:
    """Write the plan into the stage, in place of all that an older one left there."""
    for entry in path.parent.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    write_json(path, plan.model_dump(mode="json"))


def is_plan(path: Path, plan: FoldPlan) -> bool:
    """Return whether an undamaged plan at `path` equals `plan`."""
    try:
        return _read_plan(path) == plan
    except DinomedError:
        return False


def _read_plan(path: Path) -> FoldPlan:
    try:
        return FoldPlan.model_validate(read_json(path))
    except (ValidationError, DinomedError):
        raise DinomedError(f"{path} is damaged; add `overwrite=True` to start again") from None
