"""Out-of-fold evaluation: each image predicted by the member that was not trained on it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.adapters.evaluated import EvaluatedUnits
from dinomed.adapters.folds.plan import FoldedImages, fold_name
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.record import AdapterRecord
from dinomed.adapters.task import EnsembleUse, Task
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.log import logger
from dinomed.metrics.bootstrap import LEVEL, RESAMPLES
from dinomed.notice import RESEARCH_USE


@dataclass(frozen=True)
class OutOfFold:
    """The out-of-fold predictions of K members.

    Attributes:
        use: how the ensemble is used; `use.evaluated` are the predictions of all folds, fold by fold.
        by_fold: the predictions of each member for its own val.
    """

    use: EnsembleUse
    by_fold: list[EvaluatedUnits]


def evaluate_out_of_fold(
    task: Task,
    members: Sequence[Path],
    folded: FoldedImages,
    records: Sequence[AdapterRecord],
    load: Callable[..., FrozenBackbone],
    device: str,
) -> OutOfFold:
    """Predict the images of each fold by the member that was not trained on them.

    The epoch, the temperature and the like of a member were chosen on the images of its fold, as for every adapter; the
    metrics are therefore a little too high, and those of a test split are not.

    Args:
        task: the task.
        members: folders of the members.
        folded: the images.
        records: records of the members.
        load: function with the arguments of `load_backbone`.
        device: of the backbone.
    """
    parts = []
    for fold, folder in enumerate(members):
        logger.info(f"{fold_name(fold)}: predicting its images, which it was not trained on")
        predictor = load_adapter(folder, device, load=load)
        predictor.check = None  # the report does not hold it; saves a pass
        parts.append(task.evaluate_units(predictor, folded.part(fold, inside=True), "val"))
    return OutOfFold(task.combine_use(records, parts), parts)


def tabulate(outcome: OutOfFold, task: str) -> dict[str, Any]:
    """Return the report of a cross-validation. It names no image and no group.

    Args:
        outcome: the predictions.
        task: name of the task.

    Returns:
        - `task`, `folds`, `metrics` (over the units of all folds), `bootstrap` (its settings), `left_out`;
        - `intervals`: name of a metric to `value`, `low` and `high` over the units of all folds, resampled over groups;
        - `by_fold`: a row for each fold with its number `fold`, its units `n`, its `groups`, and `values`, name of a
          metric to its value on this fold alone.
    """
    joined, parts = outcome.use.evaluated, outcome.by_fold
    rows = range(len(joined.groups))
    return {
        "purpose": RESEARCH_USE,
        "task": task,
        "folds": len(parts),
        "metrics": joined.metrics(rows),
        "intervals": joined.intervals(rows),
        "bootstrap": {
            "over": "groups" if joined.manifest.has("group") else "images",
            "groups": joined.count_groups(rows),
            "resamples": RESAMPLES,
            "level": LEVEL,
            "seed": 0,
        },
        "by_fold": [
            {
                "fold": place + 1,
                "n": len(part.groups),
                "groups": part.count_groups(range(len(part.groups))),
                "values": values_of(part, joined.headline),
            }
            for place, part in enumerate(parts)
        ],
        "left_out": outcome.use.left_out,
    }


def values_of(evaluated: EvaluatedUnits, names: Sequence[str]) -> dict[str, float]:
    """Return the metrics of the headline over all units."""
    count = len(evaluated.groups)
    values = evaluated.statistic(range(count))(np.ones((1, count)))[0]
    by_name = dict(zip(evaluated.headline, map(float, values), strict=True))
    return {name: by_name[name] for name in names}
