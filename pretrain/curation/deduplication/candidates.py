"""Pairs of duplicates from file contents, perceptual hashes, descriptors and keypoints."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from dinomed.pretrain.curation.deduplication.hashes import BITS, HashPairs, PCAHash, fit_pca_hash, hamming_pairs
from dinomed.pretrain.curation.deduplication.thresholds import Thresholds
from dinomed.pretrain.curation.search.pairs import SimilarPairs, concatenated, distinct

_PCA_BITS = BITS[0]
_PCA_SAMPLE = 20_000


@dataclass(frozen=True)
class IdenticalFiles:
    """Images with the same file content.

    Attributes:
        first: int64 (N,), the row that represents the content of each row.
    """

    first: np.ndarray

    @classmethod
    def of(cls, digests: Sequence[str], rank: np.ndarray) -> "IdenticalFiles":
        """Group N rows by the digest of their file. The row with the lowest `rank`, int (N,), represents its content;
        of equal ranks the first row."""
        first: dict[str, int] = {}
        for row in np.argsort(rank, kind="stable").tolist():
            first.setdefault(digests[row], row)
        return cls(np.array([first[digest] for digest in digests], np.int64))

    def edges(self) -> SimilarPairs:
        """Return a pair of each represented row and its representative."""
        rows = np.arange(len(self.first))
        copies = rows[self.first != rows]
        low, high = np.minimum(copies, self.first[copies]), np.maximum(copies, self.first[copies])
        return SimilarPairs(low, high, np.ones(len(copies), np.float32))


def identical_file_pairs(digests: Sequence[str], reference_digests: Sequence[str]) -> SimilarPairs:
    """Return the pairs of a row (i) and the first reference (j) with the same file content."""
    i, j = _match_keys(digests, reference_digests)
    return SimilarPairs(i, j, np.ones(len(i), np.float32))


def phash_pairs(
    views: np.ndarray, reference_views: np.ndarray | None, radius: int | None, max_images: int
) -> HashPairs:
    """Find pairs of perceptual hashes that are nearly equal.

    Args:
        views: uint64 (N, 8, 4), as `hashes.phash_views` returns them. Only the first of the 8 is compared.
        reference_views: uint64 (M, 8, 4), for pairs with references in any of their 8 orientations; None: pairs within
            `views`.
        radius: largest number of differing bits; None: no pairs.
        max_images: for more images (more than its square of pairs) only equal hashes are found.
    """
    hashes = views[:, 0]
    if radius is None:
        return HashPairs(*(np.empty(0, np.int64) for _ in range(3)))
    if _is_too_many(hashes, reference_views, max_images):
        return _equal_hashes(hashes, None if reference_views is None else reference_views[:, 0])
    if reference_views is None:
        return hamming_pairs(hashes, radius=radius)
    pairs = hamming_pairs(hashes, reference_views.reshape(-1, reference_views.shape[-1]), radius=radius)
    return HashPairs(pairs.i, pairs.j // reference_views.shape[1], pairs.distance)


def fit_pca(thumbnails: np.ndarray, seed: int) -> PCAHash | None:
    """Fit the PCA hash of a pool to a sample of its thumbnails. Return None if there are too few."""
    if len(thumbnails) <= _PCA_BITS:
        return None
    if len(thumbnails) > _PCA_SAMPLE:
        rows = np.random.default_rng(seed).choice(len(thumbnails), _PCA_SAMPLE, replace=False)
        thumbnails = thumbnails[np.sort(rows)]
    return fit_pca_hash(thumbnails, _PCA_BITS)


def pca_hash_pairs(
    pca: PCAHash, thumbnails: np.ndarray, reference_thumbnails: np.ndarray | None, radius: int, max_images: int
) -> HashPairs:
    """Find pairs of PCA hashes that are nearly equal.

    Args:
        thumbnails: uint8 (N, 32, 32).
        reference_thumbnails: uint8 (M, 32, 32), for pairs with references; None: pairs within `thumbnails`.
        radius: as in `phash_pairs`; max_images: as in `phash_pairs`.
    """
    hashes = pca(thumbnails)
    reference_hashes = None if reference_thumbnails is None else pca(reference_thumbnails)
    if _is_too_many(hashes, reference_hashes, max_images):
        return _equal_hashes(hashes, reference_hashes)
    return hamming_pairs(hashes, reference_hashes, radius=radius)


def hash_pairs_of_rows(pairs: HashPairs, rows: np.ndarray, reference_rows: np.ndarray | None = None) -> SimilarPairs:
    """Replace positions of hashes by rows. The similarity is the share of equal bits."""
    similarity = (1 - pairs.distance / max(BITS)).astype(np.float32)
    return SimilarPairs(rows[pairs.i], (rows if reference_rows is None else reference_rows)[pairs.j], similarity)


def needs_check(pairs: SimilarPairs, limits: Sequence[Thresholds]) -> np.ndarray:
    """Return which pairs must be verified by keypoints for any of the limits, bool (P,)."""
    out = np.zeros(len(pairs), bool)
    for limit in limits:
        if limit.check is not None:
            out |= (pairs.similarity > np.float32(limit.check)) & (pairs.similarity <= np.float32(limit.sure))
    return out


def is_duplicate(pairs: SimilarPairs, matches: np.ndarray, limit: Thresholds, min_matches: int) -> np.ndarray:
    """Return which pairs are near-duplicates, bool (P,).

    Args:
        matches: int64 (P,), matching keypoints; -1 for pairs that were not verified.
    """
    sure = pairs.similarity > np.float32(limit.sure)
    if limit.check is None:
        return sure
    return sure | ((pairs.similarity > np.float32(limit.check)) & (matches >= min_matches))


def union(*parts: SimilarPairs) -> SimilarPairs:
    """Return each pair once, sorted. Of equal pairs the similarity of the first is kept."""
    return distinct(concatenated(parts))


def _is_too_many(hashes: np.ndarray, references: np.ndarray | None, max_images: int) -> bool:
    return len(hashes) * len(hashes if references is None else references) > max_images**2


def _equal_hashes(hashes: np.ndarray, reference_hashes: np.ndarray | None) -> HashPairs:
    """Return the pairs of each hash, uint64 (N, words), and the first hash that is equal to it."""
    keys = [value.tobytes() for value in hashes]
    if reference_hashes is None:
        j, i = _match_keys(keys, keys)
        i, j = i[i < j], j[i < j]
    else:
        i, j = _match_keys(keys, [value.tobytes() for value in reference_hashes])
    return HashPairs(i, j, np.zeros(len(i), np.int64))


def _match_keys(keys: Sequence[Hashable], reference_keys: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Return the position of each key that is in `reference_keys`, and its first position there, int64 (P,) each."""
    first: dict[Hashable, int] = {}
    for position, key in enumerate(reference_keys):
        first.setdefault(key, position)
    matches = [(position, first[key]) for position, key in enumerate(keys) if key in first]
    i, j = np.array(matches, np.int64).reshape(-1, 2).T
    return i, j
