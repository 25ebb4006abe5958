"""Settings of near-duplicate detection."""

from pydantic import Field, field_validator

from dinomed.config import Config

NEIGHBORS = 64
BITS = (64, 256)
MIN_MATCHES = 8
"""Matching keypoints from which a pair counts as near-duplicates. No pair of different real lesions reached 7
(docs/curation.md)."""
RULE = ("-labelled", "-area", "-sharpness", "path")
"""Default order of preference among duplicates: labelled images, then the largest, the sharpest, the first path."""


class DuplicatesConfig(Config):
    """Near-duplicates within the pool, and of excluded images in the pool. A threshold of null selects the default of
    the descriptor (`deduplication.thresholds`)."""

    threshold: float | None = Field(None, ge=-1, le=1, description="cosine above which two images are near-duplicates")
    exclude_threshold: float | None = Field(None, ge=-1, le=1, description="the same, for pairs with excluded images")
    check_from: float | None = Field(
        None, ge=-1, le=1, description="cosine above which a pair counts if its keypoints match; null: off"
    )
    min_matches: int = Field(MIN_MATCHES, ge=4, description="keypoints that must match")
    k: int = Field(NEIGHBORS, ge=1, description="neighbours of each image that are compared")
    hash_radius: int | None = Field(
        16, ge=0, lt=BITS[-1], description="differing bits, of the 256 of the perceptual hash; null: off"
    )
    pca_radius: int | None = Field(
        2, ge=0, lt=BITS[0], description="differing bits, of the 64 of the PCA hash; null: off"
    )
    hashes_up_to: int = Field(200_000, ge=1, description="images; with more, only equal hashes are found")
    rule: tuple[str, ...] = Field(
        RULE, description="order in which the kept image of a duplicate group is chosen; query images come first"
    )

    @field_validator("rule")
    @classmethod
    def _known(cls, rule: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in rule if name.removeprefix("-") not in {key.removeprefix("-") for key in RULE}]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is none of {', '.join(RULE)}")
        return rule
