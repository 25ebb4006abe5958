"""What of the clean pool is asked for: by trusted sets (DINOv2, section 3), or evenly where there is none."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dinomed.errors import UsageError, did_you_mean
from dinomed.pretrain.curation import reasons
from dinomed.pretrain.curation.config import CurationConfig
from dinomed.pretrain.curation.decisions import Verdicts
from dinomed.pretrain.curation.deduplication.stage import Vectors
from dinomed.pretrain.curation.output.read import Source
from dinomed.pretrain.curation.pool import Pile, QuerySet
from dinomed.pretrain.curation.runtime.cache import key_of
from dinomed.pretrain.curation.runtime.context import Job
from dinomed.pretrain.curation.search.exact import top_k
from dinomed.pretrain.curation.selection.balanced import balance
from dinomed.pretrain.curation.selection.embedding import Embedder, embed, two_components
from dinomed.pretrain.curation.selection.queries import retrieve_for_sets, settings_of


@dataclass(frozen=True)
class Chosen:
    """What was asked for; arrays of (N,) as in `outcome.ROWS`."""

    source: np.ndarray  # the mode that brought an image in, None for those that are not kept
    retrieved_for: np.ndarray
    cluster: np.ndarray
    unlike: np.ndarray
    points: np.ndarray  # float32 (N, 2)
    sources: list[Source]
    record: dict[str, Any]


def check_sets(pile: Pile, config: CurationConfig) -> None:
    """Raises `UsageError` for settings of a trusted set that is not there, or that make no sense."""
    known = [queries.name for queries in pile.trusted]
    for name in config.retrieval.sets:
        if name not in known:
            raise UsageError(f"retrieval.sets: no trusted set is called {name!r}{did_you_mean(name, known)}")
    for queries in pile.trusted:
        settings_of(config, queries)


def choose(job: Job, verdicts: Verdicts, vectors: Vectors, embedder: Embedder) -> Chosen:
    """Drop what is not asked for."""
    pile, config = job.pile, job.config.retrieval
    trusted = pile.is_trusted
    candidates = np.flatnonzero(verdicts.alive & ~trusted)
    asking = np.flatnonzero(verdicts.alive & trusted)
    rows = np.concatenate([candidates, asking])
    count = len(pile)
    source, retrieved_for = np.full(count, None, object), np.full(count, None, object)
    cluster, unlike = np.full(count, -1, np.int64), np.full(count, np.nan, np.float32)
    source[asking] = "as is"
    for queries in reversed(pile.trusted):
        retrieved_for[np.intersect1d(queries.rows, asking)] = queries.name
    if not len(rows):
        empty = np.full((count, 2), np.nan, np.float32)
        return Chosen(source, retrieved_for, cluster, unlike, empty, [], {"embedding": None})
    x, key, record = embed(job, rows, vectors, embedder)
    slot = np.full(count, -1, np.int64)
    slot[rows] = np.arange(len(rows))
    pool = x[: len(candidates)]
    sources: list[Source] = []
    if config.min_similarity is not None and len(candidates) and len(asking):
        found = job.shelf("retrieve").make(
            "unlike.arrow", key_of("unlike", key),
            lambda: pa.table({"similarity": top_k(pool, np.ascontiguousarray(x[len(candidates) :]), 1,
                                                  memory_gib=job.config.memory_gib)[0][:, 0]}),
        )  # fmt: skip
        job.uses("retrieve", "unlike.arrow")
        unlike[candidates] = found["similarity"].to_numpy()
        verdicts.drop(np.flatnonzero(unlike < np.float32(config.min_similarity)), reasons.UNLIKE)
    still = verdicts.alive[candidates]
    if not len(candidates):
        pass
    elif config.mode == "all":
        source[candidates[still]] = "all"
        sources.append(Source("pool", "all", pile.pool, int(still.sum()), int(still.sum())))
    elif pile.trusted:
        sources = retrieve_for_sets(job, verdicts, candidates, x, slot, key, source, retrieved_for, cluster)
    elif still.any():
        sources = [balance(job, verdicts, candidates, pool, key, source, cluster)]
    as_is = [_as_is(queries, asking, retrieved_for) for queries in pile.trusted]
    return Chosen(source, retrieved_for, cluster, unlike, two_components(x, slot), [*as_is, *sources], record)


def _as_is(queries: QuerySet, asking: np.ndarray, retrieved_for: np.ndarray) -> Source:
    kept = np.equal(retrieved_for[asking], queries.name).sum()
    return Source(queries.name, "as is", len(queries.rows), len(queries.rows), int(kept))
