"""An even sample of the clean pool, where no trusted set asks (arXiv 2405.15613, section 3)."""

import numpy as np
import pyarrow as pa

from dinomed.errors import UsageError
from dinomed.pretrain.curation.decisions import NOT_SAMPLED, Decisions
from dinomed.pretrain.curation.runtime.cache import stage_key
from dinomed.pretrain.curation.runtime.context import CurationContext
from dinomed.pretrain.curation.selection.config import BalanceConfig
from dinomed.pretrain.curation.selection.contribution import SetContribution
from dinomed.pretrain.curation.selection.hierarchical_kmeans import balanced_sample, hierarchical_kmeans


def balance(
    context: CurationContext, decisions: Decisions, config: BalanceConfig, iterations: int, candidates: np.ndarray,
    candidate_vectors: np.ndarray, key: str, source: np.ndarray, cluster: np.ndarray,
) -> SetContribution:  # fmt: skip
    """Keep an even sample of `candidates` (c,) by their vectors (c, D). Fills `source` and `cluster`.

    Raises:
        UsageError: more clusters are asked for than images are left.
    """
    count = len(candidates)
    levels = list(config.levels or _levels(count))
    if levels[0] > count:
        raise UsageError(
            f"balance.levels {levels}: the first has more clusters than the {count:,} images that are left"
        )
    wanted = config.images or max(round(config.share * count), 1)
    if wanted > count:
        context.warn_clipped("balance.images", wanted, count)
    own = stage_key(
        "balance", key, levels, wanted, config.resamplings, iterations, context.seed,
        context.memory_gib,
    )  # fmt: skip

    def compute() -> pa.Table:
        hierarchy = hierarchical_kmeans(
            candidate_vectors, levels, resamplings=config.resamplings, iterations=iterations,
            seed=context.seed, memory_gib=context.memory_gib,
        )  # fmt: skip
        taken = np.zeros(count, bool)
        taken[balanced_sample(hierarchy, wanted, seed=context.seed)] = True
        return pa.table({"cluster": hierarchy.labels(0), "taken": taken})

    cache = context.cache("retrieve", "balanced.arrow")
    with context.timed("balance", count):
        table = cache.compute_table("balanced.arrow", own, compute)
    taken = np.asarray(table["taken"].to_numpy(zero_copy_only=False), bool)
    cluster[candidates] = table["cluster"].to_numpy()
    source[candidates[taken]] = "balanced"
    decisions.drop(candidates[~taken], NOT_SAMPLED)
    return SetContribution("pool", "balanced", context.pool.pool_size, int(taken.sum()), int(taken.sum()))


def _levels(count: int) -> list[int]:
    """About the ratios of the paper (74, 20, 5 and 5), as far as a pool is large enough; at least one level."""
    found = [count // each for each in (20, 200, 1000) if count // each >= 2]
    return sorted(set(found), reverse=True) or [1]
