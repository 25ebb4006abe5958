"""Settings of the similarity search."""

from pydantic import Field

from dinomed.config import Config

EXACT_UP_TO = 1_000_000
"""Number of vectors up to which the exact search is faster (about 20 minutes of one processor)."""


class SearchConfig(Config):
    """Exact search up to a number of vectors, then an inverted file (IVF) with a measured recall."""

    exact_up_to: int = Field(EXACT_UP_TO, ge=1, description="number of vectors up to which the search is exact")
    recall: float = Field(0.95, gt=0, le=1, description="share of the true neighbours that IVF search must find")
    products_each: int = Field(20_000_000_000, ge=1, description="pairs that one part of the search compares")
