"""What trusted sets ask for out of the clean pool (DINOv2, section 3): nearest images, or whole clusters."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from dinomed.config import build_config
from dinomed.io.files import to_json
from dinomed.pretrain.curation.decisions import NOT_RETRIEVED, Decisions, is_none
from dinomed.pretrain.curation.pool import QuerySet
from dinomed.pretrain.curation.runtime.cache import column_to_vectors, stage_key, vectors_to_column
from dinomed.pretrain.curation.runtime.context import CurationContext
from dinomed.pretrain.curation.search.config import SearchConfig
from dinomed.pretrain.curation.search.ivf import MeasuredRecall, build_ivf, tune_probes
from dinomed.pretrain.curation.selection.config import QuerySetConfig, RetrievalConfig
from dinomed.pretrain.curation.selection.contribution import SetContribution
from dinomed.pretrain.curation.selection.kmeans import Clusters, kmeans
from dinomed.pretrain.curation.selection.retrieval import (
    Mode,
    RetrievedImages,
    choose_mode,
    retrieve_clusters,
    retrieve_samples,
)


def retrieve_for_sets(
    context: CurationContext, decisions: Decisions, config: RetrievalConfig, search: SearchConfig,
    candidates: np.ndarray, x: np.ndarray, slot: np.ndarray, key: str,
    source: np.ndarray, retrieved_for: np.ndarray, cluster: np.ndarray,
) -> list[SetContribution]:  # fmt: skip
    """Each trusted set in turn takes from the pool; the rest is dropped. Fills `source`, `retrieved_for`, `cluster`.

    Args:
        candidates: (c,) rows of the clean pool.
        x: (n, D) unit vectors, those of `candidates` first; `slot` (N,) says which is an image's, -1 for none.
        key: over all that `x` depends on.
    """
    candidate_vectors = x[: len(candidates)]
    found_by: list[SetContribution] = []
    clusters: Clusters | None = None
    for number, queries in enumerate(context.pool.query_sets):
        own = queries.rows[decisions.kept[queries.rows]]
        if not len(own):
            context.warn(f"{queries.name}: all of its images are excluded, and it asks for nothing")
            continue
        settings, mode = settings_of(config, queries)
        if mode == "sample" and settings.k > len(
            candidate_vectors
        ):  # said here: what is found again has the same notes
            context.warn_clipped("retrieval.k", settings.k, len(candidate_vectors))
        vectors = np.ascontiguousarray(x[slot[own]])
        name = f"{number:02d}.arrow"
        step_key = stage_key("retrieve", key, slot[own].tolist(), mode, settings.model_dump(), context.seed)
        if mode == "cluster":
            clusters = clusters or _clusters(context, config, candidate_vectors, key)
            step_key = stage_key(step_key, len(clusters.centroids), config.iterations)
            cluster[candidates] = clusters.assignment

        def compute(
            vectors: np.ndarray = vectors, settings: QuerySetConfig = settings, clusters: Clusters | None = clusters,
            mode: Mode = mode,
        ) -> pa.Table:  # fmt: skip
            if mode == "cluster":
                assert clusters is not None
                found = retrieve_clusters(
                    vectors, candidate_vectors, clusters, min_queries=settings.min_queries,
                    per_cluster=settings.per_cluster, limit=settings.limit, seed=context.seed,
                )  # fmt: skip
                measured = None
            else:
                found, measured = _sample(context, search, vectors, candidate_vectors, settings)
            table = pa.table({"row": found.row, "similarity": found.similarity})
            note = {"before_limit": found.before_limit, "measured": measured and asdict(measured)}
            return table.replace_schema_metadata({"note": to_json(note)})

        with context.timed("retrieve", len(own)):
            table = context.cache("retrieve", name).compute_table(name, step_key, compute)
        rows = candidates[table["row"].to_numpy()]
        new = rows[decisions.kept[rows] & is_none(source[rows])]
        source[new], retrieved_for[new] = mode, queries.name
        note = json.loads(table.schema.metadata[b"note"])
        found_by.append(SetContribution(queries.name, mode, len(own), note["before_limit"], len(new)))
        if note["measured"]:
            context.searches.append({"search": f"retrieval for {queries.name}", **note["measured"]})
        if not len(rows):
            context.warn(f"{queries.name} retrieves nothing: {_advice(mode, settings)}")
    decisions.drop(candidates[is_none(source[candidates])], NOT_RETRIEVED)
    return found_by


def _advice(mode: Mode, settings: QuerySetConfig) -> str:
    if mode == "sample":
        return "lower retrieval.threshold"
    return f"no cluster holds more than {settings.min_queries} of its images; fewer retrieval.clusters, or mode sample"


def settings_of(config: RetrievalConfig, queries: QuerySet) -> tuple[QuerySetConfig, Mode]:
    """What is set for this trusted set, and by which of the two ways it asks.

    Raises:
        UsageError: a setting of `retrieval.sets` is wrong.
    """
    shared: dict[str, Any] = {name: getattr(config, name) for name in QuerySetConfig.model_fields}
    if config.mode == "all":
        shared["mode"] = "auto"
    own = build_config(QuerySetConfig, shared | config.sets.get(queries.name, {}), f"retrieval.sets.{queries.name}")
    mode = choose_mode(len(queries.rows), config.sample_from) if own.mode == "auto" else own.mode
    return own, mode


def _clusters(context: CurationContext, config: RetrievalConfig, candidate_vectors: np.ndarray, key: str) -> Clusters:
    cache = context.cache("retrieve", "clusters.arrow", "centroids.arrow")
    count = config.clusters or min(max(len(candidate_vectors) // 30, 1), 100_000)
    if count > len(candidate_vectors):
        context.warn_clipped("retrieval.clusters", count, len(candidate_vectors))
        count = len(candidate_vectors)
    own = stage_key("kmeans", key, count, config.iterations, context.seed, context.memory_gib)
    if not (cache.is_valid("clusters.arrow", own) and cache.is_valid("centroids.arrow", own)):
        with context.timed("cluster", len(candidate_vectors)):
            made = kmeans(
                candidate_vectors, count, iterations=config.iterations, seed=context.seed, memory_gib=context.memory_gib
            )
        cache.put_table("centroids.arrow", own, pa.table({"vector": vectors_to_column(made.centroids)}))
        cache.put_table("clusters.arrow", own, pa.table({"cluster": made.assignment, "closeness": made.closeness}))
    table = cache.read_table("clusters.arrow")
    centroids = column_to_vectors(cache.read_table("centroids.arrow")["vector"])
    return Clusters(centroids, table["cluster"].to_numpy(), table["closeness"].to_numpy())


def _sample(
    context: CurationContext,
    search: SearchConfig,
    vectors: np.ndarray,
    candidate_vectors: np.ndarray,
    settings: QuerySetConfig,
) -> tuple[RetrievedImages, MeasuredRecall | None]:
    k = min(settings.k, len(candidate_vectors))
    index = measured = None
    if len(vectors) * len(candidate_vectors) > search.exact_up_to**2 and k < len(candidate_vectors):
        index = build_ivf(candidate_vectors, memory_gib=context.memory_gib / 2, seed=context.seed)
        measured = tune_probes(index, k=k, target=search.recall, seed=context.seed)
    found = retrieve_samples(
        vectors, candidate_vectors, k=k, threshold=settings.threshold, limit=settings.limit, index=index,
        memory_gib=context.memory_gib,
    )  # fmt: skip
    return found, measured
