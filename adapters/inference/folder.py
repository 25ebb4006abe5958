"""Prediction of collections: a table with one row for each image, and for dense tasks a file for each image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from dinomed.adapters.inference.plan import (
    FAILED_FILE,
    PLAN_FILE,
    SHEET_FILE,
    TABLE_FILE,
    PredictionPlan,
    add_rows,
    begin,
    check_sheet,
    finish,
)
from dinomed.adapters.predictor import Predictor
from dinomed.adapters.task import find_task
from dinomed.adapters.writer import PredictionWriter, Row, SheetEntry, VolumeSegOptions
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.tables import write_csv
from dinomed.errors import UsageError
from dinomed.features.familiarity.reference import Familiarity
from dinomed.features.finite import compute_finite
from dinomed.features.loading import load_batches, stack_pixels
from dinomed.io.files import write_text
from dinomed.io.output_folder import claimed_folder
from dinomed.log import logger
from dinomed.metrics.uncertainty.abstention import AbstentionRule
from dinomed.progress import bar

ABSTAINED_COLUMN = "abstained"
FAMILIARITY_COLUMNS = ("unlike_training", "distance_percentile")


@dataclass(frozen=True)
class SheetRow:
    """One image of a contact sheet.

    Attributes:
        row: row of the manifest.
        number: of its line in the table, from 1.
        entry: what the sheet shows.
        unlike: whether the image is unlike the training images; None if this was not checked.
        percentile: share of the training images that are less unlike the others, 0 to 100.
    """

    row: int
    number: int
    entry: SheetEntry
    unlike: bool | None
    percentile: float | None


SheetBuilder = Callable[[list[SheetRow], list[tuple[str, str]]], str]
"""Returns the page of a contact sheet, from its rows and from (path, reason) of the images without a prediction."""


@dataclass(frozen=True)
class PredictionResult:
    """The result of a prediction.

    Attributes:
        folder: output folder.
        images: number of predicted images.
        kept: number of those that an interrupted call had predicted before.
        unreadable: (path, reason) of files that cannot be read, and of images for which the model gives no finite
            values.
        sheet: path of the contact sheet, or None.
        rule: the rule by which predictions are abstained, or None.
        abstained: number of predictions, or of groups, that are abstained.
        masked_text: counts of text that was masked in pictures; None if it was not masked.
    """

    folder: Path
    images: int
    kept: int
    unreadable: list[tuple[str, str]]
    sheet: Path | None = None
    rule: AbstentionRule | None = None
    abstained: int = 0
    masked_text: dict[str, int] | None = None


def predict_collection(
    predictor: Predictor,
    manifest: Manifest,
    out: str | Path,
    *,
    unreadable: Sequence[tuple[str, str]] = (),
    coco: bool = False,
    coco_ids: Path | None = None,
    dicom_seg: bool = False,
    keep_ids: bool = False,
    key: bytes | None = None,
    volumes: bool = False,
    series: Path | None = None,
    overwrite: bool = False,
    build_sheet: SheetBuilder | None = None,
    rule: AbstentionRule | None = None,
    masked: bool = False,
) -> PredictionResult:
    """Predict every image of a manifest.

    The last columns of the table, `FAMILIARITY_COLUMNS`, say whether an image is unlike the training images; they are
    empty if this check is not available.

    A segmenter writes masks (PNG, of the size of each image) under the relative paths of the images, and a depth
    estimator depth maps. `predictions.csv` has one row for each image. `predictions.json` holds the settings and the
    list of files; it is written first, and has ``"complete": true`` at the end. After an interruption, the same call
    keeps the finished images and predicts the rest. Images that cannot be read, and images for which the model gives
    values that are not finite, are listed in `unreadable.csv`, and the others are predicted.

    Args:
        predictor: result of `load_adapter`.
        manifest: the images.
        out: output folder.
        unreadable: (path, reason) of files that the scan could not read; they are listed too.
        coco: write masks as COCO results too (`dinomed.adapters.tasks.segment.coco`).
        coco_ids: COCO file whose ids of images and categories they have; None for new ids.
        dicom_seg: of a segmenter and DICOM images, also write each mask as a DICOM segmentation; with `volumes` each
            volume of a DICOM series.
        keep_ids: copy identifiers of the patient and the study into the segmentations.
        key: secret key, of which a pseudonym of the patient is computed for the segmentations.
        volumes: of a segmenter and a manifest of `dinomed slices`, also write the masks of each volume as NIfTI.
        series: with `volumes` and `dicom_seg`, the DICOM series of the slices.
        overwrite: start again, and remove the files of an earlier prediction in `out` (no others).
        rule: adds a column `abstained` (yes or no): whether the confidence, 1 minus the uncertainty of the contact
            sheet, is below a threshold. The predictions of these images are written too.
        build_sheet: builds the contact sheet, `index.html`; None or a task without a sheet writes none.
        masked: the contact sheet has burned-in text masked, so a task without a sheet is refused.

    Raises:
        UsageError: `out` is in use, is the folder of the images, or holds an `index.html` of another program; or COCO
            results, DICOM segmentations, volumes or masked text are asked of another task or of other images.
    """
    out = Path(out)
    if out.resolve() == manifest.root.resolve():
        raise UsageError(f"output {out} is the folder of the images; give a folder for the results alone")
    names = manifest.column("image")
    task = find_task(predictor.task)
    writer = task.build_writer(predictor, names)
    if masked and not writer.has_sheet:
        raise UsageError(f"`mask_text=True`: a {task.title} writes no contact sheet with pictures; leave it out")
    writer.add_areas(manifest)
    if coco:
        writer.add_coco(manifest, coco_ids)
    if dicom_seg and not volumes:
        writer.add_dicom_seg(manifest, keep_ids, key)
    if volumes:
        options = None if series is None or not dicom_seg else VolumeSegOptions(series, keep_ids, key)
        writer.add_volumes(manifest, options)
    plan = PredictionPlan(_settings(predictor, manifest, writer), (*writer.files, *writer.extra_files))
    if build_sheet is not None:
        check_sheet(out)
    with claimed_folder(out, overwrite=True, marker=PLAN_FILE):  # `begin` decides about an earlier result
        done = begin(out, plan, overwrite=overwrite)
        writer.write_extra_files(out)
        todo = [i for i, name in enumerate(names) if name not in done]
        kept = len(done)
        if kept:
            logger.info(f"{kept} of {len(names)} images are done already")
        failed = list(unreadable)
        with bar("predicting", len(names), kept) as progress:
            for loaded in load_batches(manifest.take(todo), predictor.preprocessing, predictor.batch_size):
                readable = [image for image in loaded if image.pixels is not None]
                failed += [(names[todo[image.index]], image.error.reason) for image in loaded if image.error]
                if readable:
                    indices, sizes = [todo[image.index] for image in readable], [image.size for image in readable]
                    write = partial(_write_rows, predictor, writer, indices, stack_pixels(readable), sizes, out)
                    _, rows, reasons = compute_finite(write, len(readable))
                    add_rows(out, rows or [])
                    done |= {row[0]: row for row in rows or []}
                    failed += [(names[indices[place]], reason) for place, reason in reasons.items()]
                progress.advance(len(loaded))
        rows = [done[name] for name in names if name in done]
        abstained = None if rule is None else _abstained(rule, writer, rows, out)
        write_csv(out / TABLE_FILE, *with_abstained(table_columns(writer), rows, abstained))
        if failed:
            write_csv(out / FAILED_FILE, ["image", "reason"], failed)
        else:
            (out / FAILED_FILE).unlink(missing_ok=True)
        sheet = None
        if build_sheet is not None and (sheet_rows := _sheet_rows(writer, names, done, out)):
            sheet = out / SHEET_FILE
            write_text(sheet, build_sheet(sheet_rows, failed))
        writer.finish(out, [name for name in names if name in done])
        finish(out, plan)
    return PredictionResult(out, len(done), kept, failed, sheet, rule, sum(abstained or ()))


def table_columns(writer: PredictionWriter) -> list[str]:
    """Return the columns of the table of predictions without abstention."""
    return ["image", *writer.columns, *FAMILIARITY_COLUMNS]


def with_abstained(
    columns: Sequence[str], rows: Sequence[Row], abstained: Sequence[bool] | None
) -> tuple[list[str], list[Row]]:
    """Return columns and rows with a column `abstained` before `FAMILIARITY_COLUMNS`; unchanged without values."""
    if abstained is None:
        return list(columns), list(rows)
    place = -len(FAMILIARITY_COLUMNS)
    cells = ["yes" if value else "no" for value in abstained]
    table = [[*row[:place], cell, *row[place:]] for row, cell in zip(rows, cells, strict=True)]
    return [*columns[:place], ABSTAINED_COLUMN, *columns[place:]], table


def _abstained(rule: AbstentionRule, writer: PredictionWriter, rows: Sequence[Row], out: Path) -> list[bool]:
    entries = [writer.sheet_entry(row, out) for row in rows]
    uncertainties = [entry.uncertainty for entry in entries if entry is not None]
    assert len(uncertainties) == len(rows), "an adapter with thresholds of confidence has an uncertainty"
    abstained: list[bool] = rule.abstains(1 - np.array(uncertainties)).tolist()
    return abstained


def _sheet_rows(writer: PredictionWriter, names: Sequence[str], done: Mapping[str, Row], out: Path) -> list[SheetRow]:
    """Return the rows of the contact sheet in the order of the table; none for a task without a sheet."""
    rows: list[SheetRow] = []
    for place, name in enumerate(names):
        if name not in done:
            continue
        row = done[name]
        entry = writer.sheet_entry(row, out)
        if entry is None:
            return []
        unlike, percentile = row[-2:]
        checked = unlike != ""
        rows.append(
            SheetRow(
                place,
                len(rows) + 1,
                entry,
                unlike == "yes" if checked else None,
                float(percentile) if checked else None,
            )
        )
    return rows


def _write_rows(
    predictor: Predictor, writer: PredictionWriter, indices: Sequence[int], pixels: Tensor,
    sizes: Sequence[tuple[int, int]], out: Path, places: list[int],
) -> list[Row]:  # fmt: skip
    """Predict and write the images at some places of a batch; return their rows."""
    batch = pixels[places]
    rows = writer.write_batch([indices[i] for i in places], batch, [sizes[i] for i in places], out)
    checked = predictor.check_batch(batch)
    return [[*row, *familiarity_cells(None if checked is None else [checked[i]])] for i, row in enumerate(rows)]


def familiarity_cells(images: Sequence[Familiarity] | None) -> Row:
    """Return the cells of `FAMILIARITY_COLUMNS` for one image, or for the most unlike of several."""
    if not images:
        return ["", ""]
    worst = max(images, key=lambda image: image.distance)
    return ["yes" if worst.unlike else "no", f"{worst.percentile:.1f}"]


def _settings(predictor: Predictor, manifest: Manifest, writer: PredictionWriter) -> dict[str, object]:
    """Return the settings that decide over the result, for the plan."""
    return {
        "task": predictor.task,
        "classes": list(predictor.classes),
        **writer.settings,
        "adapter": predictor.metadata["weights_sha256"],
        "backbone": predictor.backbone.fingerprint,
        "images": manifest.fingerprint,
    }
