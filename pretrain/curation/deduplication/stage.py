"""Descriptors, the search for copies, and what follows: who is a copy of whom, and who is linked to a test set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dinomed.datasets.manifest import Manifest
from dinomed.errors import DinomedError
from dinomed.log import logger
from dinomed.pretrain.curation import reasons
from dinomed.pretrain.curation.decisions import Verdicts, missing
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
from dinomed.pretrain.curation.deduplication.exclusion import GROUP, LINKED, exclude
from dinomed.pretrain.curation.deduplication.exclusion import NEAR as NEAR_REFERENCE
from dinomed.pretrain.curation.deduplication.thresholds import choose_thresholds
from dinomed.pretrain.curation.descriptors.descriptor import LEAST, fit_descriptor, load_descriptor, save_descriptor
from dinomed.pretrain.curation.descriptors.sources import build_source
from dinomed.pretrain.curation.runtime.cache import column_to_vectors, key_of
from dinomed.pretrain.curation.runtime.context import VECTORS, Job
from dinomed.pretrain.curation.search.ivf import build_ivf, load_ivf, tune_probes, write_ivf
from dinomed.pretrain.curation.search.pairs import SimilarPairs, from_table, merge_pairs, no_pairs
from dinomed.pretrain.curation.search.vectors import similarity_of
from dinomed.pretrain.curation.stages import CheckPairs, Describe, SearchPart, file_of, thumbnails_of, views_of

_REFERENCES_EACH = 4  # excluded images that are checked for an image of the pile, at most
_ANSWERS = {NEAR_REFERENCE: reasons.TEST_COPY, GROUP: reasons.TEST_GROUP, LINKED: reasons.TEST_LINK}


@dataclass(frozen=True)
class Vectors:
    """Descriptors of some images: float32 (n, D), mapped, and for each of N rows its place in them (-1: none)."""

    x: np.ndarray
    slot: np.ndarray  # int64 (N,)
    key: str  # over all that they depend on

    @property
    def rows(self) -> np.ndarray:
        """The row of each vector that was computed for its own sake, int64 (n,)."""
        first = np.full(len(self.x), np.iinfo(np.int64).max)
        known = np.flatnonzero(self.slot >= 0)
        np.minimum.at(first, self.slot[known], known)
        return first


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


def link(job: Job, looks: pa.Table, reference_looks: pa.Table | None, verdicts: Verdicts) -> Links:
    """Find copies, and drop what is one; `looks` has a row for each image of the pile (see `stages.Look`).

    Relative deduplication is done first. The result is the same as after deduplicating the pile: whatever is a copy of
    an image within the pile is in one component with it, and goes with it.
    """
    pile, config = job.pile, job.config
    digests = pile.manifest.column("sha256")
    alive, trusted = verdicts.alive, pile.is_trusted
    contents = IdenticalFiles.of(digests, np.where(alive, np.where(trusted, 0, 1), 2))
    rows = np.flatnonzero(alive & (contents.first == np.arange(len(pile))))
    reference_rows = np.empty(0, np.int64)
    if reference_looks is not None:
        reference_rows = np.flatnonzero(missing(reference_looks["problem"].to_pylist()))
    vectors, others, record = _describe(job, rows, contents, alive, reference_rows)
    within, excluded = choose_thresholds(config.duplicates, config.descriptor.source.kind)
    outward = len(reference_rows) > 0
    limits = [within, excluded] if outward else [within]

    found = _search(job, vectors, None, min(limit.lowest for limit in limits), description="copies in the pile")
    matches = _check(job, "check-pile", found, rows, rows, pile.manifest, pile.manifest, needs_check(found, limits))
    hashed = _hashed(job, looks, None, rows, None)
    exact = contents.edges()

    def graph(limit: Any) -> SimilarPairs:
        copies = found.take(is_duplicate(found, matches, limit, config.duplicates.min_matches))
        return union(exact, hashed, SimilarPairs(rows[copies.i], rows[copies.j], copies.similarity))

    reference, similarity = np.full(len(pile), -1, np.int64), np.full(len(pile), np.nan, np.float32)
    how = np.full(len(pile), None, object)
    if pile.references is not None:
        equal = identical_file_pairs(digests, pile.references.column("sha256"))
        near = no_pairs()
        hashed_out = no_pairs()
        if outward and others is not None and len(rows):
            assert reference_looks is not None
            outer = _search(job, vectors, others, excluded.lowest, description="copies of excluded images")
            points = _check(
                job, "check-excluded", outer, rows, reference_rows, pile.manifest, pile.references,
                needs_check(outer, [excluded]),
            )  # fmt: skip
            near = outer.take(is_duplicate(outer, points, excluded, config.duplicates.min_matches))
            near = SimilarPairs(rows[near.i], reference_rows[near.j], near.similarity)
            hashed_out = _hashed(job, looks, reference_looks, rows, reference_rows)
            slots = np.full(len(pile.references), -1, np.int64)
            slots[reference_rows] = np.arange(len(reference_rows))
            cosine = similarity_of(vectors.x, others, vectors.slot[hashed_out.i], slots[hashed_out.j])
            hashed_out = SimilarPairs(hashed_out.i, hashed_out.j, cosine)
        exclusion = exclude(
            len(pile), graph(excluded), union(equal, hashed_out, near), groups=pile.groups,
            reference_groups=pile.reference_groups,
        )  # fmt: skip
        for word, reason in _ANSWERS.items():
            verdicts.drop(exclusion.reason == word, reason)
        told = np.equal(verdicts.reason, reasons.TEST_COPY)
        reference = np.where(told, exclusion.reference, -1)
        similarity[told] = exclusion.similarity[told]
        by_content, by_hash = set(zip(equal.i, equal.j, strict=True)), set(zip(hashed_out.i, hashed_out.j, strict=True))
        for row in np.flatnonzero(told):
            pair = (row, reference[row])
            how[row] = "exact" if pair in by_content else "hash" if pair in by_hash else "descriptor"

    edges = graph(within)
    component = components(len(pile), edges.i, edges.j)
    coarse = union(exact, hashed)
    by_hash_too = components(len(pile), coarse.i, coarse.j)
    kept = representatives(component, _places(job, looks, verdicts))
    copies = np.flatnonzero(verdicts.alive & ~trusted & (kept != np.arange(len(pile))) & verdicts.alive[kept])
    for row in copies:
        other = kept[row]
        exactly = digests[row] == digests[other]
        hashwise = by_hash_too[row] == by_hash_too[other]
        how[row] = "exact" if exactly else "hash" if hashwise else "descriptor"
    similarity[copies] = similarity_of(vectors.x, vectors.x, vectors.slot[copies], vectors.slot[kept[copies]])
    for word, reason in (("exact", reasons.EXACT), ("hash", reasons.HASH), ("descriptor", reasons.NEAR)):
        verdicts.drop(copies[np.equal(how[copies], word)], reason)
    duplicate_of = np.full(len(pile), -1, np.int64)
    duplicate_of[copies] = kept[copies]
    record |= {
        "threshold": within.sure, "check_from": within.check,
        "exclude_threshold": excluded.sure, "exclude_check_from": excluded.check, "k": config.duplicates.k,
    }  # fmt: skip
    return Links(component, duplicate_of, reference, similarity, how, vectors, record)


def _places(job: Job, looks: pa.Table, verdicts: Verdicts) -> np.ndarray:
    """Who stays of several copies: what is still in, trusted before others, then the rule."""
    manifest = job.pile.manifest
    blank = [None] * len(manifest)
    columns: dict[str, Any] = {
        "alive": verdicts.alive,
        "trusted": job.pile.is_trusted,
        "labelled": [v is not None for v in (manifest.column("label") if manifest.has("label") else blank)],
        "area": np.array(manifest.column("width"), np.float64) * np.array(manifest.column("height"), np.float64),
        "sharpness": looks["sharpness"].to_numpy(),
        "path": manifest.column("image"),
    }
    return order_by(columns, ("-alive", "-trusted", *job.config.duplicates.rule))


def _describe(
    job: Job, rows: np.ndarray, contents: IdenticalFiles, alive: np.ndarray, reference_rows: np.ndarray
) -> tuple[Vectors, np.ndarray | None, dict[str, Any]]:
    pile, config = job.pile, job.config.descriptor
    sets = [(pile.manifest, rows, "")]
    if pile.references is not None and len(reference_rows):
        sets.append((pile.references, reference_rows, "excluded-"))
    if sum(len(some) for _, some, _ in sets) < LEAST:
        raise DinomedError(
            f"{len(rows)} of {len(pile)} images are readable, different and pass the filters; to tell copies from "
            f"others at least {LEAST} are needed: add images, or loosen quality.* in the config"
        )
    shelf, name = job.shelf("describe"), "descriptor.safetensors"
    job.uses("describe", name)
    identity = [
        [manifest.column("sha256")[row] for row in some.tolist()] for manifest, some, _ in sets
    ] if config.fit != "none" else []  # fmt: skip
    source = build_source(config.source, job.device)
    key = key_of("fit", config.model_dump(mode="json"), source.fingerprint, identity)
    if not shelf.has(name, key):
        with job.timed("fit", min(config.fit_images, len(rows))):
            fitted = fit_descriptor(
                config, [manifest.take(some.tolist()) for manifest, some, _ in sets], device=job.device,
                workers=job.workers,
            )  # fmt: skip
            shelf.put(name, key, lambda path: save_descriptor(path, fitted))
    descriptor = load_descriptor(shelf.path(name), device=job.device)
    work = Describe(file_of(shelf.path(name)), descriptor.fingerprint, job.device, job.workers)
    matrices = []
    for manifest, some, prefix in sets:
        table = job.over_images(
            "describe", descriptor.fingerprint, manifest, some, work, prefix=prefix, description="descriptors"
        )
        matrices.append(_matrix(job, table, prefix + VECTORS, [descriptor.fingerprint, *_contents(manifest, some)]))
    slot = np.full(len(pile), -1, np.int64)
    slot[rows] = np.arange(len(rows))
    known = np.flatnonzero(alive)
    slot[known] = slot[contents.first[known]]
    (x, own_key), *rest = matrices
    record = {"descriptor": config.source.kind, "fingerprint": descriptor.fingerprint, "dimension": int(x.shape[1])}
    return Vectors(x, slot, own_key), rest[0][0] if rest else None, record


def _contents(manifest: Manifest, rows: np.ndarray) -> list[str]:
    digests = manifest.column("sha256")
    return [digests[row] for row in rows.tolist()]


def _matrix(job: Job, table: pa.Table, name: str, identity: list[str]) -> tuple[np.ndarray, str]:
    key = key_of("matrix", identity)
    column = table["vector"]
    parts = (column_to_vectors(pa.chunked_array([chunk])) for chunk in column.chunks)
    return job.matrix("describe", name, key, parts, (len(table), column.type.list_size)), key


def _search(
    job: Job, vectors: Vectors, others: np.ndarray | None, threshold: float, *, description: str
) -> SimilarPairs:
    """SimilarPairs of slots above a threshold, in parts; towards `others`, the best few of each."""
    config = job.config
    count = len(vectors.x)
    same = others is None
    size = count if others is None else len(others)
    wanted = min(config.duplicates.k, count - 1) if same else min(_REFERENCES_EACH, size)
    products = count * size // (2 if same else 1)
    parts = max(1, -(-products // config.search.products_each))
    stage = "search-pile" if same else "search-excluded"
    folder = job.folder / "describe"
    other_file = None if same else file_of(folder / ("excluded-" + VECTORS))
    identity: list[Any] = [vectors.key, threshold, wanted]
    if others is not None:
        identity.append(job.shelf("describe").key_of("excluded-" + VECTORS))
    index = _index(job, vectors, wanted, threshold) if same and count > config.search.exact_up_to else None
    if index is not None:
        identity += ["index", config.search.recall, config.seed]
    work = SearchPart(
        file_of(folder / VECTORS), threshold, wanted or None, config.memory_gib, other_file, index, job.workers
    )
    items = [(f"{n:06d}", key_of(stage, identity, n, parts), (n, parts)) for n in range(parts)]
    tables = job.pieces(stage, items, work, description, [1] * parts)
    return merge_pairs([from_table(table) for table in tables], k=wanted or None, symmetric=same)


def _index(job: Job, vectors: Vectors, k: int, threshold: float) -> str:
    """The file of an inverted index of the pile, tuned to the recall that is asked for; made or found."""
    stage, name, note = "search-pile", "index.faiss", "measured.arrow"
    config, shelf = job.config, job.shelf("search-pile")
    key = key_of("index", vectors.key, k, threshold, config.search.recall, config.memory_gib, config.seed)
    job.uses(stage, name, note)
    if not (shelf.has(note, key) and _is_index(shelf.path(name), vectors.x)):
        with job.timed("index", len(vectors.x)):
            searcher = build_ivf(vectors.x, memory_gib=config.memory_gib / 2, seed=config.seed)
            measured = tune_probes(searcher, k=k, threshold=threshold, target=config.search.recall, seed=config.seed)
            write_ivf(searcher, shelf.path(name))
        record = {"recall": [measured.recall], "of": [measured.of], "queries": [measured.queries]}
        shelf.put_table(note, key, pa.table(record | {"probes": [measured.probes]}))
    found = {column: values[0] for column, values in shelf.table(note).to_pydict().items()}
    job.searches.append({"search": "copies in the pile", **found})
    return file_of(shelf.path(name))


def _is_index(path: Path, x: np.ndarray) -> bool:
    try:
        load_ivf(path, x)
    except DinomedError as error:
        logger.warning(f"{error}")
        return False
    return True


def _check(
    job: Job, stage: str, pairs: SimilarPairs, rows: np.ndarray, others: np.ndarray, one: Manifest, other: Manifest,
    wanted: np.ndarray,
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
    digests = (_contents(one, rows[pairs.i[chosen]]), _contents(other, others[pairs.j[chosen]]))
    items, sizes = [], []
    for start in range(0, len(chosen), job.config.shard_size):
        part = slice(start, start + job.config.shard_size)
        key = key_of("check", digests[0][part], digests[1][part])
        item = ([str(path) for path in names[0][part]], [str(path) for path in names[1][part]])
        items.append((f"{start // job.config.shard_size:06d}", key, item))
        sizes.append(len(item[0]))
    tables = job.pieces(stage, items, CheckPairs(job.workers), "checking pairs", sizes)
    matches[chosen] = pa.concat_tables(tables)["matches"].to_numpy()
    return matches


def _hashed(
    job: Job, looks: pa.Table, others: pa.Table | None, rows: np.ndarray, other_rows: np.ndarray | None
) -> SimilarPairs:
    """SimilarPairs of rows whose hashes are near-equal; the hashes are few bytes, and compared at once."""
    config = job.config.duplicates
    most = config.hashes_up_to
    views = views_of(looks["views"])[rows]
    other_views = None if others is None else views_of(others["views"])[other_rows]
    found = hash_pairs_of_rows(phash_pairs(views, other_views, config.hash_radius, most), rows, other_rows)
    if config.pca_radius is None:
        return found
    small = thumbnails_of(looks["thumbnail"])[rows]
    pca = fit_pca(small, job.config.seed)
    if pca is None:
        return found
    other_small = None if others is None else thumbnails_of(others["thumbnail"])[other_rows]
    return union(
        found, hash_pairs_of_rows(pca_hash_pairs(pca, small, other_small, config.pca_radius, most), rows, other_rows)
    )
