"""From which cosine on two images are copies: it depends on what made the descriptor.

The paper's 0.6 and 0.45 are for SSCD. The composed descriptor puts look-alikes nearer together: of 8.0 million pairs of
different dermoscopic lesions 176 are above 0.6, 44 above 0.65, 11 above 0.7 (one of these is a true copy), and 90, 85
and 80% of synthetic copies are. So only pairs above 0.7 count by that alone; below, points of both have to align
(`alignment`), which different lesions' hardly ever do. Towards excluded images both limits are lower: there a false
alarm costs a training image, and a miss the evaluation. Features of a small backbone put look-alikes nearest of all
(8,849 of the 8.0 million above 0.7, the highest at 0.98): there points have to say so in nearly every case.
"""

from dataclasses import dataclass

from dinomed.pretrain.curation.config import DuplicatesConfig
from dinomed.pretrain.curation.deduplication.exclusion import RELATIVE_THRESHOLD, SELF_THRESHOLD


@dataclass(frozen=True)
class Thresholds:
    """Cosines in [-1, 1]. A pair is a copy above `sure`, or above `check` if points align; None: no pair is checked."""

    sure: float
    check: float | None

    @property
    def least(self) -> float:
        """What a search has to find."""
        return self.sure if self.check is None else min(self.sure, self.check)


WITHIN = {
    "composed": Thresholds(0.7, 0.55),
    "backbone": Thresholds(0.98, 0.7),
    "sscd": Thresholds(SELF_THRESHOLD, None),
}
"""Within the pile, by the kind of source."""
EXCLUDED = {
    "composed": Thresholds(0.65, 0.5),
    "backbone": Thresholds(0.95, 0.6),
    "sscd": Thresholds(RELATIVE_THRESHOLD, None),
}
"""Towards excluded images, and among the images of the pile that hang together with them."""


def choose_thresholds(config: DuplicatesConfig, kind: str) -> tuple[Thresholds, Thresholds]:
    """(within the pile, towards excluded images). A threshold that is given is meant alone: no pair is checked."""
    chosen = []
    for default, given in ((WITHIN[kind], config.threshold), (EXCLUDED[kind], config.exclude_threshold)):
        sure = default.sure if given is None else given
        check = config.check_from if config.check_from is not None or given is not None else default.check
        chosen.append(Thresholds(sure, check))
    return chosen[0], chosen[1]
