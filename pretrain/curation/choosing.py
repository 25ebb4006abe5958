"""What of the clean pool is asked for: by trusted sets (DINOv2, section 3), or evenly where there is none."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dinomed.config import build_config
from dinomed.errors import UsageError, did_you_mean
from dinomed.features.neighbors import normalised
from dinomed.features.table import MARK
from dinomed.files import to_json
from dinomed.pretrain.curation import reasons
from dinomed.pretrain.curation.approximate import Measured, build_index, tune
from dinomed.pretrain.curation.cluster import Clusters, kmeans
from dinomed.pretrain.curation.hierarchy import balanced_sample, hierarchical_kmeans
from dinomed.pretrain.curation.job import VECTORS, Job
from dinomed.pretrain.curation.linking import Vectors
from dinomed.pretrain.curation.neighbors import top_k
from dinomed.pretrain.curation.outcome import Source
from dinomed.pretrain.curation.pile import Pile, QuerySet
from dinomed.pretrain.curation.retrieve import Mode, Retrieved, choose_mode, retrieve_clusters, retrieve_samples
from dinomed.pretrain.curation.settings import CurationConfig, QuerySetConfig
from dinomed.pretrain.curation.shelf import column_to_vectors, key_of, vectors_to_column
from dinomed.pretrain.curation.stages import Embed, load_frozen
from dinomed.pretrain.curation.verdicts import Verdicts, missing
from dinomed.progress import say, warn

_MAP_SAMPLE = 20_000


@dataclass(frozen=True)
class Embedder:
    """What images are compared by: a frozen backbone, or, with `backbone` None, the copy-detection descriptor.

    `tables`: features of the pool that `dinomed features` has computed with that backbone.
    """

    backbone: str | None = None
    weights: str | None = None
    tables: Sequence[Path] = ()


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
        _settings(config, queries)


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
    x, key, record = _embed(job, rows, vectors, embedder)
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
        sources = _retrieve(job, verdicts, candidates, x, slot, key, source, retrieved_for, cluster)
    elif still.any():
        sources = [_balance(job, verdicts, candidates, pool, key, source, cluster)]
    as_is = [_as_is(queries, asking, retrieved_for) for queries in pile.trusted]
    return Chosen(source, retrieved_for, cluster, unlike, _points(x, slot), [*as_is, *sources], record)


def _as_is(queries: QuerySet, asking: np.ndarray, retrieved_for: np.ndarray) -> Source:
    kept = np.equal(retrieved_for[asking], queries.name).sum()
    return Source(queries.name, "as is", len(queries.rows), len(queries.rows), int(kept))


def _embed(job: Job, rows: np.ndarray, vectors: Vectors, embedder: Embedder) -> tuple[np.ndarray, str, dict[str, Any]]:
    """float32 (n, D) for `rows`, mapped; the key over all that they depend on; what they are."""
    manifest = job.pile.manifest
    digests = manifest.column("sha256")
    identity = [digests[row] for row in rows.tolist()]
    if embedder.backbone is None:
        note = "no --backbone: images are compared by the copy-detection descriptor, which knows copies, not contents"
        job.notes.append(note)
        warn(note)
        key = key_of("embed", vectors.key, identity)
        known_blocks = (vectors.x[vectors.slot[rows[start : start + 4096]]] for start in range(0, len(rows), 4096))
        shape = (len(rows), int(vectors.x.shape[1]))
        return job.matrix("embed", VECTORS, key, known_blocks, shape), key, {"embedding": "descriptor"}
    backbone = load_frozen(embedder.backbone, embedder.weights, job.device)
    record = {"embedding": backbone.name, "fingerprint": backbone.fingerprint}
    known = _read_tables(embedder.tables, backbone.fingerprint, job)
    work = Embed(embedder.backbone, embedder.weights, backbone.fingerprint, job.device, job.workers)
    todo = np.array([row for row in rows.tolist() if row not in known], np.int64)
    computed = {}
    out = None
    if len(todo):
        ordered = np.sort(todo)
        table = job.over_images("embed", backbone.fingerprint, manifest, ordered, work, description="embeddings")
        column = table["vector"]
        blocks = (column_to_vectors(pa.chunked_array([chunk])) for chunk in column.chunks)
        shape = (len(ordered), int(column.type.list_size))
        own = key_of("computed", backbone.fingerprint, [digests[row] for row in ordered.tolist()])
        out = job.matrix("embed", "computed.npy", own, blocks, shape)
        computed = {row: place for place, row in enumerate(ordered.tolist())}
    dimension = int(out.shape[1]) if out is not None else len(next(iter(known.values())))
    key = key_of("embed", backbone.fingerprint, identity, [str(path) for path in embedder.tables])

    def parts() -> Any:
        for start in range(0, len(rows), 4096):
            some = rows[start : start + 4096].tolist()
            yield np.stack([known[row] if row in known else out[computed[row]] for row in some])  # type: ignore[index]

    return job.matrix("embed", VECTORS, key, parts(), (len(rows), dimension)), key, record


def _read_tables(tables: Sequence[Path], fingerprint: str, job: Job) -> dict[int, np.ndarray]:
    """Vectors of the pool's images from tables of `dinomed features`; refused if another backbone made them."""
    known: dict[int, np.ndarray] = {}
    if not tables:
        return known
    images = job.pile.paths[: job.pile.pool]
    by_path = {path: row for row, path in enumerate(images)}
    for table in tables:
        try:
            with pq.ParquetFile(table) as file:
                metadata = file.schema_arrow.metadata or {}
                if MARK not in metadata:
                    raise UsageError(f"--embeddings {table} is no table of `dinomed features`")
                found = file.read()
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"--embeddings {table} cannot be read ({str(error).splitlines()[0][:80]})") from None
        own = metadata[b"fingerprint"].decode()
        if own != fingerprint:
            raise UsageError(
                f"--embeddings {table} are of another backbone ({own[:12]}) than --backbone ({fingerprint[:12]}); "
                "compute them again, or leave them out"
            )
        if metadata.get(b"tokens") != b"cls":
            raise UsageError(f"--embeddings {table} are not class tokens; compute them with --tokens cls")
        values = normalised(column_to_vectors(found["feature"]), f"{table}: feature of image")
        for path, value in zip(found["image"].to_pylist(), values, strict=True):
            if path in by_path:
                known[by_path[path]] = value
    if not known:
        raise UsageError("--embeddings: none of their images is in the pool (paths are compared)")
    say(f"embeddings of {len(known):,} of {job.pile.pool:,} images of the pool were given")
    return known


