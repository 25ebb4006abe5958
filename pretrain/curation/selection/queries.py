"""Retrieval of pool images for each query set (DINOv2, section 3): nearest images, or images of whole clusters."""

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
from dinomed.pretrain.curation.selection.embedding import Embeddings
from dinomed.pretrain.curation.selection.kmeans import Clusters, kmeans
from dinomed.pretrain.curation.selection.retrieval import (
    Mode,
    RetrievedImages,
    choose_mode,
    retrieve_clusters,
    retrieve_samples,
)
from dinomed.pretrain.curation.selection.selection import CACHE_STAGE, Selection


def retrieve_for_query_sets(
    context: CurationContext, decisions: Decisions, config: RetrievalConfig, search: SearchConfig,
    embeddings: Embeddings, selection: Selection,
) -> list[SetContribution]:  # fmt: skip
    """Retrieve images for each query set in turn, and drop candidates that no query set retrieves.

    An image that two query sets retrieve counts for the first. `selection` receives the source, the query set and the
    cluster of the candidates.
    """
    candidates = embeddings.candidates
    contributions: list[SetContribution] = []
    clusters: Clusters | None = None
    for number, query_set in enumerate(context.pool.query_sets):
        queries = query_set.rows[decisions.kept[query_set.rows]]
        if not len(queries):
            context.warn(f"{query_set.name}: all of its images are excluded, so it retrieves nothing")
            continue
        settings, mode = query_set_settings(config, query_set)
        if mode == "sample" and settings.k > len(candidates):  # also if the result is in the cache
            context.warn_clipped("retrieval.k", settings.k, len(candidates))
        if mode == "cluster":
            clusters = clusters or _cluster_candidates(context, config, embeddings)
            selection.cluster[candidates] = clusters.assignment
        table = _retrieve(context, search, settings, mode, number, embeddings, queries, clusters, config.iterations)
        rows = candidates[table["row"].to_numpy()]
        new = rows[decisions.kept[rows] & is_none(selection.source[rows])]
        selection.source[new], selection.retrieved_for[new] = mode, query_set.name
        note = json.loads(table.schema.metadata[b"note"])
        contributions.append(SetContribution(query_set.name, mode, len(queries), note["before_limit"], len(new)))
        if note["measured"]:
            context.searches.append({"search": f"retrieval for {query_set.name}", **note["measured"]})
        if not len(rows):
            context.warn(f"{query_set.name} retrieves nothing: {_advice(mode, settings)}")
    decisions.drop(candidates[is_none(selection.source[candidates])], NOT_RETRIEVED)
    return contributions


def _advice(mode: Mode, settings: QuerySetConfig) -> str:
    if mode == "sample":
        return "lower retrieval.threshold"
    return (
        f"no cluster contains more than {settings.min_queries} of its images; "
        "lower retrieval.clusters, or set retrieval.mode=sample"
    )


def query_set_settings(config: RetrievalConfig, query_set: QuerySet) -> tuple[QuerySetConfig, Mode]:
    """Return the settings of a query set, and its mode of retrieval.

    Raises:
        UsageError: a setting of `retrieval.sets` is wrong.
    """
    shared: dict[str, Any] = {name: getattr(config, name) for name in QuerySetConfig.model_fields}
    if config.mode == "all":
        shared["mode"] = "auto"
    overrides = config.sets.get(query_set.name, {})
    settings = build_config(QuerySetConfig, shared | overrides, f"retrieval.sets.{query_set.name}")
    mode = choose_mode(len(query_set.rows), config.sample_from) if settings.mode == "auto" else settings.mode
    return settings, mode


