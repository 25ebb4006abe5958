"""An even sample of the clean pool, where no trusted set asks (arXiv 2405.15613, section 3)."""

import numpy as np
import pyarrow as pa

from dinomed.errors import UsageError
from dinomed.pretrain.curation import reasons
from dinomed.pretrain.curation.decisions import Verdicts
from dinomed.pretrain.curation.output.read import Source
from dinomed.pretrain.curation.runtime.cache import key_of
from dinomed.pretrain.curation.runtime.context import Job
from dinomed.pretrain.curation.selection.hierarchical_kmeans import balanced_sample, hierarchical_kmeans


def balance(
    job: Job, verdicts: Verdicts, candidates: np.ndarray, pool: np.ndarray, key: str, source: np.ndarray,
    cluster: np.ndarray,
) -> Source:  # fmt: skip
    """Keep an even sample of `pool` (c, D), the vectors of `candidates` (c,). Fills `source` and `cluster`.

    Raises:
        UsageError: more clusters are asked for than images are left.
    """
    config, shelf = job.config.balance, job.shelf("retrieve")
    count = len(candidates)
    levels = list(config.levels or _levels(count))
    if levels[0] > count:
        raise UsageError(
            f"balance.levels {levels}: the first has more clusters than the {count:,} images that are left"
        )
    wanted = config.images or max(round(config.share * count), 1)
    if wanted > count:
        job.say_fewer("balance.images", wanted, count)
    own = key_of(
        "balance", key, levels, wanted, config.resamplings, job.config.retrieval.iterations, job.config.seed,
        job.config.memory_gib,
    )  # fmt: skip

    def compute() -> pa.Table:
        hierarchy = hierarchical_kmeans(
            pool, levels, resamplings=config.resamplings, iterations=job.config.retrieval.iterations,
            seed=job.config.seed, memory_gib=job.config.memory_gib,
        )  # fmt: skip
        taken = np.zeros(count, bool)
        taken[balanced_sample(hierarchy, wanted, seed=job.config.seed)] = True
        return pa.table({"cluster": hierarchy.labels(0), "taken": taken})

    job.uses("retrieve", "balanced.arrow")
    with job.timed("balance", count):
        table = shelf.make("balanced.arrow", own, compute)
    taken = np.asarray(table["taken"].to_numpy(zero_copy_only=False), bool)
    cluster[candidates] = table["cluster"].to_numpy()
    source[candidates[taken]] = "balanced"
    verdicts.drop(candidates[~taken], reasons.NOT_SAMPLED)
    return Source("pool", "balanced", job.pile.pool, int(taken.sum()), int(taken.sum()))


def _levels(count: int) -> list[int]:
    """About the ratios of the paper (74, 20, 5 and 5), as far as a pile is large enough; at least one level."""
    found = [count // each for each in (20, 200, 1000) if count // each >= 2]
    return sorted(set(found), reverse=True) or [1]
