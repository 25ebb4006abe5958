"""By lesion and not by pixel: which lesions of a mask were found, which missed, and what was outlined for nothing.

A lesion is a connected component (pixels that touch, corners included). It is found where the prediction covers at
least `min_cover` of it; a predicted component that touches no lesion at all is false. So a lesion that is outlined in
two pieces is one find, and two lesions under one outline are two.

Policy: without a lesion in the truth there is no sensitivity (nan), and without a predicted component no precision;
images without a lesion are counted by themselves, since any outline on them is a false alarm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import label

MIN_COVER = 0.1
_CORNERS = np.ones((3, 3), bool)


@dataclass(frozen=True)
class LesionCounts:
    """The lesions of one image: `found` + `missed` are in the truth, `false` are predicted where there is none.
    `false_fraction` is the share of the image's pixels that were outlined beside every lesion."""

    found: int
    missed: int
    false: int
    false_fraction: float

    @property
    def has_lesion(self) -> bool:
        return self.found + self.missed > 0


def count_lesions(truth: np.ndarray, prediction: np.ndarray, min_cover: float = MIN_COVER) -> LesionCounts:
    """Compare two masks (H, W) of 0 and 1.

    Args:
        min_cover: the share of a lesion's pixels that has to be predicted, above 0, at most 1.
    """
    assert truth.shape == prediction.shape, (truth.shape, prediction.shape)
    assert 0 < min_cover <= 1, min_cover
    truth, prediction = truth.astype(bool), prediction.astype(bool)
    lesions, num_lesions = label(truth, _CORNERS)
    pieces, num_pieces = label(prediction, _CORNERS)
    sizes = np.bincount(lesions.ravel(), minlength=num_lesions + 1)[1:]
    covered = np.bincount(lesions[prediction], minlength=num_lesions + 1)[1:]
    found = int((covered >= min_cover * sizes).sum())
    touching = np.unique(pieces[truth & prediction])
    return LesionCounts(found, num_lesions - found, num_pieces - len(touching), float((prediction & ~truth).mean()))


def lesion_metrics(counts: Sequence[LesionCounts]) -> dict[str, Any]:
    """Sums over all images.

    Returns:
        `lesions`, `found`, `missed`, `false`; `sensitivity` (found of all lesions), `precision` (found, of found and
        false), `false_per_image`; and of images without a lesion, `clear_images`: `clear_with_false`, how many of them
        have an outline, and `clear_false_fraction`, the mean share of their pixels that is outlined.
    """
    found, missed, false = (sum(getattr(one, name) for one in counts) for name in ("found", "missed", "false"))
    clear = [one for one in counts if not one.has_lesion]
    return {
        "lesions": found + missed,
        "found": found,
        "missed": missed,
        "false": false,
        "sensitivity": found / (found + missed) if found + missed else float("nan"),
        "precision": found / (found + false) if found + false else float("nan"),
        "false_per_image": false / len(counts) if counts else float("nan"),
        "clear_images": len(clear),
        "clear_with_false": sum(one.false > 0 for one in clear),
        "clear_false_fraction": float(np.mean([one.false_fraction for one in clear])) if clear else float("nan"),
    }