def _retrieve(
    context: CurationContext, search: SearchConfig, settings: QuerySetConfig, mode: Mode, number: int,
    embeddings: Embeddings, queries: np.ndarray, clusters: Clusters | None, iterations: int,
) -> pa.Table:  # fmt: skip
    """Return the images that a query set retrieves, from the cache if they are valid.

    Args:
        number: of the query set; queries: its rows of the pool.
        clusters: of the candidates, for mode `cluster`; iterations: of their k-means.

    Returns:
        Columns `row` (position among the candidates) and `similarity`; the metadata `note` holds, as JSON, the number
        of images before the limit and the measured recall of an approximate search.
    """
    slots = embeddings.slot[queries]
    query_vectors = np.ascontiguousarray(embeddings.x[slots])
    key = stage_key("retrieve", embeddings.key, slots.tolist(), mode, settings.model_dump(), context.seed)
    if clusters is not None and mode == "cluster":
        key = stage_key(key, len(clusters.centroids), iterations)

    def compute() -> pa.Table:
        if clusters is not None and mode == "cluster":
            measured = None
            images = retrieve_clusters(
                query_vectors, embeddings.candidate_vectors, clusters, min_queries=settings.min_queries,
                per_cluster=settings.per_cluster, limit=settings.limit, seed=context.seed,
            )  # fmt: skip
        else:
            images, measured = _retrieve_samples(context, search, settings, query_vectors, embeddings.candidate_vectors)
        note = {"before_limit": images.before_limit, "measured": measured and asdict(measured)}
        table = pa.table({"row": images.row, "similarity": images.similarity})
        return table.replace_schema_metadata({"note": to_json(note)})

    name = f"{number:02d}.arrow"
    with context.timed("retrieve", len(queries)):
        return context.cache(CACHE_STAGE, name).compute_table(name, key, compute)


def _cluster_candidates(context: CurationContext, config: RetrievalConfig, embeddings: Embeddings) -> Clusters:
    """Cluster the candidates by spherical k-means, or read the clusters from the cache."""
    centroids_name, clusters_name = "centroids.arrow", "clusters.arrow"
    cache = context.cache(CACHE_STAGE, clusters_name, centroids_name)
    vectors = embeddings.candidate_vectors
    count = config.clusters or min(max(len(vectors) // 30, 1), 100_000)
    if count > len(vectors):
        context.warn_clipped("retrieval.clusters", count, len(vectors))
        count = len(vectors)
    key = stage_key("kmeans", embeddings.key, count, config.iterations, context.seed, context.memory_gib)
    if not (cache.is_valid(clusters_name, key) and cache.is_valid(centroids_name, key)):
        with context.timed("cluster", len(vectors)):
            clusters = kmeans(
                vectors, count, iterations=config.iterations, seed=context.seed, memory_gib=context.memory_gib
            )
        cache.put_table(centroids_name, key, pa.table({"vector": vectors_to_column(clusters.centroids)}))
        columns = {"cluster": clusters.assignment, "closeness": clusters.closeness}
        cache.put_table(clusters_name, key, pa.table(columns))
    table = cache.read_table(clusters_name)
    centroids = column_to_vectors(cache.read_table(centroids_name)["vector"])
    return Clusters(centroids, table["cluster"].to_numpy(), table["closeness"].to_numpy())


def _retrieve_samples(
    context: CurationContext, search: SearchConfig, settings: QuerySetConfig, query_vectors: np.ndarray,
    candidate_vectors: np.ndarray,
) -> tuple[RetrievedImages, MeasuredRecall | None]:  # fmt: skip
    """Retrieve the nearest images, exactly or by an inverted file whose recall is measured."""
    k = min(settings.k, len(candidate_vectors))
    index = measured = None
    if len(query_vectors) * len(candidate_vectors) > search.exact_up_to**2 and k < len(candidate_vectors):
        index = build_ivf(candidate_vectors, memory_gib=context.memory_gib / 2, seed=context.seed)
        measured = tune_probes(index, k=k, target=search.recall, seed=context.seed)
    images = retrieve_samples(
        query_vectors, candidate_vectors, k=k, threshold=settings.threshold, limit=settings.limit, index=index,
        memory_gib=context.memory_gib,
    )  # fmt: skip
    return images, measured
