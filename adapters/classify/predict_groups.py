"""Predicting groups: one row of probabilities for all images of a lesion, patient or video."""

from pathlib import Path

import numpy as np

from dinomed.adapters.classify.evaluate import groups_for, predict_groups
from dinomed.adapters.classify.predict import ClassifyPredictor
from dinomed.adapters.folders.plan import PLAN_FILE, TABLE_FILE, Plan, begin, finish
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.tables import write_csv
from dinomed.errors import UsageError
from dinomed.files import locked, prepare_output


def predict_group_table(
    predictor: ClassifyPredictor, manifest: Manifest, out: str | Path, *, overwrite: bool = False
) -> int:
    """Write `predictions.csv` with a row a group: its name (of an image without a group, the image's), how many images
    were looked at, the answer, and the probability of each class. Gives the number of groups.

    An adapter for groups looks at its frames of each; one for images has its probabilities averaged over all.

    Raises:
        UsageError: the manifest has no groups, or `out` is in use.
        DinomedError: an image cannot be read: a group without one of its images would be another group.
    """
    out = Path(out)
    if out.resolve() == manifest.root.resolve():
        raise UsageError(f"output {out} is the folder of the images; give a folder for the results alone")
    groups = groups_for(predictor, manifest)
    plan = Plan(
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
    prepare_output(out, overwrite=True, marker=PLAN_FILE)  # an earlier result: `begin` decides
    with locked(out):
        begin(out, plan, overwrite=overwrite)
        rows = predict_groups(predictor, groups)
        images = groups.manifest.column("image")
        names = [
            images[members[0]] if name is None else name
            for name, members in zip(groups.names, groups.members, strict=True)
        ]
        write_csv(
            out / TABLE_FILE,
            ["group", "images", "predicted", *predictor.classes],
            [
                [name, len(set(members)), predictor.predicted(values), *(f"{value:.6f}" for value in values)]
                for name, members, values in zip(names, groups.members, np.asarray(rows), strict=True)
            ],
        )
        finish(out, plan)
    return len(groups)
