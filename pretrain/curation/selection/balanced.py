"""Balanced sample of a pool without a query set (arXiv 2405.15613, section 3)."""

import numpy as np
import pyarrow as pa

from dinomed.errors import UsageError
from dinomed.log import logger
from dinomed.pretrain.curation.decisions import NOT_SAMPLED, Decisions
from dinomed.pretrain.curation.runtime.cache import stage_key
from dinomed.pretrain.curation.runtime.context import CurationContext
from dinomed.pretrain.curation.selection.config import BalanceConfig
from dinomed.pretrain.curation.selection.contribution import SetContribution
from dinomed.pretrain.curation.selection.embedding import Embeddings
from dinomed.pretrain.curation.selection.hierarchical_kmeans import balanced_sample, hierarchical_kmeans
from dinomed.pretrain.curation.selection.selection import CACHE_STAGE, Selection


def sample_balanced(
    context: CurationContext, decisions: Decisions, config: BalanceConfig, iterations: int, embeddings: Embeddings,
    selection: Selection,
) -> SetContribution:  # fmt: skip
    """Keep a balanced sample of the candidates, and drop the others.

    `selection` receives the source and the cluster of the candidates.

    Args:
        iterations: of each k-means.

    Raises:
        UsageError: the first level has more clusters than there are candidates.
    """
    candidates = embeddings.candidates
    count = len(candidates)
    levels = list(config.levels or _default_levels(count))
    if levels[0] > count:
        raise UsageError(
            f"balance.levels is {levels}, and {count:,} images are left; the first level needs at most as many clusters"
        )
    num_images = config.images or max(round(config.share * count), 1)
    if num_images > count:
        context.warn_clipped("balance.images", num_images, count)
    key = stage_key(
        "balance", embeddings.key, levels, num_images, config.resamplings, iterations, context.seed, context.memory_gib
    )

    def compute() -> pa.Table:
        hierarchy = hierarchical_kmeans(
            embeddings.candidate_vectors, levels, resamplings=config.resamplings, iterations=iterations,
            seed=context.seed, memory_gib=context.memory_gib,
        )  # fmt: skip
        is_sampled = np.zeros(count, bool)
        is_sampled[balanced_sample(hierarchy, num_images, seed=context.seed)] = True
        return pa.table({"cluster": hierarchy.labels(0), "sampled": is_sampled})

    name = "balanced.arrow"
    with context.timed("balance", count):
        table = context.cache(CACHE_STAGE, name).compute_table(name, key, compute)
    is_sampled = np.asarray(table["sampled"].to_numpy(zero_copy_only=False), bool)
    selection.cluster[candidates] = table["cluster"].to_numpy()
    selection.source[candidates[is_sampled]] = "balanced"
    decisions.drop(candidates[~is_sampled], NOT_SAMPLED)
    num_sampled = int(is_sampled.sum())
    if num_sampled < count:
        logger.info(
            f"{count - num_sampled:,} images are left out for balance; `settings=['retrieval.mode=all']` keeps all"
        )
    return SetContribution("pool", "balanced", context.pool.pool_size, num_sampled, num_sampled)


def _default_levels(count: int) -> list[int]:
    """Return about the ratios of the paper (74, 20, 5 and 5), as far as the pool is large enough; at least one
    level."""
    levels = [count // images_per_cluster for images_per_cluster in (20, 200, 1000)]
    return sorted({level for level in levels if level >= 2}, reverse=True) or [1]
