"""Deduplication stage: near-duplicates of excluded images are dropped, and one image of each duplicate group is kept.

Steps: describe the images; find pairs by file content, hashes and descriptors, and verify them by keypoints; drop what
is connected to excluded images; keep one image of each duplicate group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dinomed.datasets.manifest import Manifest
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
)
from dinomed.pretrain.curation.deduplication.components import components, order_by, representatives
from dinomed.pretrain.curation.deduplication.config import DuplicatesConfig
from dinomed.pretrain.curation.deduplication.exclusion import GROUP, LINKED, NEAR, exclude
from dinomed.pretrain.curation.deduplication.hashes import thumbnails_of, views_of
from dinomed.pretrain.curation.deduplication.pair_check import check_pairs
from dinomed.pretrain.curation.deduplication.thresholds import Thresholds, choose_thresholds
from dinomed.pretrain.curation.descriptors.config import DescriptorConfig
from dinomed.pretrain.curation.descriptors.stage import REFERENCE_VECTORS, Vectors, describe_images
from dinomed.pretrain.curation.descriptors.stage import STAGE as DESCRIBE
from dinomed.pretrain.curation.runtime.context import VECTORS, CurationContext
from dinomed.pretrain.curation.runtime.images import absolute_name
from dinomed.pretrain.curation.search.config import SearchConfig
from dinomed.pretrain.curation.search.pairs import SimilarPairs, no_pairs
from dinomed.pretrain.curation.search.stage import VectorFile, search_pairs
from dinomed.pretrain.curation.search.vectors import similarity_of

_REFERENCES_PER_IMAGE = 4  # excluded images that are compared with an image of the pool, at most
_EXCLUSION_REASONS = {NEAR: EXCLUDED_COPY, GROUP: EXCLUDED_GROUP, LINKED: EXCLUDED_LINK}
_COPY_REASONS = {"exact": EXACT_COPY, "hash": NEAR_EXACT_COPY, "descriptor": NEAR_COPY}


@dataclass(frozen=True)
class DuplicateLinks:
    """Near-duplicates of the N images of a pool; arrays of (N,) as in `output.read.ROWS`.

    Attributes:
        component: int64, the duplicate group: its lowest row.
        duplicate_of: int64, the row that is kept instead; -1 for none.
        reference: int64, the excluded image that a dropped image is a near-duplicate of; -1 for none.
        similarity: float32, cosine to the kept or excluded image, else nan.
        how: `exact`, `hash` or `descriptor` for near-duplicates, else None.
        record: for the summary.
    """

    component: np.ndarray
    duplicate_of: np.ndarray
    reference: np.ndarray
    similarity: np.ndarray
    how: np.ndarray
    vectors: Vectors
    record: dict[str, Any]


@dataclass(frozen=True)
class DescribedImages:
    """Images of the pool, or excluded images, that have a descriptor.

    Attributes:
        measures: the table of the image pass, a row for each image of the manifest.
        rows: int64 (n,), ascending: the rows of the manifest that have a descriptor.
        vectors: float32 (n, D), their descriptors; vector_file: the same.
    """

    manifest: Manifest
    measures: pa.Table
    rows: np.ndarray
    vectors: np.ndarray
    vector_file: VectorFile

    @property
    def views(self) -> np.ndarray:
        """Perceptual hashes in 8 orientations, uint64 (n, 8, 4)."""
        return views_of(self.measures["views"])[self.rows]

    @property
    def thumbnails(self) -> np.ndarray:
        """Grey thumbnails, uint8 (n, 32, 32)."""
        return thumbnails_of(self.measures["thumbnail"])[self.rows]


@dataclass(frozen=True)
class PoolPairs:
    """Pairs of rows of the pool. `matches`, int64 (P,), counts the matching keypoints of `near`; -1: not verified."""

    identical: SimilarPairs
    hashed: SimilarPairs
    near: SimilarPairs
    matches: np.ndarray

    def duplicates(self, limit: Thresholds, min_matches: int) -> SimilarPairs:
        """Return the pairs that are duplicates at the thresholds `limit`, each once."""
        near = self.near.take(is_duplicate(self.near, self.matches, limit, min_matches))
        return union(self.identical, self.hashed, near)


def link_duplicates(
    context: CurationContext, measures: pa.Table, reference_measures: pa.Table | None, decisions: Decisions,
    descriptor: DescriptorConfig, duplicates: DuplicatesConfig, search: SearchConfig,
) -> DuplicateLinks:  # fmt: skip
    """Find near-duplicates and drop them from `decisions`.

    Excluded images are compared first. The result is the same as after deduplication within the pool, because all
    near-duplicates of an image are in one component with it and are dropped together.

    Args:
        measures: the table of the image pass, a row for each image of the pool.
        reference_measures: the same for the excluded images; None if there are none.
    """
    pool = context.pool
    kept = decisions.kept
    digests = pool.manifest.column("sha256")
    identical = IdenticalFiles.of(digests, np.where(kept, np.where(pool.is_query, 0, 1), 2))
    rows = np.flatnonzero(kept & (identical.first == np.arange(len(pool))))
    reference_rows = np.empty(0, np.int64)
    if reference_measures is not None:
        reference_rows = np.flatnonzero(is_none(reference_measures["problem"].to_pylist()))
    vectors, reference_vectors, record = describe_images(context, descriptor, rows, reference_rows)
    kept_rows = np.flatnonzero(kept)
    vectors.slot[kept_rows] = vectors.slot[identical.first[kept_rows]]
    images = DescribedImages(pool.manifest, measures, rows, vectors.x, _vector_file(context, VECTORS, vectors.x))
    references = None
    if reference_vectors is not None and pool.references is not None and reference_measures is not None:
        file = _vector_file(context, REFERENCE_VECTORS, reference_vectors)
        references = DescribedImages(pool.references, reference_measures, reference_rows, reference_vectors, file)

    within, excluded = choose_thresholds(duplicates, descriptor.source.kind)
    limits = [within] if references is None else [within, excluded]
    near, matches = _find_near_pairs(context, search, images, None, duplicates.k, limits)
    hashed = _find_hash_pairs(images, None, duplicates, context.seed)
    pairs = PoolPairs(identical.edges(), hashed, near, matches)
    links = DuplicateLinks(
        component=np.arange(len(pool)), duplicate_of=np.full(len(pool), -1, np.int64),
        reference=np.full(len(pool), -1, np.int64), similarity=np.full(len(pool), np.nan, np.float32),
        how=np.full(len(pool), None, object), vectors=vectors,
        record=record | {
            "threshold": within.sure, "check_from": within.check, "exclude_threshold": excluded.sure,
            "exclude_check_from": excluded.check, "k": duplicates.k,
        },
    )  # fmt: skip
    if pool.references is not None:
        _drop_excluded(context, search, duplicates, decisions, images, references, pairs, excluded, links)
    rank = _preference(context, duplicates.rule, measures, decisions)
    _keep_one_of_each_group(decisions, digests, pool.is_query, pairs, within, duplicates.min_matches, rank, links)
    return links


def _vector_file(context: CurationContext, name: str, vectors: np.ndarray) -> VectorFile:
    cache = context.cache(DESCRIBE)
    return VectorFile(absolute_name(cache.path(name)), cache.read_key(name), len(vectors))


def _find_near_pairs(
    context: CurationContext, search: SearchConfig, images: DescribedImages, references: DescribedImages | None, k: int,
    limits: Sequence[Thresholds],
) -> tuple[SimilarPairs, np.ndarray]:  # fmt: skip
    """Find pairs by descriptor, and verify those between the thresholds by keypoints.

    Returns:
        Pairs of rows, and the matching keypoints of each, int64 (P,); -1: not verified.
    """
    name, description, reference_file = "pool", "copies in the pool", None
    if references is not None:
        name, description, reference_file = "excluded", "copies of excluded images", references.vector_file
    pairs = search_pairs(
        context, search, f"search-{name}", images.vector_file, reference_file, k=k,
        threshold=min(limit.lowest for limit in limits), description=description,
    )  # fmt: skip
    partners = references or images
    pairs = SimilarPairs(images.rows[pairs.i], partners.rows[pairs.j], pairs.similarity)
    is_checked = needs_check(pairs, limits)
    return pairs, check_pairs(context, f"check-{name}", pairs, images.manifest, partners.manifest, is_checked)


def _find_hash_pairs(
    images: DescribedImages, references: DescribedImages | None, config: DuplicatesConfig, seed: int
) -> SimilarPairs:
    """Find pairs of rows by perceptual hashes. The hashes are small and compared all at once."""
    reference_rows = None if references is None else references.rows
    reference_views = None if references is None else references.views
    by_phash = phash_pairs(images.views, reference_views, config.hash_radius, config.hashes_up_to)
    pairs = hash_pairs_of_rows(by_phash, images.rows, reference_rows)
    if config.pca_radius is None:
        return pairs
    thumbnails = images.thumbnails
    pca = fit_pca(thumbnails, seed)
    if pca is None:
        return pairs
    reference_thumbnails = None if references is None else references.thumbnails
    by_pca = pca_hash_pairs(pca, thumbnails, reference_thumbnails, config.pca_radius, config.hashes_up_to)
    return union(pairs, hash_pairs_of_rows(by_pca, images.rows, reference_rows))


def _drop_excluded(
    context: CurationContext, search: SearchConfig, config: DuplicatesConfig, decisions: Decisions,
    images: DescribedImages, references: DescribedImages | None, pool_pairs: PoolPairs, limit: Thresholds,
    links: DuplicateLinks,
) -> None:  # fmt: skip
    """Drop images that are connected to excluded images, and note the excluded image in `links`."""
    pool = context.pool
    assert pool.references is not None
    identical = identical_file_pairs(images.manifest.column("sha256"), pool.references.column("sha256"))
    near = hashed = no_pairs()
    if references is not None:
        near, matches = _find_near_pairs(context, search, images, references, _REFERENCES_PER_IMAGE, [limit])
        near = near.take(is_duplicate(near, matches, limit, config.min_matches))
        hashed = _find_hash_pairs(images, references, config, context.seed)
        i, j = np.searchsorted(images.rows, hashed.i), np.searchsorted(references.rows, hashed.j)
        hashed = SimilarPairs(hashed.i, hashed.j, similarity_of(images.vectors, references.vectors, i, j))
    exclusion = exclude(
        len(pool), pool_pairs.duplicates(limit, config.min_matches), union(identical, hashed, near),
        groups=pool.groups, reference_groups=pool.reference_groups,
    )  # fmt: skip
    for value, reason in _EXCLUSION_REASONS.items():
        decisions.drop(exclusion.reason == value, reason)
    copies = np.flatnonzero(np.equal(decisions.reason, EXCLUDED_COPY))
    links.reference[copies] = exclusion.reference[copies]
    links.similarity[copies] = exclusion.similarity[copies]
    identical_set = set(zip(identical.i, identical.j, strict=True))
    hashed_set = set(zip(hashed.i, hashed.j, strict=True))
    for row in copies.tolist():
        pair = (row, links.reference[row])
        links.how[row] = "exact" if pair in identical_set else "hash" if pair in hashed_set else "descriptor"


def _keep_one_of_each_group(
    decisions: Decisions, digests: Sequence[str], is_query: np.ndarray, pairs: PoolPairs, limit: Thresholds,
    min_matches: int, rank: np.ndarray, links: DuplicateLinks,
) -> None:  # fmt: skip
    """Drop all images of each duplicate group but the preferred one, and query images never; note it in `links`."""
    count = len(digests)
    edges = pairs.duplicates(limit, min_matches)
    links.component[:] = components(count, edges.i, edges.j)
    near_exact = union(pairs.identical, pairs.hashed)
    near_exact_component = components(count, near_exact.i, near_exact.j)
    representative = representatives(links.component, rank)
    is_copy = (representative != np.arange(count)) & decisions.kept[representative]
    copies = np.flatnonzero(decisions.kept & ~is_query & is_copy)
    kept = representative[copies]
    links.duplicate_of[copies] = kept
    x, slot = links.vectors.x, links.vectors.slot
    links.similarity[copies] = similarity_of(x, x, slot[copies], slot[kept])
    for row, kept_row in zip(copies.tolist(), kept.tolist(), strict=True):
        is_near_exact = near_exact_component[row] == near_exact_component[kept_row]
        is_exact = digests[row] == digests[kept_row]
        links.how[row] = "exact" if is_exact else "hash" if is_near_exact else "descriptor"
    for how, reason in _COPY_REASONS.items():
        decisions.drop(copies[np.equal(links.how[copies], how)], reason)


def _preference(
    context: CurationContext, rule: tuple[str, ...], measures: pa.Table, decisions: Decisions
) -> np.ndarray:
    """Rank the images of the pool: kept images first, then query images, then by the configured rule."""
    manifest = context.pool.manifest
    labels = manifest.column("label") if manifest.has("label") else [None] * len(manifest)
    columns: dict[str, Any] = {
        "kept": decisions.kept,
        "query": context.pool.is_query,
        "labelled": [label is not None for label in labels],
        "area": np.array(manifest.column("width"), np.float64) * np.array(manifest.column("height"), np.float64),
        "sharpness": measures["sharpness"].to_numpy(),
        "path": manifest.column("image"),
    }
    return order_by(columns, ("-kept", "-query", *rule))
