"""HTML page of a search for label errors: the most doubtful images with their labels and what speaks against them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dinomed.adapters.evaluation.label_errors import NEIGHBORS, LabelErrors
from dinomed.burned_in_text.mask import TextMask
from dinomed.datasets.manifest import Manifest
from dinomed.html.album import MIB, Album
from dinomed.html.page import build_page, build_table, heading, next_steps, paragraph, verdict, with_contents

MAX_IMAGES = 200
"""Largest number of suspects with a picture; the table has all."""


def build_label_page(
    errors: LabelErrors, images: Manifest, report: Mapping[str, Any], mask: TextMask | None = None
) -> str:
    """Return the page, with reduced pictures in it.

    Args:
        errors: result of the search.
        images: the searched images.
        report: of the search (`dinomed.apps.api.data.audit.audit_labels`).
        mask: masks burned-in text in the images.
    """
    suspects = np.flatnonzero(errors.suspects)
    rows = [
        ("images with a label", report["images"]), ("suspects: both give another class", len(suspects)),
        ("another class by out-of-fold prediction", report["other_class_by_prediction"]),
        ("another class by neighbours", report["other_class_by_neighbors"]),
        ("not judged: their class is in one fold only", report["not_judged"]),
        ("balanced accuracy of the out-of-fold predictions", report["out_of_fold"]["balanced_accuracy"]),
        ("macro AUROC of the out-of-fold predictions", report["out_of_fold"]["auroc"]),
    ]  # fmt: skip
    parts = [
        paragraph(
            f"Column {report['column']} of {report['data']}. A suspect is a label to look at again, not an error for "
            f"certain. Out-of-fold predictions are by a logistic regression on frozen features ({report['folds']} "
            f"folds by group), neighbours are the {NEIGHBORS} nearest images of other groups."
        ),
        *(paragraph(f"Warning: {text}.") for text in report["warnings"]),
        heading("Numbers"),
        build_table(("", "number"), rows),
        heading(f"Suspects ({len(suspects)})"),
    ]
    result = (
        f"{len(suspects):,} of {report['images']:,} labels are doubtful: out-of-fold prediction and neighbours both "
        "give another class."
    )
    if len(suspects) > MAX_IMAGES:
        parts.append(paragraph(f"The first {MAX_IMAGES} are shown; the table has all."))
    album = Album(64 * MIB, names=True, mask=mask)  # the user needs the names to correct these labels
    for rank in suspects[:MAX_IMAGES]:
        label, other = errors.labels[rank], errors.predicted[rank]
        text = (
            f"label {errors.classes[label]}: probability {errors.probabilities[rank, label]:.2f}, "
            f"{errors.votes[rank, label]:.0%} of the neighbours; predicted {errors.classes[other]}: "
            f"{errors.probabilities[rank, other]:.2f}, {errors.votes[rank, other]:.0%}"
        )
        if not errors.supported[rank]:
            text += ", so no class is suggested"
        parts.append(album.picture(images, int(errors.rows[rank]), text))
    parts += album.note()
    parts.append(heading("Confident joint: labels in rows, classes by prediction in columns"))
    joint = [(name, *map(int, row)) for name, row in zip(errors.classes, errors.joint, strict=True)]
    parts.append(build_table(("label", *errors.classes), joint))
    parts += next_steps(
        [
            ("dinomed scan IMAGES --labels CORRECTED.csv -o MANIFEST", "the manifest with corrected labels"),
            ("dinomed audit MANIFEST --labels COLUMN --backbone RUN -o labels.html", "the search again"),
            (
                "dinomed train classify --backbone RUN --data MANIFEST -o ADAPTER",
                "a classifier on these labels",
            ),
        ],
        "A suspect is to be looked at by a person. Words in capitals stand for your paths.",
    )
    return build_page("Label audit", [verdict(result), *with_contents(parts)])
