"""Perceptual hashes of images: equal or nearly equal for copies that were only resized or compressed.

There are two hashes. The perceptual hash (`phash_views`) depends on one image only: the signs of its low frequencies
(Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010; the bits are equal to those of the
library ImageHash). `PCAHash` is fitted to a collection: the signs of the principal components of an image (DINOv2,
appendix A, removes near-exact duplicates of its raw pool with such a hash). A hash is uint64 ``(words,)``, 64 bits in
each word; the hashes of N images are ``(N, words)``.

64 bits of the perceptual hash are too few for images that look alike. A dermoscopic image is a dark spot in the middle:
of 36 million pairs of different lesions, 194 differ in at most 4 of 64 bits, but none in at most 24 of 256 bits. Fitted
bits separate better: no pair differs in at most 4 of the 64 bits of `PCAHash`. docs/curation.md states what each hash
finds.
"""

from dataclasses import dataclass
from math import isqrt

import faiss
import numpy as np
import pyarrow as pa
from PIL import Image
from scipy.fft import dctn

from dinomed.errors import DinomedError, UsageError
from dinomed.pretrain.curation.deduplication.config import BITS

_BLOCK = 4096  # rows searched at once; limits the memory of a search
THUMBNAIL = 32  # side in px
VIEWS_COLUMN = pa.binary(8 * max(BITS) // 8)  # Arrow type of `phash_views`, as big-endian bytes
THUMBNAIL_COLUMN = pa.binary(THUMBNAIL**2)  # Arrow type of a thumbnail


@dataclass(frozen=True)
class HashPairs:
    """Row `i[n]` of a first set, row `j[n]` of a second set (within one set i < j), and the number of differing bits;
    arrays int64 (P,)."""

    i: np.ndarray
    j: np.ndarray
    distance: np.ndarray

    def __len__(self) -> int:
        return len(self.i)


def phash_views(image: np.ndarray, bits: int = 256) -> np.ndarray:
    """Compute the perceptual hashes of an image in its 8 orientations: 4 rotations by 90 degrees, each also mirrored.

    The image is resized to a grey square, and the lowest frequencies of its cosine transform are compared with their
    median. Scaling, compression and brightness change few bits; a crop, a rotation or a flip changes half of them. To
    find rotated and mirrored copies, search with all 8 hashes of one of the two sets.

    Args:
        image: uint8 RGB ``(H, W, 3)``.

    Returns:
        uint64 ``(8, bits / 64)``; the first row is the hash of the image as it is.
    """
    low = _low_frequencies(image, bits)
    odd = np.where(np.arange(len(low)) % 2, -1, 1)  # mirroring changes the sign of each odd frequency
    flips = [low, low * odd, low * odd[:, None], low * odd * odd[:, None]]
    return np.stack([_pack(_signs(view)) for flip in flips for view in (flip, flip.T)])


@dataclass(frozen=True)
class PCAHash:
    """A hash fitted to a collection: the side of the mean on which an image lies along each principal component.

    Attributes:
        mean: float32 (side * side,).
        components: float32 (bits, side * side).
    """

    mean: np.ndarray
    components: np.ndarray

    def __call__(self, thumbnails: np.ndarray) -> np.ndarray:
        """Compute the hashes, uint64 ``(N, bits / 64)``, of grey images uint8 ``(N, side, side)`` (see `thumbnail`)."""
        flat = _standardised(thumbnails)
        return _pack((flat - self.mean) @ self.components.T > 0)


def fit_pca_hash(thumbnails: np.ndarray, bits: int = 64) -> PCAHash:
    """Fit a PCA hash.

    Args:
        thumbnails: grey images, uint8 ``(N, side, side)``; a sample of the collection, at least a few times `bits`.

    Raises:
        DinomedError: no more images than bits.
    """
    _check_bits(bits)
    if len(thumbnails) <= bits:
        raise DinomedError(f"a PCA hash of {bits} bits needs more than {bits} images, and there are {len(thumbnails)}")
    flat = _standardised(thumbnails)
    mean = flat.mean(axis=0)
    centred = (flat - mean).astype(np.float64)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    components = vectors[:, ::-1][:, :bits].T
    strongest = np.abs(components).argmax(axis=1)
    sign = np.sign(components[np.arange(bits), strongest])  # the sign of an eigenvector is arbitrary: fix it
    return PCAHash(mean, (components * sign[:, None]).astype(np.float32))


def thumbnail(image: np.ndarray, side: int = THUMBNAIL) -> np.ndarray:
    """Resize an image, uint8 RGB ``(H, W, 3)``, to a grey square, uint8 ``(side, side)``."""
    return np.asarray(Image.fromarray(image).convert("L").resize((side, side), Image.Resampling.LANCZOS))


def hamming_pairs(x: np.ndarray, y: np.ndarray | None = None, *, radius: int) -> HashPairs:
    """Find all pairs of hashes that differ in at most `radius` bits.

    The search is exact. With faiss it is 3 to 7 times as fast as with the popcount of NumPy: 10,000 hashes take 0.1 to
    0.2 s on one core.

    Args:
        x: uint64 (N, words).
        y: uint64 (M, words), for pairs between `x` and `y`; None: pairs within `x`, each once with i < j.

    Raises:
        UsageError: a negative radius, or one as large as the hash.
        DinomedError: hashes of different lengths.
    """
    second = x if y is None else y
    if x.shape[1] != second.shape[1]:
        raise DinomedError(f"hashes of {64 * x.shape[1]} bits cannot be compared with hashes of {64 * second.shape[1]}")
    bits = 64 * int(x.shape[1])
    if not 0 <= radius < bits:
        raise UsageError(f"the radius is {radius}; give 0 to {bits - 1} for hashes of {bits} bits")
    index = faiss.IndexBinaryFlat(bits)
    index.add(_as_bytes(second))
    parts = []
    for start in range(0, len(x), _BLOCK):
        # faiss returns distances below its radius
        limits, distance, j = index.range_search(_as_bytes(x[start : start + _BLOCK]), radius + 1)
        ends = limits.astype(np.int64)
        i = np.repeat(np.arange(start, start + len(ends) - 1), ends[1:] - ends[:-1])
        keep = np.ones(len(i), bool) if y is not None else i < j
        parts.append(np.stack([i[keep], j[keep], distance[keep].astype(np.int64)]))
    pairs = np.concatenate(parts, axis=1) if parts else np.empty((3, 0), np.int64)
    return HashPairs(*pairs[:, np.lexsort((pairs[1], pairs[0]))])


def views_of(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of type `VIEWS_COLUMN` as uint64 (N, 8, 4)."""
    return np.frombuffer(_column_bytes(column, VIEWS_COLUMN.byte_width), ">u8").astype(np.uint64).reshape(-1, 8, 4)


def thumbnails_of(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of type `THUMBNAIL_COLUMN` as uint8 (N, 32, 32)."""
    pixels = np.frombuffer(_column_bytes(column, THUMBNAIL_COLUMN.byte_width), np.uint8)
    return pixels.reshape(-1, THUMBNAIL, THUMBNAIL)


def _low_frequencies(image: np.ndarray, bits: int) -> np.ndarray:
    _check_bits(bits)
    side = isqrt(bits)
    return dctn(thumbnail(image, 4 * side).astype(np.float64))[:side, :side]


def _signs(low: np.ndarray) -> np.ndarray:
    return (low > np.median(low)).ravel()


def _standardised(thumbnails: np.ndarray) -> np.ndarray:
    """Scale each image to mean 0 and standard deviation 1, float32: the hash ignores brightness and contrast."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(flat.std(axis=1, keepdims=True), 1.0)


def _pack(signs: np.ndarray) -> np.ndarray:
    """Pack bool (..., bits) into uint64 (..., bits / 64). The first bit is the highest."""
    return np.packbits(signs, axis=-1).view(">u8").astype(np.uint64)


def _as_bytes(hashes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(hashes, np.uint64).view(np.uint8)


def _check_bits(bits: int) -> None:
    if bits not in BITS:
        raise UsageError(f"a hash cannot have {bits} bits; use {' or '.join(map(str, BITS))}")


def _column_bytes(column: pa.ChunkedArray, width: int) -> bytes:
    parts = [chunk.buffers()[1][chunk.offset * width : (chunk.offset + len(chunk)) * width] for chunk in column.chunks]
    return b"".join(part.to_pybytes() for part in parts)
