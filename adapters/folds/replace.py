"""Replacement of an ensemble by a new one that lies complete beside it, also after a kill in the middle."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from dinomed.adapters.card import CARD_FILE
from dinomed.adapters.folds.plan import NEW, TABLE_FILE, check_removable, end, fold_folders
from dinomed.adapters.inference.ensemble.record import ENSEMBLE_FILE, read_ensemble
from dinomed.errors import DinomedError, system_reason
from dinomed.io.files import sync, write_json
from dinomed.io.output_folder import STAGE, check_free
from dinomed.log import logger

READY_FOLDS = "replace.json"
"""File in the stage of an output folder: all folds and files of the new ensemble are complete."""


def replace_ensemble(folder: Path) -> None:
    """Replace the ensemble in `folder` by the folds with the prefix `NEW` and the files in the stage.

    Until the mark is written the old ensemble is complete; from then on this call, or the next one on the folder, only
    removes old files and renames new ones. The record of the ensemble is removed first and comes last, so old and new
    members are never taken for one ensemble.

    Raises:
        UsageError: an old fold holds files that no training writes; nothing is removed then.
        DinomedError: a file or a folder cannot be removed or renamed.
    """
    check_removable(fold_folders(folder))
    write_json(folder / STAGE / READY_FOLDS, {})
    finish_replacing(folder)


def finish_replacing(folder: Path) -> bool:
    """Complete a replacement that was begun; return whether there was one. Raise as `replace_ensemble`.

    If the record of the new ensemble is damaged, nothing is removed or renamed, and the mark is removed, so that the
    cross-validation writes the record again.
    """
    stage = folder / STAGE
    mark = stage / READY_FOLDS
    if not mark.is_file():
        return False
    try:
        if (stage / ENSEMBLE_FILE).is_file():  # otherwise the record in the folder is the new one
            try:
                kept = {member.folder for member in read_ensemble(stage).members}
            except DinomedError as error:
                logger.warning(f"the new ensemble is not complete: {error}")
                mark.unlink()
                return False
            new = {place.name.removeprefix(NEW): place for place in fold_folders(folder, NEW)}
            old = [place for place in fold_folders(folder) if place.name in new or place.name not in kept]
            check_removable(old)
            (folder / ENSEMBLE_FILE).unlink(missing_ok=True)
            for place in old:
                shutil.rmtree(place)
            for name, place in new.items():
                os.replace(place, folder / name)
            for name in (TABLE_FILE, CARD_FILE, ENSEMBLE_FILE):
                if (stage / name).is_file():
                    os.replace(stage / name, folder / name)
            sync(folder)
        mark.unlink()
    except OSError as error:
        raise DinomedError(f"cannot write {folder}: {system_reason(error)}") from None
    return True


def remove_leftovers(folder: Path) -> None:
    """Remove the plan that a killed call left beside its complete ensemble; `claimed_folder` refuses such a folder.

    Raises:
        DinomedError: another process uses the folder.
    """
    stage = folder / STAGE
    if (folder / ENSEMBLE_FILE).is_file() and stage.is_dir() and not (stage / READY_FOLDS).exists():
        check_free(folder)
        end(folder)
        with suppress(OSError):  # an interrupted replacement continues from it
            stage.rmdir()
