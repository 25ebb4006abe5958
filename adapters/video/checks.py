"""Frames of a video that are unlike the training images or abstained, and the same statement about the whole video."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from dinomed.adapters.inference.folder import ABSTAINED_COLUMN, FAMILIARITY_COLUMNS, familiarity_cells
from dinomed.adapters.writer import Row
from dinomed.features.familiarity.reference import Familiarity
from dinomed.metrics.uncertainty.abstention import AbstentionRule


class FrameChecks:
    """The checks of the frames of one video.

    A video is unlike the training images if half of its checked frames or more are: a limit that 1 % of the frames of a
    known kind exceed is exceeded by some frame of nearly every long video, and dark or blurred frames exceed it by far.
    A video is abstained if the confidence of its answer is below the threshold, or without one the mean of those of its
    frames. The rules were compared with others by benchmarks/features/whole_videos.py.

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
        self._confidences: list[float] = []

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
            self._confidences.append(confidence)
            cells.append("yes" if self._abstained[-1] else "no")
        if familiarity is not None:
            self._familiarity.append(familiarity)
        return cells + familiarity_cells(None if familiarity is None else [familiarity])

    def summarize(self, confidence: Callable[[], float | None]) -> dict[str, Any]:
        """Return what is said about the whole video, as JSON types; None where nothing is checked.

        Args:
            confidence: returns how sure the prediction for the whole video is; None for the mean over its frames. It is
                called with a rule only.
        """
        unlike = [checked.unlike for checked in self._familiarity]
        summary: dict[str, Any] = {
            "unlike_training": 2 * sum(unlike) >= len(unlike) if unlike else None,
            "frames_unlike_training": sum(unlike) if unlike else None,
            "distance_percentile": round(float(np.median([checked.percentile for checked in self._familiarity])), 1)
            if unlike
            else None,
        }
        if self._rule is None:
            return summary
        of_answer = confidence()
        whole = float(np.mean(self._confidences)) if of_answer is None else of_answer
        counts = {} if self.by_frame is None else {"frames_abstained": sum(self._abstained)}
        return summary | {
            "abstained": bool(self._rule.abstains(np.array([whole]))[0]), **counts, "confidence": round(whole, 6),
            "abstention_threshold": round(self._rule.threshold, 6),
        }  # fmt: skip
