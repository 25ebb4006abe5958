"""What trusted sets ask for out of the clean pool (DINOv2, section 3): nearest images, or whole clusters."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from dinomed.config import build_config
from dinomed.io.files import to_json
from dinomed.pretrain.curation import reasons
from dinomed.pretrain.curation.config import CurationConfig, QuerySetConfig
from dinomed.pretrain.curation.decisions import Verdicts, missing
from dinomed.pretrain.curation.output.read import Source
from dinomed.pretrain.curation.pool import QuerySet
from dinomed.pretrain.curation.runtime.cache import column_to_vectors, key_of, vectors_to_column
from dinomed.pretrain.curation.runtime.context import Job
from dinomed.pretrain.curation.search.ivf import MeasuredRecall, build_ivf, tune_probes
from dinomed.pretrain.curation.selection.kmeans import Clusters, kmeans
from dinomed.pretrain.curation.selection.retrieval import (
    Mode,
    RetrievedImages,
    choose_mode,
    retrieve_clusters,
    retrieve_samples,
)


def retrieve_for_sets(
    job: Job, verdicts: Verdicts, candidates: np.ndarray, x: np.ndarray, slot: np.ndarray, key: str,
    source: np.ndarray, retrieved_for: np.ndarray, cluster: np.ndarray,
) -> list[Source]:  # fmt: skip
    """Each trusted set in turn takes from the pool; the rest is dropped. Fills `source`, `retrieved_for`, `cluster`.

    Args:
        candidates: (c,) rows of the clean pool.
        x: (n, D) unit vectors, those of `candidates` first; `slot` (N,) says which is an image's, -1 for none.
        key: over all that `x` depends on.
    """
    config, shelf = job.config.retrieval, job.shelf("retrieve")
    pool = x[: len(candidates)]
    found_by: list[Source] = []
    clusters: Clusters | None = None
    for number, queries in enumerate(job.pile.trusted):
        own = queries.rows[verdicts.alive[queries.rows]]
        if not len(own):
            job.warn(f"{queries.name}: all of its images are excluded, and it asks for nothing")
            continue
        settings, mode = settings_of(job.config, queries)
        if mode == "sample" and settings.k > len(pool):  # said here: what is found again has the same notes
            job.say_fewer("retrieval.k", settings.k, len(pool))
        vectors = np.ascontiguousarray(x[slot[own]])
        name = f"{number:02d}.arrow"
        step_key = key_of("retrieve", key, slot[own].tolist(), mode, settings.model_dump(), job.config.seed)
        job.uses("retrieve", name)
        if mode == "cluster":
            clusters = clusters or _clusters(job, pool, key)
            step_key = key_of(step_key, len(clusters.centroids), config.iterations)
            cluster[candidates] = clusters.assignment

        def compute(
            vectors: np.ndarray = vectors, settings: QuerySetConfig = settings, clusters: Clusters | None = clusters,
            mode: Mode = mode,
        ) -> pa.Table:  # fmt: skip
            if mode == "cluster":
                assert clusters is not None
                found = retrieve_clusters(
                    vectors, pool, clusters, min_queries=settings.min_queries, per_cluster=settings.per_cluster,
                    limit=settings.limit, seed=job.config.seed,
                )  # fmt: skip
                measured = None
            else:
                found, measured = _sample(job, vectors, pool, settings)
            table = pa.table({"row": found.row, "similarity": found.similarity})
            note = {"before_limit": found.before_limit, "measured": measured and asdict(measured)}
            return table.replace_schema_metadata({"note": to_json(note)})

        with job.timed("retrieve", len(own)):
            table = shelf.make(name, step_key, compute)
        rows = candidates[table["row"].to_numpy()]
        new = rows[verdicts.alive[rows] & missing(source[rows])]
        source[new], retrieved_for[new] = mode, queries.name
        note = json.loads(table.schema.metadata[b"note"])
        found_by.append(Source(queries.name, mode, len(own), note["before_limit"], len(new)))
        if note["measured"]:
            job.searches.append({"search": f"retrieval for {queries.name}", **note["measured"]})
        if not len(rows):
            job.warn(f"{queries.name} retrieves nothing: {_advice(mode, settings)}")
    verdicts.drop(candidates[missing(source[candidates])], reasons.NOT_RETRIEVED)
    return found_by


def _advice(mode: Mode, settings: QuerySetConfig) -> str:
    if mode == "sample":
        return "lower retrieval.threshold"
    return f"no cluster holds more than {settings.min_queries} of its images; fewer retrieval.clusters, or mode sample"


def settings_of(curation: CurationConfig, queries: QuerySet) -> tuple[QuerySetConfig, Mode]:
    """What is set for this trusted set, and by which of the two ways it asks.

    Raises:
        UsageError: a setting of `retrieval.sets` is wrong.
    """
    config = curation.retrieval
    shared: dict[str, Any] = {name: getattr(config, name) for name in QuerySetConfig.model_fields}
    if config.mode == "all":
        shared["mode"] = "auto"
    own = build_config(QuerySetConfig, shared | config.sets.get(queries.name, {}), f"retrieval.sets.{queries.name}")
    mode = choose_mode(len(queries.rows), config.sample_from) if own.mode == "auto" else own.mode
    return own, mode


def _clusters(job: Job, pool: np.ndarray, key: str) -> Clusters:
    config, shelf = job.config.retrieval, job.shelf("retrieve")
    count = config.clusters or min(max(len(pool) // 30, 1), 100_000)
    if count > len(pool):
        job.say_fewer("retrieval.clusters", count, len(pool))
        count = len(pool)
    own = key_of("kmeans", key, count, config.iterations, job.config.seed, job.config.memory_gib)
    job.uses("retrieve", "clusters.arrow", "centroids.arrow")
    if not (shelf.has("clusters.arrow", own) and shelf.has("centroids.arrow", own)):
        with job.timed("cluster", len(pool)):
            made = kmeans(
                pool, count, iterations=config.iterations, seed=job.config.seed, memory_gib=job.config.memory_gib
            )
        shelf.put_table("centroids.arrow", own, pa.table({"vector": vectors_to_column(made.centroids)}))
        shelf.put_table("clusters.arrow", own, pa.table({"cluster": made.assignment, "closeness": made.closeness}))
    table = shelf.table("clusters.arrow")
    centroids = column_to_vectors(shelf.table("centroids.arrow")["vector"])
    return Clusters(centroids, table["cluster"].to_numpy(), table["closeness"].to_numpy())


def _sample(
    job: Job, vectors: np.ndarray, pool: np.ndarray, settings: QuerySetConfig
) -> tuple[RetrievedImages, MeasuredRecall | None]:
    k = min(settings.k, len(pool))
    index = measured = None
    if len(vectors) * len(pool) > job.config.search.exact_up_to**2 and k < len(pool):
        index = build_ivf(pool, memory_gib=job.config.memory_gib / 2, seed=job.config.seed)
        measured = tune_probes(index, k=k, target=job.config.search.recall, seed=job.config.seed)
    found = retrieve_samples(
        vectors, pool, k=k, threshold=settings.threshold, limit=settings.limit, index=index,
        memory_gib=job.config.memory_gib,
    )  # fmt: skip
    return found, measured
