"""Frames of a video that are unlike the training images or abstained, and the same statement about the whole video."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dinomed.adapters.inference.folder import ABSTAINED_COLUMN, FAMILIARITY_COLUMNS, familiarity_cells
from dinomed.adapters.predictor import Predictor
from dinomed.adapters.training_images import usable_check
from dinomed.adapters.writer import Row
from dinomed.features.familiarity.reference import Familiarity
from dinomed.metrics.uncertainty.abstention import AbstentionRule
from dinomed.video.facts import VideoFrame


class FrameChecks:
    """The checks of the frames of one video.

    A video is unlike the training images, or abstained, if more than half of its checked frames are: a limit that 1 %
    of the frames of a known kind exceed is exceeded by some frame of nearly every long video.

    Args:
        rule: the rule by which frames are abstained; None for none.

    Attributes:
        rule: as given.
        columns: columns of the table: `abstained` with a rule, and those of the comparison with the training images.
    """

    def __init__(self, rule: AbstentionRule | None) -> None:
        self.columns = [*([] if rule is None else [ABSTAINED_COLUMN]), *FAMILIARITY_COLUMNS]
        self.rule = rule
        self._familiarity: list[Familiarity] = []
        self._abstained: list[bool] = []

    def add(self, familiarity: Familiarity | None, confidence: float | None) -> Row:
        """Record a frame with a prediction; return the cells of `columns`.

        Args:
            familiarity: how like the training images the frame is; None if this is not checked.
            confidence: of its prediction, 0 to 1; None without a rule.
        """
        cells: Row = []
        if self.rule is not None:
            assert confidence is not None
            self._abstained.append(bool(self.rule.abstains(np.array([confidence]))[0]))
            cells.append("yes" if self._abstained[-1] else "no")
        if familiarity is not None:
            self._familiarity.append(familiarity)
        return cells + familiarity_cells(None if familiarity is None else [familiarity])

    @property
    def abstained(self) -> int:
        """The number of abstained frames."""
        return sum(self._abstained)

    def summarize(self) -> dict[str, Any]:
        """Return what is said about the whole video, as JSON types; None where nothing is checked."""
        unlike = [checked.unlike for checked in self._familiarity]
        summary: dict[str, Any] = {
            "unlike_training": _most(unlike),
            "frames_unlike_training": sum(unlike) if unlike else None,
            "distance_percentile": round(float(np.median([checked.percentile for checked in self._familiarity])), 1)
            if unlike
            else None,
        }
        if self.rule is None:
            return summary
        threshold = round(self.rule.threshold, 6)
        return summary | {
            "abstained": _most(self._abstained), "frames_abstained": self.abstained, "abstention_threshold": threshold,
        }  # fmt: skip


def _most(values: Sequence[bool]) -> bool | None:
    """Return whether more than half of the values are true; None without values."""
    return 2 * sum(values) > len(values) if values else None


def predict_frames(predictor: Predictor, frames: Sequence[VideoFrame]) -> list[tuple[Any, Familiarity | None]]:
    """Predict frames, and compare them with the training images by the features of the same pass.

    Raises:
        NotFiniteError: the model gives values that are not finite for some frames.
    """
    pixels = [frame.pixels for frame in frames]
    if usable_check(predictor.check)[0] is None:
        return [(result, None) for result in predictor.predict(pixels)]
    results = predictor.predict_checked(pixels)
    predictor.familiarity.clear()  # so that memory does not grow with the video
    return results
