"""What of the clean pool is asked for: by trusted sets (DINOv2, section 3), or evenly where there is none."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dinomed.errors import UsageError, did_you_mean
from dinomed.pretrain.curation.decisions import UNLIKE, Decisions
from dinomed.pretrain.curation.descriptors.stage import Vectors
from dinomed.pretrain.curation.pool import Pool, QuerySet
from dinomed.pretrain.curation.runtime.cache import stage_key
from dinomed.pretrain.curation.runtime.context import CurationContext
from dinomed.pretrain.curation.search.config import SearchConfig
from dinomed.pretrain.curation.search.exact import top_k
from dinomed.pretrain.curation.selection.balanced import balance
from dinomed.pretrain.curation.selection.config import BalanceConfig, RetrievalConfig
from dinomed.pretrain.curation.selection.contribution import SetContribution
from dinomed.pretrain.curation.selection.embedding import Embedder, embed, two_components
from dinomed.pretrain.curation.selection.queries import retrieve_for_sets, settings_of


@dataclass(frozen=True)
class Chosen:
    """What was asked for; arrays of (N,) as in `output.read.ROWS`."""

    source: np.ndarray  # the mode that brought an image in, None for those that are not kept
    retrieved_for: np.ndarray
    cluster: np.ndarray
    unlike: np.ndarray
    points: np.ndarray  # float32 (N, 2)
    sources: list[SetContribution]
    record: dict[str, Any]


def check_sets(pool: Pool, config: RetrievalConfig) -> None:
    """Raises `UsageError` for settings of a trusted set that is not there, or that make no sense."""
    known = [queries.name for queries in pool.query_sets]
    for name in config.sets:
        if name not in known:
            raise UsageError(f"retrieval.sets: no trusted set is called {name!r}{did_you_mean(name, known)}")
    for queries in pool.query_sets:
        settings_of(config, queries)


def choose(
    context: CurationContext, decisions: Decisions, vectors: Vectors, embedder: Embedder, config: RetrievalConfig,
    balance_config: BalanceConfig, search: SearchConfig,
) -> Chosen:  # fmt: skip
    """Drop what is not asked for."""
    pool = context.pool
    trusted = pool.is_query
    candidates = np.flatnonzero(decisions.kept & ~trusted)
    asking = np.flatnonzero(decisions.kept & trusted)
    rows = np.concatenate([candidates, asking])
    count = len(pool)
    source, retrieved_for = np.full(count, None, object), np.full(count, None, object)
    cluster, unlike = np.full(count, -1, np.int64), np.full(count, np.nan, np.float32)
    source[asking] = "as is"
    for queries in reversed(pool.query_sets):
        retrieved_for[np.intersect1d(queries.rows, asking)] = queries.name
    if not len(rows):
        empty = np.full((count, 2), np.nan, np.float32)
        return Chosen(source, retrieved_for, cluster, unlike, empty, [], {"embedding": None})
    x, key, record = embed(context, rows, vectors, embedder)
    slot = np.full(count, -1, np.int64)
    slot[rows] = np.arange(len(rows))
    candidate_vectors = x[: len(candidates)]
    sources: list[SetContribution] = []
    if config.min_similarity is not None and len(candidates) and len(asking):
        found = context.cache("retrieve", "unlike.arrow").compute_table(
            "unlike.arrow", stage_key("unlike", key),
            lambda: pa.table({"similarity": top_k(candidate_vectors, np.ascontiguousarray(x[len(candidates) :]), 1,
                                                  memory_gib=context.memory_gib)[0][:, 0]}),
        )  # fmt: skip
        unlike[candidates] = found["similarity"].to_numpy()
        decisions.drop(np.flatnonzero(unlike < np.float32(config.min_similarity)), UNLIKE)
    still = decisions.kept[candidates]
    if not len(candidates):
        pass
    elif config.mode == "all":
        source[candidates[still]] = "all"
        sources.append(SetContribution("pool", "all", pool.pool_size, int(still.sum()), int(still.sum())))
    elif pool.query_sets:
        sources = retrieve_for_sets(
            context, decisions, config, search, candidates, x, slot, key, source, retrieved_for, cluster
        )
    elif still.any():
        sources = [
            balance(
                context,
                decisions,
                balance_config,
                config.iterations,
                candidates,
                candidate_vectors,
                key,
                source,
                cluster,
            )
        ]
    as_is = [_as_is(queries, asking, retrieved_for) for queries in pool.query_sets]
    return Chosen(source, retrieved_for, cluster, unlike, two_components(x, slot), [*as_is, *sources], record)


def _as_is(queries: QuerySet, asking: np.ndarray, retrieved_for: np.ndarray) -> SetContribution:
    kept = np.equal(retrieved_for[asking], queries.name).sum()
    return SetContribution(queries.name, "as is", len(queries.rows), len(queries.rows), int(kept))