def _retrieve(
    job: Job, verdicts: Verdicts, candidates: np.ndarray, x: np.ndarray, slot: np.ndarray, key: str,
    source: np.ndarray, retrieved_for: np.ndarray, cluster: np.ndarray,
) -> list[Source]:  # fmt: skip
    config, shelf = job.config.retrieval, job.shelf("retrieve")
    pool = x[: len(candidates)]
    found_by: list[Source] = []
    clusters: Clusters | None = None
    for number, queries in enumerate(job.pile.trusted):
        own = queries.rows[verdicts.alive[queries.rows]]
        if not len(own):
            job.notes.append(f"{queries.name}: all of its images are excluded, and it asks for nothing")
            warn(job.notes[-1])
            continue
        settings, mode = _settings(job.config, queries)
        if mode == "sample" and settings.k > len(pool):  # said here: what is found again has the same notes
            _say_fewer(job, "retrieval.k", settings.k, len(pool))
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
            job.notes.append(f"{queries.name} retrieves nothing: {_advice(mode, settings)}")
            warn(job.notes[-1])
    verdicts.drop(candidates[missing(source[candidates])], reasons.NOT_RETRIEVED)
    return found_by


def _advice(mode: Mode, settings: QuerySetConfig) -> str:
    if mode == "sample":
        return "lower retrieval.threshold"
    return f"no cluster holds more than {settings.min_queries} of its images; fewer retrieval.clusters, or mode sample"


def _settings(curation: CurationConfig, queries: QuerySet) -> tuple[QuerySetConfig, Mode]:
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
        _say_fewer(job, "retrieval.clusters", count, len(pool))
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


def _say_fewer(job: Job, name: str, wanted: int, there: int) -> None:
    note = f"{name} is {wanted:,}, and {there:,} images are left to choose from: {there:,} are used"
    job.notes.append(note)
    warn(note)


def _sample(
    job: Job, vectors: np.ndarray, pool: np.ndarray, settings: QuerySetConfig
) -> tuple[Retrieved, Measured | None]:
    k = min(settings.k, len(pool))
    searcher = measured = None
    if len(vectors) * len(pool) > job.config.search.exact_up_to**2 and k < len(pool):
        searcher = build_index(pool, memory_gib=job.config.memory_gib / 2, seed=job.config.seed)
        measured = tune(searcher, k=k, target=job.config.search.recall, seed=job.config.seed)
    found = retrieve_samples(
        vectors, pool, k=k, threshold=settings.threshold, limit=settings.limit, searcher=searcher,
        memory_gib=job.config.memory_gib,
    )  # fmt: skip
    return found, measured


def _balance(
    job: Job, verdicts: Verdicts, candidates: np.ndarray, pool: np.ndarray, key: str, source: np.ndarray,
    cluster: np.ndarray,
) -> Source:  # fmt: skip
    config, shelf = job.config.balance, job.shelf("retrieve")
    count = len(candidates)
    levels = list(config.levels or _levels(count))
    if levels[0] > count:
        raise UsageError(
            f"balance.levels {levels}: the first has more clusters than the {count:,} images that are left"
        )
    wanted = config.images or max(round(config.share * count), 1)
    if wanted > count:
        _say_fewer(job, "balance.images", wanted, count)
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


def _points(x: np.ndarray, slot: np.ndarray) -> np.ndarray:
    """Two principal components, fitted to a sample; float32 (N, 2), nan where there is no embedding."""
    sample = x[np.linspace(0, len(x) - 1, min(len(x), _MAP_SAMPLE)).astype(np.int64)].astype(np.float64)
    mean = sample.mean(axis=0)
    _, basis = np.linalg.eigh((sample - mean).T @ (sample - mean))
    basis = basis[:, ::-1][:, :2]
    basis = basis * np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(basis.shape[1])])
    out = np.full((len(slot), 2), np.nan, np.float32)
    known = np.flatnonzero(slot >= 0)
    for start in range(0, len(known), 65536):
        some = known[start : start + 65536]
        out[some, : basis.shape[1]] = (x[slot[some]] - mean) @ basis
    return out
