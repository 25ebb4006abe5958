"""The contribution of one set of images to a curated collection."""

from dataclasses import dataclass
from typing import Literal

ContributionMode = Literal["as is", "sample", "cluster", "balanced", "all"]


@dataclass(frozen=True)
class SetContribution:
    """A row of the paper's table (DINOv2, table 15)."""

    name: str  # of the manifest of the set, without folder and suffix
    mode: ContributionMode  # "as is": the query set itself; "balanced", "all": the pool, without a query set
    images: int  # of the set
    retrieved: int  # images of the pool that the set retrieved, before its limit; for "as is" its own images
    kept: int  # images kept because of this set; an image that two sets retrieve counts for the first
