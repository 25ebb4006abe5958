"""Cosine thresholds above which two images count as near-duplicates, for each kind of descriptor.

The 0.6 and 0.45 of the DINOv2 paper are for SSCD. The composed descriptor gives similar images a higher cosine: of 8.0
million pairs of different dermoscopic lesions, 176 are above 0.6, 44 above 0.65 and 11 above 0.7 (one of these is a
true copy), as are 90, 85 and 80% of synthetic copies. So a pair counts by its cosine alone only above 0.7. Below that,
keypoints of both images have to match (`keypoints`), which hardly ever happens for different lesions. Both limits are
lower for excluded images: a false alarm costs one training image there, a miss costs the evaluation. The features of a
small backbone give similar images the highest cosines (8,849 of the 8.0 million pairs are above 0.7, the highest is
0.98), so nearly all of its pairs have to be verified by keypoints.
"""

from dataclasses import dataclass

from dinomed.pretrain.curation.deduplication.config import DuplicatesConfig
from dinomed.pretrain.curation.deduplication.exclusion import RELATIVE_THRESHOLD, SELF_THRESHOLD


@dataclass(frozen=True)
class Thresholds:
    """Cosines in [-1, 1]. A pair is a near-duplicate above `sure`, and above `check` if its keypoints match.

    With `check` None, no pair is verified by keypoints.
    """

    sure: float
    check: float | None

    @property
    def lowest(self) -> float:
        """The threshold of the search."""
        return self.sure if self.check is None else min(self.sure, self.check)


WITHIN = {
    "composed": Thresholds(0.7, 0.55),
    "backbone": Thresholds(0.98, 0.7),
    "sscd": Thresholds(SELF_THRESHOLD, None),
}
"""Thresholds within the pool, by kind of descriptor source."""
EXCLUDED = {
    "composed": Thresholds(0.65, 0.5),
    "backbone": Thresholds(0.95, 0.6),
    "sscd": Thresholds(RELATIVE_THRESHOLD, None),
}
"""Thresholds between the pool and the excluded images, and within the pool for images connected to excluded ones."""


def choose_thresholds(config: DuplicatesConfig, kind: str) -> tuple[Thresholds, Thresholds]:
    """Return the thresholds within the pool, and those for excluded images.

    If the config sets a threshold and no `check_from`, no pair is verified by keypoints.
    """
    thresholds = []
    for default, configured in ((WITHIN[kind], config.threshold), (EXCLUDED[kind], config.exclude_threshold)):
        sure = default.sure if configured is None else configured
        use_config = config.check_from is not None or configured is not None
        thresholds.append(Thresholds(sure, config.check_from if use_config else default.check))
    return thresholds[0], thresholds[1]
