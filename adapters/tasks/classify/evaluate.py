"""Metrics of a classifier: each image by itself, or one answer for a group."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from torch import Tensor

from dinomed.adapters.evaluation.report import JudgedClasses
from dinomed.adapters.tasks.classify.groups import Groups, check_labels, group_images
from dinomed.adapters.tasks.classify.labels import LabelColumns
from dinomed.adapters.tasks.classify.predict import ClassifyPredictor
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.features.loading import load_batches, stack_pixels
from dinomed.progress import bar

Unit = Literal["image", "group"]


def judge_classifier(
    predictor: ClassifyPredictor, manifest: Manifest, split: str, unit: Unit | None = None
) -> JudgedClasses:
    """The answers to the images of `manifest`, all of which have a label, beside their labels.

    Args:
        unit: group: one answer for all images of a group; by default what the adapter was made for.

    Raises:
        UsageError: groups are asked for and there are none, or their images have different labels; an adapter for
            groups is asked for images.
    """
    answer = predictor.answer
    unit = unit or answer.unit
    if answer.unit == "group" and unit == "image":
        raise UsageError("this adapter answers for groups (unit: group); it cannot be measured image by image")
    columns = LabelColumns(answer.columns, answer.separator)
    if unit == "image":
        units, probabilities = manifest, predict_images(predictor, manifest)
    else:
        groups = groups_for(predictor, manifest)
        check_labels(groups, manifest, answer.columns)
        units, probabilities = groups.first(), predict_groups(predictor, groups)
    targets, names = columns.read_targets(units, list(predictor.classes), split)
    return JudgedClasses(units, units.units(), targets, probabilities, names, answer)


def groups_for(predictor: ClassifyPredictor, manifest: Manifest) -> Groups:
    """The groups of a manifest, with the images that the adapter looks at: its frames, or all whose answers are to be
    averaged."""
    answer = predictor.answer
    if answer.unit == "group":
        return group_images(manifest, answer.frames, fill=answer.pool == "concat")
    return group_images(manifest, max(len(manifest), 1))


def predict_images(predictor: ClassifyPredictor, manifest: Manifest) -> np.ndarray:
    """float (N, K)."""
    rows = []
    with bar("evaluating", len(manifest)) as progress:
        for loaded in load_batches(manifest, predictor.preprocessing, predictor.batch_size):
            rows.append(predictor.probability_rows(stack_pixels(loaded)))
            progress.advance(len(loaded))
    return np.concatenate(rows)


def predict_groups(predictor: ClassifyPredictor, groups: Groups) -> np.ndarray:
    """float (groups, K)."""
    with bar("evaluating", len(groups.manifest)) as progress:

        def pixels() -> Iterator[Tensor]:
            for loaded in load_batches(groups.manifest, predictor.preprocessing, predictor.batch_size):
                yield stack_pixels(loaded)
                progress.advance(len(loaded))

        return predictor.group_rows(pixels(), groups)
