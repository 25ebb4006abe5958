"""Descriptors, the search for copies, and what follows: who is a copy of whom, and who is linked to a test set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dinomed.datasets.manifest import Manifest
from dinomed.errors import DinomedError
from dinomed.log import logger
from dinomed.pretrain.curation.decisions import (
    EXACT_COPY,
    EXCLUDED_COPY,
    EXCLUDED_GROUP,
    EXCLUDED_LINK,
    NEAR_COPY,
    NEAR_EXACT_COPY,
    Decisions,
    is_none,
)
from dinomed.pretrain.curation.deduplication.candidates import (
    IdenticalFiles,
    fit_pca,
    hash_pairs_of_rows,
    identical_file_pairs,
    is_duplicate,
    needs_check,
    pca_hash_pairs,
    phash_pairs,
    union,
)  # fmt: skip
from dinomed.pretrain.curation.deduplication.components import components, order_by, representatives
from dinomed.pretrain.curation.deduplication.config import DuplicatesConfig
from dinomed.pretrain.curation.deduplication.exclusion import GROUP, LINKED, exclude
from dinomed.pretrain.curation.deduplication.exclusion import NEAR as NEAR_REFERENCE
from dinomed.pretrain.curation.deduplication.hashes import thumbnails_of, views_of
from dinomed.pretrain.curation.deduplication.pair_check import CheckPairs
from dinomed.pretrain.curation.deduplication.thresholds import choose_thresholds
from dinomed.pretrain.curation.descriptors.config import DescriptorConfig
from dinomed.pretrain.curation.descriptors.stage import REFERENCE_VECTORS, Vectors, describe_images, manifest_digests
from dinomed.pretrain.curation.descriptors.stage import STAGE as DESCRIBE
from dinomed.pretrain.curation.runtime.cache import stage_key
from dinomed.pretrain.curation.runtime.context import VECTORS, CurationContext
from dinomed.pretrain.curation.runtime.images import absolute_name
from dinomed.pretrain.curation.search.config import SearchConfig
from dinomed.pretrain.curation.search.ivf import build_ivf, load_ivf, tune_probes, write_ivf
from dinomed.pretrain.curation.search.pairs import SimilarPairs, from_table, merge_pairs, no_pairs
from dinomed.pretrain.curation.search.stage import SearchPart
from dinomed.pretrain.curation.search.vectors import similarity_of

_REFERENCES_EACH = 4  # excluded images that are checked for an image of the pool, at most
_ANSWERS = {NEAR_REFERENCE: EXCLUDED_COPY, GROUP: EXCLUDED_GROUP, LINKED: EXCLUDED_LINK}


@dataclass(frozen=True)
class Links:
    """What is known of the copies of N images; arrays of (N,) as in `outcome.ROWS`."""

    component: np.ndarray
    duplicate_of: np.ndarray
    reference: np.ndarray
    similarity: np.ndarray
    how: np.ndarray
    vectors: Vectors
    record: dict[str, Any]  # for the summary


def link_duplicates(
    context: CurationContext, looks: pa.Table, reference_looks: pa.Table | None, decisions: Decisions,
    descriptor: DescriptorConfig, duplicates: DuplicatesConfig, search: SearchConfig,
) -> Links:  # fmt: skip
    """Find copies, and drop what is one; `looks` has a row for each image of the pool (see `stages.Look`).

    Relative deduplication is done first. The result is the same as after deduplicating the pool: whatever is a copy of
    an image within the pool is in one component with it, and goes with it.
    """
    pool = context.pool
    digests = pool.manifest.column("sha256")
    alive, trusted = decisions.kept, pool.is_query
    contents = IdenticalFiles.of(digests, np.where(alive, np.where(trusted, 0, 1), 2))
    rows = np.flatnonzero(alive & (contents.first == np.arange(len(pool))))
    reference_rows = np.empty(0, np.int64)
    if reference_looks is not None:
        reference_rows = np.flatnonzero(is_none(reference_looks["problem"].to_pylist()))
    vectors, others, record = describe_images(context, descriptor, rows, reference_rows)
    kept_rows = np.flatnonzero(alive)
    vectors.slot[kept_rows] = vectors.slot[contents.first[kept_rows]]
    within, excluded = choose_thresholds(duplicates, descriptor.source.kind)
    outward = len(reference_rows) > 0
    limits = [within, excluded] if outward else [within]

    found = _search(
        context,
        search,
        duplicates.k,
        vectors,
        None,
        min(limit.lowest for limit in limits),
        description="copies in the pool",
    )
    matches = _check(context, "check-pool", found, rows, rows, pool.manifest, pool.manifest, needs_check(found, limits))
    hashed = _hashed(context, duplicates, looks, None, rows, None)
    exact = contents.edges()

    def graph(limit: Any) -> SimilarPairs:
        copies = found.take(is_duplicate(found, matches, limit, duplicates.min_matches))
        return union(exact, hashed, SimilarPairs(rows[copies.i], rows[copies.j], copies.similarity))

    reference, similarity = np.full(len(pool), -1, np.int64), np.full(len(pool), np.nan, np.float32)
    how = np.full(len(pool), None, object)
    if pool.references is not None:
        equal = identical_file_pairs(digests, pool.references.column("sha256"))
        near = no_pairs()
        hashed_out = no_pairs()
        if outward and others is not None and len(rows):
            assert reference_looks is not None
            outer = _search(
                context, search, duplicates.k, vectors, others, excluded.lowest, description="copies of excluded images"
            )
            points = _check(
                context, "check-excluded", outer, rows, reference_rows, pool.manifest, pool.references,
                needs_check(outer, [excluded]),
            )  # fmt: skip
            near = outer.take(is_duplicate(outer, points, excluded, duplicates.min_matches))
            near = SimilarPairs(rows[near.i], reference_rows[near.j], near.similarity)
            hashed_out = _hashed(context, duplicates, looks, reference_looks, rows, reference_rows)
            slots = np.full(len(pool.references), -1, np.int64)
            slots[reference_rows] = np.arange(len(reference_rows))
            cosine = similarity_of(vectors.x, others, vectors.slot[hashed_out.i], slots[hashed_out.j])
            hashed_out = SimilarPairs(hashed_out.i, hashed_out.j, cosine)
        exclusion = exclude(
            len(pool), graph(excluded), union(equal, hashed_out, near), groups=pool.groups,
            reference_groups=pool.reference_groups,
        )  # fmt: skip
        for word, reason in _ANSWERS.items():
            decisions.drop(exclusion.reason == word, reason)
        told = np.equal(decisions.reason, EXCLUDED_COPY)
        reference = np.where(told, exclusion.reference, -1)
        similarity[told] = exclusion.similarity[told]
        by_content, by_hash = set(zip(equal.i, equal.j, strict=True)), set(zip(hashed_out.i, hashed_out.j, strict=True))
        for row in np.flatnonzero(told):
            pair = (row, reference[row])
            how[row] = "exact" if pair in by_content else "hash" if pair in by_hash else "descriptor"

    edges = graph(within)
    component = components(len(pool), edges.i, edges.j)
    coarse = union(exact, hashed)
    by_hash_too = components(len(pool), coarse.i, coarse.j)
    kept = representatives(component, _places(context, duplicates.rule, looks, decisions))
    copies = np.flatnonzero(decisions.kept & ~trusted & (kept != np.arange(len(pool))) & decisions.kept[kept])
    for row in copies:
        other = kept[row]
        exactly = digests[row] == digests[other]
        hashwise = by_hash_too[row] == by_hash_too[other]
        how[row] = "exact" if exactly else "hash" if hashwise else "descriptor"
    similarity[copies] = similarity_of(vectors.x, vectors.x, vectors.slot[copies], vectors.slot[kept[copies]])
    for word, reason in (("exact", EXACT_COPY), ("hash", NEAR_EXACT_COPY), ("descriptor", NEAR_COPY)):
        decisions.drop(copies[np.equal(how[copies], word)], reason)
    duplicate_of = np.full(len(pool), -1, np.int64)
    duplicate_of[copies] = kept[copies]
    record |= {
        "threshold": within.sure, "check_from": within.check,
        "exclude_threshold": excluded.sure, "exclude_check_from": excluded.check, "k": duplicates.k,
    }  # fmt: skip
    return Links(component, duplicate_of, reference, similarity, how, vectors, record)


def _places(context: CurationContext, rule: tuple[str, ...], looks: pa.Table, decisions: Decisions) -> np.ndarray:
    """Who stays of several copies: what is still in, trusted before others, then the rule."""
    manifest = context.pool.manifest
    blank = [None] * len(manifest)
    columns: dict[str, Any] = {
        "alive": decisions.kept,
        "trusted": context.pool.is_query,
        "labelled": [v is not None for v in (manifest.column("label") if manifest.has("label") else blank)],
        "area": np.array(manifest.column("width"), np.float64) * np.array(manifest.column("height"), np.float64),
        "sharpness": looks["sharpness"].to_numpy(),
        "path": manifest.column("image"),
    }
    return order_by(columns, ("-alive", "-trusted", *rule))


def _search(
    context: CurationContext, config: SearchConfig, k: int, vectors: Vectors, others: np.ndarray | None,
    threshold: float, *, description: str,
) -> SimilarPairs:  # fmt: skip
    """Pairs of slots above a threshold, in parts; towards `others`, the best few of each."""
    count = len(vectors.x)
    same = others is None
    size = count if others is None else len(others)
    wanted = min(k, count - 1) if same else min(_REFERENCES_EACH, size)
    products = count * size // (2 if same else 1)
    parts = max(1, -(-products // config.products_each))
    stage = "search-pool" if same else "search-excluded"
    folder = context.cache(DESCRIBE).folder
    other_file = None if same else absolute_name(folder / REFERENCE_VECTORS)
    identity: list[Any] = [vectors.key, threshold, wanted]
    if others is not None:
        identity.append(context.cache(DESCRIBE).read_key(REFERENCE_VECTORS))
    index = _index(context, config, vectors, wanted, threshold) if same and count > config.exact_up_to else None
    if index is not None:
        identity += ["index", config.recall, context.seed]
    work = SearchPart(
        absolute_name(folder / VECTORS),
        threshold,
        wanted or None,
        context.memory_gib,
        other_file,
        index,
        context.workers,
    )
    items = [(f"{n:06d}", stage_key(stage, identity, n, parts), (n, parts)) for n in range(parts)]
    tables = context.compute_tables(stage, items, work, description, [1] * parts)
    return merge_pairs([from_table(table) for table in tables], k=wanted or None, symmetric=same)


def _index(context: CurationContext, config: SearchConfig, vectors: Vectors, k: int, threshold: float) -> str:
    """The file of an inverted index of the pool, tuned to the recall that is asked for; made or found."""
    stage, name, note = "search-pool", "index.faiss", "measured.arrow"
    cache = context.cache(stage, name, note)
    key = stage_key("index", vectors.key, k, threshold, config.recall, context.memory_gib, context.seed)
    if not (cache.is_valid(note, key) and _is_index(cache.path(name), vectors.x)):
        with context.timed("index", len(vectors.x)):
            searcher = build_ivf(vectors.x, memory_gib=context.memory_gib / 2, seed=context.seed)
            measured = tune_probes(searcher, k=k, threshold=threshold, target=config.recall, seed=context.seed)
            write_ivf(searcher, cache.path(name))
        record = {"recall": [measured.recall], "of": [measured.of], "queries": [measured.queries]}
        cache.put_table(note, key, pa.table(record | {"probes": [measured.probes]}))
    found = {column: values[0] for column, values in cache.read_table(note).to_pydict().items()}
    context.searches.append({"search": "copies in the pool", **found})
    return absolute_name(cache.path(name))


def _is_index(path: Path, x: np.ndarray) -> bool:
    try:
        load_ivf(path, x)
    except DinomedError as error:
        logger.warning(f"{error}")
        return False
    return True


def _check(
    context: CurationContext, stage: str, pairs: SimilarPairs, rows: np.ndarray, others: np.ndarray, one: Manifest,
    other: Manifest, wanted: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Points that align, of the pairs (of slots) that are wanted: int64 (P,), -1 for the others."""
    matches = np.full(len(pairs), -1, np.int64)
    chosen = np.flatnonzero(wanted)
    if not len(chosen):
        return matches
    names = (
        [one.path(int(row)) for row in rows[pairs.i[chosen]]],
        [other.path(int(r)) for r in others[pairs.j[chosen]]],
    )
    digests = (manifest_digests(one, rows[pairs.i[chosen]]), manifest_digests(other, others[pairs.j[chosen]]))
    items, sizes = [], []
    for start in range(0, len(chosen), context.shard_size):
        part = slice(start, start + context.shard_size)
        key = stage_key("check", digests[0][part], digests[1][part])
        item = ([str(path) for path in names[0][part]], [str(path) for path in names[1][part]])
        items.append((f"{start // context.shard_size:06d}", key, item))
        sizes.append(len(item[0]))
    tables = context.compute_tables(stage, items, CheckPairs(context.workers), "checking pairs", sizes)
    matches[chosen] = pa.concat_tables(tables)["matches"].to_numpy()
    return matches


def _hashed(
    context: CurationContext,
    config: DuplicatesConfig,
    looks: pa.Table,
    others: pa.Table | None,
    rows: np.ndarray,
    other_rows: np.ndarray | None,
) -> SimilarPairs:
    """Pairs of rows whose hashes are near-equal; the hashes are few bytes, and compared at once."""
    most = config.hashes_up_to
    views = views_of(looks["views"])[rows]
    other_views = None if others is None else views_of(others["views"])[other_rows]
    found = hash_pairs_of_rows(phash_pairs(views, other_views, config.hash_radius, most), rows, other_rows)
    if config.pca_radius is None:
        return found
    small = thumbnails_of(looks["thumbnail"])[rows]
    pca = fit_pca(small, context.seed)
    if pca is None:
        return found
    other_small = None if others is None else thumbnails_of(others["thumbnail"])[other_rows]
    return union(
        found, hash_pairs_of_rows(pca_hash_pairs(pca, small, other_small, config.pca_radius, most), rows, other_rows)
    )
