"""Which images of a pile are copies, by every means there is: content, hashes, descriptors, points.

Rows here are numbers of the pile; `slots` are numbers of those that have a descriptor.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dinomed.pretrain.curation.deduplication.hashes import BITS, HashPairs, PCAHash, fit_pca_hash, hamming_pairs
from dinomed.pretrain.curation.deduplication.thresholds import Thresholds
from dinomed.pretrain.curation.search.pairs import SimilarPairs, concatenated, distinct

_PCA_BITS = BITS[0]
_PCA_SAMPLE = 20_000


@dataclass(frozen=True)
class Contents:
    """Equal files."""

    first: np.ndarray  # int64 (N,): the row that stands for the content

    @classmethod
    def of(cls, digests: Sequence[str], rank: np.ndarray) -> "Contents":
        """`rank`: int (N,); the row of the lowest rank stands for its content, of equals the first."""
        first: dict[str, int] = {}
        for row in np.argsort(rank, kind="stable").tolist():
            first.setdefault(digests[row], row)
        return cls(np.array([first[digest] for digest in digests], np.int64))

    def edges(self) -> SimilarPairs:
        rows = np.arange(len(self.first))
        copies = rows[self.first != rows]
        return SimilarPairs(
            np.minimum(copies, self.first[copies]), np.maximum(copies, self.first[copies]),
            np.ones(len(copies), np.float32),
        )  # fmt: skip


def equal_contents(digests: Sequence[str], references: Sequence[str]) -> SimilarPairs:
    """Rows (i) that hold the same file as a reference (j, the first such)."""
    first: dict[str, int] = {}
    for row, digest in enumerate(references):
        first.setdefault(digest, row)
    found = [(row, first[digest]) for row, digest in enumerate(digests) if digest in first]
    i, j = np.array(found, np.int64).reshape(-1, 2).T
    return SimilarPairs(i, j, np.ones(len(i), np.float32))


def hash_pairs(views: np.ndarray, others: np.ndarray | None, radius: int | None, most: int) -> HashPairs:
    """Near-equal perceptual hashes: within uint64 (N, 8, 4) as the pictures stand, or of `others` (M, 8, 4) in any
    orientation. Of more than `most` images (squared) only equal hashes."""
    plain = views[:, 0]
    if radius is None:
        return HashPairs(*(np.empty(0, np.int64) for _ in range(3)))
    if len(plain) * len(plain if others is None else others) > most**2:
        return _equal_hashes(plain, others)
    if others is None:
        return hamming_pairs(plain, radius=radius)
    found = hamming_pairs(plain, others.reshape(-1, others.shape[-1]), radius=radius)
    return HashPairs(found.i, found.j // others.shape[1], found.distance)


def _equal_hashes(plain: np.ndarray, others: np.ndarray | None) -> HashPairs:
    known = {
        value.tobytes(): row for row, value in reversed(list(enumerate(plain if others is None else others[:, 0])))
    }
    found = [(row, known.get(value.tobytes(), -1)) for row, value in enumerate(plain)]
    chosen = [(i, j) if others is not None else (j, i) for i, j in found if j >= 0 and (others is not None or j < i)]
    i, j = np.array(chosen, np.int64).reshape(-1, 2).T
    return HashPairs(i, j, np.zeros(len(i), np.int64))


def fit_pca(thumbnails: np.ndarray, seed: int) -> PCAHash | None:
    """The PCA hash of a pile, of a sample of its thumbnails; None where there are too few."""
    if len(thumbnails) <= _PCA_BITS:
        return None
    if len(thumbnails) > _PCA_SAMPLE:
        rows = np.random.default_rng(seed).choice(len(thumbnails), _PCA_SAMPLE, replace=False)
        thumbnails = thumbnails[np.sort(rows)]
    return fit_pca_hash(thumbnails, _PCA_BITS)


def pca_pairs(pca: PCAHash, one: np.ndarray, other: np.ndarray | None, radius: int, most: int) -> HashPairs:
    """Near-equal PCA hashes of thumbnails (N, 32, 32), within them or towards others (M, 32, 32)."""
    hashes, others = pca(one), None if other is None else pca(other)
    if len(hashes) * len(hashes if others is None else others) > most**2:
        return _equal_hashes(hashes[:, None], None if others is None else others[:, None])
    return hamming_pairs(hashes, others, radius=radius)


def to_check(pairs: SimilarPairs, limits: Sequence[Thresholds]) -> np.ndarray:
    """Which pairs some limits need to be checked by points, bool (P,)."""
    out = np.zeros(len(pairs), bool)
    for limit in limits:
        if limit.check is not None:
            out |= (pairs.similarity > np.float32(limit.check)) & (pairs.similarity <= np.float32(limit.sure))
    return out


def are_copies(pairs: SimilarPairs, matches: np.ndarray, limit: Thresholds, least: int) -> np.ndarray:
    """Which pairs count, bool (P,). `matches`: int64 (P,), points that align; -1 where nobody looked."""
    sure = pairs.similarity > np.float32(limit.sure)
    if limit.check is None:
        return sure
    return sure | ((pairs.similarity > np.float32(limit.check)) & (matches >= least))


def union(*parts: SimilarPairs) -> SimilarPairs:
    """Each pair once."""
    return distinct(concatenated(parts))


def pairs_of(found: HashPairs, rows: np.ndarray, others: np.ndarray | None = None) -> SimilarPairs:
    """From numbers of hashes to rows; the similarity is the share of equal bits."""
    similarity = (1 - found.distance / max(BITS)).astype(np.float32)
    return SimilarPairs(rows[found.i], (rows if others is None else others)[found.j], similarity)
