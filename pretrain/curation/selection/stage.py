"""Selection stage: images that the query sets retrieve (DINOv2, section 3), or a balanced sample without query sets."""

import numpy as np
import pyarrow as pa

from dinomed.errors import UsageError, did_you_mean
from dinomed.pretrain.curation.decisions import UNLIKE, Decisions
from dinomed.pretrain.curation.descriptors.stage import Vectors
from dinomed.pretrain.curation.pool import Pool
from dinomed.pretrain.curation.runtime.cache import stage_key
from dinomed.pretrain.curation.runtime.context import CurationContext
from dinomed.pretrain.curation.search.config import SearchConfig
from dinomed.pretrain.curation.search.exact import top_k
from dinomed.pretrain.curation.selection.balanced import sample_balanced
from dinomed.pretrain.curation.selection.config import BalanceConfig, RetrievalConfig
from dinomed.pretrain.curation.selection.contribution import SetContribution
from dinomed.pretrain.curation.selection.embedding import Embedder, Embeddings, embed_images, two_components
from dinomed.pretrain.curation.selection.queries import query_set_settings, retrieve_for_query_sets
from dinomed.pretrain.curation.selection.selection import CACHE_STAGE, Selection


def check_query_sets(pool: Pool, config: RetrievalConfig) -> None:
    """Raise `UsageError` for settings of an unknown query set, or for wrong settings of a query set."""
    names = [query_set.name for query_set in pool.query_sets]
    for name in config.sets:
        if name not in names:
            raise UsageError(f"retrieval.sets: no query set is called {name!r}{did_you_mean(name, names)}")
    for query_set in pool.query_sets:
        query_set_settings(config, query_set)


def select_images(
    context: CurationContext, decisions: Decisions, vectors: Vectors, embedder: Embedder, config: RetrievalConfig,
    balance: BalanceConfig, search: SearchConfig,
) -> Selection:  # fmt: skip
    """Select images of the pool, and drop the others from `decisions`. Query images are always kept.

    Args:
        vectors: descriptors, for an `embedder` without a backbone.
        config: of retrieval; balance: of sampling without a query set; search: of the similarity search.
    """
    pool = context.pool
    candidates = np.flatnonzero(decisions.kept & ~pool.is_query)
    queries = np.flatnonzero(decisions.kept & pool.is_query)
    rows = np.concatenate([candidates, queries])
    selection = Selection.of(pool, queries)
    if not len(rows):
        selection.contributions.clear()
        return selection
    embeddings, selection.record = embed_images(context, rows, len(candidates), vectors, embedder)
    selection.points = two_components(embeddings.x, embeddings.slot)
    if config.min_similarity is not None and len(candidates) and len(queries):
        _drop_unlike(context, decisions, embeddings, config.min_similarity, selection)
    if not len(candidates):
        contributions = []
    elif config.mode == "all":
        kept = candidates[decisions.kept[candidates]]
        selection.source[kept] = "all"
        contributions = [SetContribution("pool", "all", pool.pool_size, len(kept), len(kept))]
    elif pool.query_sets:
        contributions = retrieve_for_query_sets(context, decisions, config, search, embeddings, selection)
    elif decisions.kept[candidates].any():
        contributions = [sample_balanced(context, decisions, balance, config.iterations, embeddings, selection)]
    else:
        contributions = []
    selection.contributions += contributions
    return selection


def _drop_unlike(
    context: CurationContext, decisions: Decisions, embeddings: Embeddings, min_similarity: float, selection: Selection
) -> None:
    """Drop candidates whose most similar query image is less similar than `min_similarity`."""

    def compute() -> pa.Table:
        queries = np.ascontiguousarray(embeddings.x[len(embeddings.candidates) :])
        similarity, _ = top_k(embeddings.candidate_vectors, queries, 1, memory_gib=context.memory_gib)
        return pa.table({"similarity": similarity[:, 0]})

    name = "unlike.arrow"
    table = context.cache(CACHE_STAGE, name).compute_table(name, stage_key("unlike", embeddings.key), compute)
    selection.unlike[embeddings.candidates] = table["similarity"].to_numpy()
    decisions.drop(np.flatnonzero(selection.unlike < np.float32(min_similarity)), UNLIKE)
