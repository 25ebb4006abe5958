"""Settings of retrieval and balanced sampling."""

from typing import Literal

from pydantic import Field

from dinomed.config import Config

SAMPLE_FROM = 1_000_000
"""Query sets with more images than this retrieve by sample."""


class QuerySetConfig(Config):
    """Retrieval for one query set."""

    mode: Literal["auto", "sample", "cluster"] = Field(
        "auto", description="by sample, by cluster, or by the size of the query set"
    )
    k: int = Field(4, ge=1, description="sample: nearest images of each query (the paper: 4; 32 for ImageNet-1k)")
    threshold: float | None = Field(None, ge=-1, le=1, description="sample: minimum similarity (the paper: none)")
    min_queries: int = Field(3, ge=0, description="cluster: a cluster must hold more than this number of queries")
    per_cluster: int = Field(10_000, ge=1, description="cluster: maximum number of images per cluster")
    limit: int | None = Field(1_000_000, ge=1, description="maximum number of images retrieved for the query set")


class RetrievalConfig(QuerySetConfig):
    """Retrieval for all query sets; `sets` overrides settings of one, by the name of its file without suffix."""

    mode: Literal["auto", "sample", "cluster", "all"] = Field("auto", description="all: keep every clean image")  # type: ignore[assignment]
    sets: dict[str, dict[str, str | int | float | None]] = Field({}, description="name -> settings of this query set")
    sample_from: int = Field(SAMPLE_FROM, ge=0, description="auto: query sets with more images use mode sample")
    clusters: int | None = Field(None, ge=1, description="null: one per 30 images of the pool, at most 100,000")
    iterations: int = Field(20, ge=1, description="iterations of k-means")
    min_similarity: float | None = Field(
        None, ge=-1, le=1, description="drop images less similar than this to every query: non-medical, unsafe"
    )


class BalanceConfig(Config):
    """Hierarchical k-means and balanced sampling, for a pool without a query set."""

    images: int | None = Field(None, ge=1, description="number to keep; null: `share` of the clean images")
    share: float = Field(0.5, gt=0, le=1, description="share of the clean images to keep, if `images` is null")
    levels: tuple[int, ...] | None = Field(
        None, description="number of clusters of each level, descending; null: from the size of the pool"
    )
    resamplings: int = Field(
        10, ge=0, description="repetitions of k-means on the images nearest to each centroid, per level"
    )
