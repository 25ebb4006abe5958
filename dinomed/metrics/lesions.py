"""Detection metrics by lesion: found, missed and false lesions of predicted masks.

A lesion is a connected component of the true mask (8-connected: pixels that touch at corners are connected). It is
found if the prediction covers at least `min_cover` of it. A predicted component that touches no lesion is false. So a
lesion that is predicted in two pieces counts as one found lesion, and two lesions under one predicted component count
as two.

Policy: sensitivity is nan without a true lesion, precision without a found or false lesion. Images without a lesion are
also counted separately, since any predicted component in them is false.
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
    """Lesion counts of one image.

    Attributes:
        found, missed: lesions of the true mask.
        false: predicted components that touch no lesion.
        false_fraction: share of the pixels of the image that are predicted outside all lesions.
    """

    found: int
    missed: int
    false: int
    false_fraction: float

    @property
    def has_lesion(self) -> bool:
        return self.found + self.missed > 0


def count_lesions(target: np.ndarray, prediction: np.ndarray, min_cover: float = MIN_COVER) -> LesionCounts:
    """Count the lesions of two masks (H, W) of 0 and 1.

    Args:
        min_cover: share of the pixels of a lesion that must be predicted, above 0, at most 1.
    """
    assert target.shape == prediction.shape, (target.shape, prediction.shape)
    assert 0 < min_cover <= 1, min_cover
    target, prediction = target.astype(bool), prediction.astype(bool)
    lesions, num_lesions = label(target, _CORNERS)
    pieces, num_pieces = label(prediction, _CORNERS)
    sizes = np.bincount(lesions.ravel(), minlength=num_lesions + 1)[1:]
    covered = np.bincount(lesions[prediction], minlength=num_lesions + 1)[1:]
    num_found = int((covered >= min_cover * sizes).sum())
    touching = np.unique(pieces[target & prediction])
    return LesionCounts(
        num_found, num_lesions - num_found, num_pieces - len(touching), float((prediction & ~target).mean())
    )


def lesion_metrics(counts: Sequence[LesionCounts]) -> dict[str, Any]:
    """Sum the counts over all images.

    Returns:
        `lesions`, `found`, `missed`, `false`; `sensitivity` (found / lesions), `precision` (found / (found + false)),
        `false_per_image`; `clear_images`, the images without a lesion, `clear_with_false`, how many of them have a
        predicted component, and `clear_false_fraction`, the mean share of their pixels that is predicted.
    """
    covered, missed, false = (sum(getattr(image, name) for image in counts) for name in ("found", "missed", "false"))
    clear = [image for image in counts if not image.has_lesion]
    return {
        "lesions": covered + missed,
        "found": covered,
        "missed": missed,
        "false": false,
        "sensitivity": covered / (covered + missed) if covered + missed else float("nan"),
        "precision": covered / (covered + false) if covered + false else float("nan"),
        "false_per_image": false / len(counts) if counts else float("nan"),
        "clear_images": len(clear),
        "clear_with_false": sum(image.false > 0 for image in clear),
        "clear_false_fraction": float(np.mean([image.false_fraction for image in clear])) if clear else float("nan"),
    }
