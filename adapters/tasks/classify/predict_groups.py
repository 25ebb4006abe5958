"""Prediction of groups: one row of probabilities for all images of a lesion, patient or video."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from dinomed.adapters.inference.folder import FAMILIARITY_COLUMNS, familiarity_cells, with_abstained
from dinomed.adapters.inference.plan import (
    FAILED_FILE,
    PLAN_FILE,
    TABLE_FILE,
    PredictionPlan,
    add_rows,
    begin,
    finish,
)
from dinomed.adapters.tasks.classify.evaluate import groups_for
from dinomed.adapters.tasks.classify.groups import Groups
from dinomed.adapters.tasks.classify.predict import ClassifyPredictor
from dinomed.adapters.tasks.classify.writer import SET_COLUMN
from dinomed.adapters.writer import Row
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.tables import write_csv
from dinomed.errors import UsageError
from dinomed.features.familiarity.reference import Familiarity
from dinomed.features.loading import load_batches, stack_pixels
from dinomed.io.output_folder import claimed_folder
from dinomed.log import logger
from dinomed.metrics.uncertainty.abstention import AbstentionRule
from dinomed.progress import bar

IMAGES = 64
"""Rows are saved after every 64 images, together with the rest of the last group."""


@dataclass(frozen=True)
class GroupPredictionResult:
    """The numbers of groups that were predicted in all, by an interrupted call before (`kept`), and abstained.

    `unreadable` are (path, reason) of images that could not be read: the predictions of their groups are without them.
    """

    groups: int
    kept: int
    abstained: int
    unreadable: list[tuple[str, str]]


def predict_group_table(
    predictor: ClassifyPredictor,
    manifest: Manifest,
    out: str | Path,
    *,
    overwrite: bool = False,
    rule: AbstentionRule | None = None,
) -> GroupPredictionResult:
    """Write `predictions.csv` with one row for each group.

    A row holds the name of the group (for an image without a group its path), the number of images, the predicted
    class, the probability of each class, the prediction set of an adapter for groups, and whether an image of the group
    is unlike the training images. An adapter for groups reads its frames of each group; for another the probabilities
    of all images are averaged. After an interruption the same call keeps the finished groups, and the table is the
    same. Files of a folder that could not be read are listed in `unreadable.csv`.

    Args:
        predictor: the classifier.
        manifest: images with groups.
        out: output folder.
        overwrite: replace an earlier prediction in `out`.
        rule: adds a column `abstained` (yes or no): whether the confidence is below a threshold.

    Raises:
        UsageError: the manifest has no groups, or `out` is in use.
        DinomedError: an image cannot be read; the prediction of its group would be another one.
    """
    out = Path(out)
    if out.resolve() == manifest.root.resolve():
        raise UsageError(f"output {out} is the folder of the images; give a folder for the results alone")
    groups = groups_for(predictor, manifest)
    sets = [SET_COLUMN] if predictor.has_group_sets else []
    plan = PredictionPlan(
        {
            "task": predictor.task,
            "unit": "group",
            "classes": list(predictor.classes),
            "adapter": predictor.metadata["weights_sha256"],
            "backbone": predictor.backbone.fingerprint,
            "images": manifest.fingerprint,
        },
        (),
    )
    with claimed_folder(out, overwrite=True, marker=PLAN_FILE):  # `begin` decides about an earlier result
        done = begin(out, plan, overwrite=overwrite)  # by place, because a group may have the name of an image
        parts = list(_parts(groups))
        todo = [places for places in parts if not all(str(place) in done for place in places)]
        kept = len(groups) - sum(map(len, todo))
        if len(groups) == len(groups.manifest):
            logger.info("note: every image is a group of its own; a manifest made by scan with `group` knows others")
        if kept:
            logger.info(f"{kept} of {len(groups)} groups are done already")
        with bar("predicting", len(groups), kept) as progress:
            for places in todo:
                rows = _rows(predictor, groups, places)
                add_rows(out, rows)
                done |= {row[0]: row for row in rows}
                progress.advance(len(places))
        table = [done[str(place)][1:] for place in range(len(groups))]
        columns = ["group", "images", "predicted", *predictor.classes, *sets, *FAMILIARITY_COLUMNS]
        values = np.array([row[3 : 3 + len(predictor.classes)] for row in table], np.float64)
        abstained = None if rule is None else rule.abstains(predictor.answer.confidence(values)).tolist()
        write_csv(out / TABLE_FILE, *with_abstained(columns, table, abstained))
        if manifest.unreadable:
            write_csv(out / FAILED_FILE, ["image", "reason"], manifest.unreadable)
            count = len(manifest.unreadable)
            logger.warning(f"files that cannot be read: {count:,}; the predictions of their groups are without them")
        else:
            (out / FAILED_FILE).unlink(missing_ok=True)
        finish(out, plan)
    return GroupPredictionResult(len(groups), kept, sum(abstained or ()), list(manifest.unreadable))


def _parts(groups: Groups) -> Iterator[list[int]]:
    """Yield the places of groups in parts that are equal in every call: the batch may change the last digit."""
    part: list[int] = []
    images = 0
    for place, members in enumerate(groups.members):
        part.append(place)
        images += len(set(members))
        if images >= IMAGES:
            yield part
            part, images = [], 0
    if part:
        yield part


def _rows(predictor: ClassifyPredictor, groups: Groups, places: Sequence[int]) -> list[Row]:
    part = _take(groups, places)
    images, checked = part.manifest.column("image"), list[Familiarity]()

    def pixels() -> Iterator[Tensor]:
        for loaded in load_batches(part.manifest, predictor.preprocessing, predictor.batch_size):
            batch = stack_pixels(loaded)
            yield batch
            checked.extend(predictor.check_batch(batch) or [])  # after its features were computed

    values_of_groups = predictor.group_rows(pixels(), part)
    return [
        [
            str(place),
            images[members[0]] if name is None else name,
            len(set(members)),
            predictor.predicted(values),
            *(f"{value:.6f}" for value in values),
            *(["|".join(predictor.group_set(values))] if predictor.has_group_sets else []),
            *familiarity_cells([checked[row] for row in members] if checked else None),
        ]
        for place, name, members, values in zip(places, part.names, part.members, values_of_groups, strict=True)
    ]


def _take(groups: Groups, places: Sequence[int]) -> Groups:
    """Return some of the groups, with only their images."""
    used = sorted({row for place in places for row in groups.members[place]})
    new = {row: i for i, row in enumerate(used)}
    return Groups(
        groups.manifest.take(used),
        tuple(tuple(new[row] for row in groups.members[place]) for place in places),
        tuple(groups.names[place] for place in places),
    )
