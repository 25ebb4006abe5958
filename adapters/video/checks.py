"""Frames of a video that are unlike the training images or abstained, and the same statement about the whole video."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from dinomed.adapters.inference.folder import ABSTAINED_COLUMN, FAMILIARITY_COLUMNS, familiarity_cells
from dinomed.adapters.writer import Row
from dinomed.features.familiarity.reference import Familiarity
from dinomed.metrics.uncertainty.abstention import AbstentionRule


class FrameChecks:
    """The checks of the frames of one video.

    A video is unlike the training images, or abstained, if more than half of its checked frames are: a limit that 1 %
    of the frames of a known kind exceed is exceeded by some frame of nearly every long video.

    Args:
        rule: the rule of abstention; None for none.
        by: whether the rule is for each frame, or for the whole video.

    Attributes:
        by_frame: the rule by which frames are abstained; None for none.
        columns: columns of the table: `abstained` with a rule for frames, and those of the comparison with the training
            images.
    """

    def __init__(self, rule: AbstentionRule | None, by: Literal["frame", "video"] = "frame") -> None:
        self._rule = rule
        self.by_frame = rule if by == "frame" else None
        self.columns = [*([] if self.by_frame is None else [ABSTAINED_COLUMN]), *FAMILIARITY_COLUMNS]
        self._familiarity: list[Familiarity] = []
        self._abstained: list[bool] = []

    def add(self, familiarity: Familiarity | None, confidence: float | None) -> Row:
        """Record a frame with a prediction; return the cells of `columns`.

        Args:
            familiarity: how like the training images the frame is; None if this is not checked.
            confidence: of its prediction, 0 to 1; None without a rule for frames.
        """
        cells: Row = []
        if self.by_frame is not None:
            assert confidence is not None
            self._abstained.append(bool(self.by_frame.abstains(np.array([confidence]))[0]))
            cells.append("yes" if self._abstained[-1] else "no")
        if familiarity is not None:
            self._familiarity.append(familiarity)
        return cells + familiarity_cells(None if familiarity is None else [familiarity])

    @property
    def abstained(self) -> int:
        """The number of abstained frames."""
        return sum(self._abstained)

    def summarize(self, confidence: Callable[[], float]) -> dict[str, Any]:
        """Return what is said about the whole video, as JSON types; None where nothing is checked.

        Args:
            confidence: returns how sure the prediction for the whole video is, for a rule for whole videos.
        """
        unlike = [checked.unlike for checked in self._familiarity]
        summary: dict[str, Any] = {
            "unlike_training": _most(unlike),
            "frames_unlike_training": sum(unlike) if unlike else None,
            "distance_percentile": round(float(np.median([checked.percentile for checked in self._familiarity])), 1)
            if unlike
            else None,
        }
        if self._rule is None:
            return summary
        threshold = round(self._rule.threshold, 6)
        if self.by_frame is None:
            abstained = bool(self._rule.abstains(np.array([confidence()]))[0])
            return summary | {"abstained": abstained, "abstention_threshold": threshold}
        return summary | {
            "abstained": _most(self._abstained), "frames_abstained": self.abstained, "abstention_threshold": threshold,
        }  # fmt: skip


def _most(values: Sequence[bool]) -> bool | None:
    """Return whether more than half of the values are true; None without values."""
    return 2 * sum(values) > len(values) if values else None
