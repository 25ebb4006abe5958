"""Evaluation of classifiers: predictions for images, or for groups, beside the labels."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from torch import Tensor

from dinomed.adapters.evaluated import LIKENESS
from dinomed.adapters.task import Unit
from dinomed.adapters.tasks.classify.evaluated import EvaluatedClasses
from dinomed.adapters.tasks.classify.groups import Groups, group_images, label_groups
from dinomed.adapters.tasks.classify.labels import LabelColumns
from dinomed.adapters.tasks.classify.predict import ClassifyPredictor, ClassRows, EnsembleClassifier
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.features.loading import load_batches, stack_pixels
from dinomed.progress import bar


def evaluate_classifier(
    predictor: ClassifyPredictor, manifest: Manifest, split: str, unit: Unit | None = None
) -> EvaluatedClasses:
    """Predict the images of `manifest`, all of which have a label.

    Args:
        predictor: the classifier.
        manifest: images with labels.
        split: name of the split, for messages.
        unit: image, or group for one prediction for all images of a group; None for the unit of the fit.

    Raises:
        UsageError: `unit` is group and there are no groups, or images of a group have different labels; `unit` is
            image and the adapter was fitted on groups; or no image has a class of the adapter.
    """
    answer = predictor.answer
    unit = unit or answer.unit
    if answer.unit == "group" and unit == "image":
        raise UsageError("this adapter predicts groups (unit: group); it cannot be evaluated on single images")
    columns = LabelColumns(answer.columns, answer.separator)
    columns.check_known(manifest, predictor.classes, split)
    groups = None
    rows: ClassRows | None = None
    if unit == "image":
        units, rows = manifest, predict_images(predictor, manifest)
        probabilities = rows.probabilities
    else:
        groups = groups_for(predictor, manifest)
        units = label_groups(groups, manifest, columns)
        probabilities = predict_groups(predictor, groups)
    targets, names = columns.read_targets(units, list(predictor.classes), split)
    if unit != answer.unit:  # the limit of the sets was chosen for the probabilities of single images
        answer = answer.model_copy(update={"sets": None, "cross": None, "abstention": None})
    evaluated = EvaluatedClasses(units, units.units(), targets, probabilities, names, answer)
    if rows is not None and isinstance(predictor, EnsembleClassifier):
        evaluated = replace(evaluated, confidence=rows.confidence, sets=rows.sets)
    if groups is not None and len(predictor.familiarity) == len(groups.manifest):
        distances = np.array([image.distance for image in predictor.familiarity])
        evaluated.confidences[LIKENESS] = np.array([-distances[list(members)].max() for members in groups.members])
    return evaluated


def groups_for(predictor: ClassifyPredictor, manifest: Manifest) -> Groups:
    """Return the groups of a manifest with the images that are predicted: the frames of an adapter for groups, else all
    images, whose probabilities are averaged."""
    answer = predictor.answer
    if answer.unit == "group":
        return group_images(manifest, answer.frames, fill=answer.pool == "concat")
    return group_images(manifest, max(len(manifest), 1))


def predict_images(predictor: ClassifyPredictor, manifest: Manifest) -> ClassRows:
    """Return the predictions for all images."""
    parts = list[ClassRows]()
    with bar("evaluating", len(manifest)) as progress:
        for part in predictor.batches(manifest, lambda pixels, sizes: predictor.rows(pixels)):
            parts.append(part)
            progress.advance(len(part.confidence))
    sets = [part.sets for part in parts if part.sets is not None]
    return ClassRows(
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate([part.confidence for part in parts]),
        np.concatenate(sets) if sets else None,
    )


def predict_groups(predictor: ClassifyPredictor, groups: Groups) -> np.ndarray:
    """Return the probabilities of all groups, float (groups, K)."""
    with bar("evaluating", len(groups.manifest)) as progress:

        def pixels() -> Iterator[Tensor]:
            for loaded in load_batches(groups.manifest, predictor.preprocessing, predictor.batch_size):
                batch = stack_pixels(loaded)
                yield batch
                predictor.check_batch(batch)  # after its features were computed
                progress.advance(len(loaded))

        return predictor.group_rows(pixels(), groups)
