"""Short hashes of what a picture looks like: equal or nearly so for copies that were only resized or compressed.

Two of them. `phash` needs nothing but the picture: the signs of its low frequencies (Zauner, "Implementation and
benchmarking of perceptual image hash functions", 2010; the bits are those of the library ImageHash). `PCAHash` is
fitted to a collection: the signs of its principal components (DINOv2, appendix A, drops near-exact duplicates of its
raw pool so). Hashes are uint64 ``(words,)``, or ``(N, words)`` for N pictures; 64 bits a word.

64 bits of `phash` are few for pictures that are all alike. Dermoscopy is a dark spot in the middle: of 36 million pairs
of different lesions 194 are at most 4 of 64 bits apart, but none 24 of 256. Fitted bits say more: none is 4 of 64 bits
of `PCAHash` apart. See docs/curation.md for what each finds.
"""

from dataclasses import dataclass
from math import isqrt

import faiss
import numpy as np
from PIL import Image
from scipy.fft import dctn

from dinomed.errors import DinomedError, UsageError

BITS = (64, 256)
_BLOCK = 4096  # rows of a search at once: bounds what is found and not yet kept
THUMBNAIL = 32


@dataclass(frozen=True)
class HashPairs:
    """Row `i[n]` of a first set, `j[n]` of a second (or the same, then i < j), and the number of bits that differ."""

    i: np.ndarray  # int64 (P,)
    j: np.ndarray  # int64 (P,)
    distance: np.ndarray  # int64 (P,)

    def __len__(self) -> int:
        return len(self.i)


def phash(image: np.ndarray, bits: int = 256) -> np.ndarray:
    """The perceptual hash of a picture, uint8 RGB ``(H, W, 3)``: uint64 ``(bits / 64,)``.

    The picture is squashed to a gray square, and of its cosine transform the lowest frequencies are compared with their
    median. Scaling, compression and brightness change few bits; a crop, a rotation or a flip changes half of them.
    """
    return _pack(_signs(_low_frequencies(image, bits)))


def phash_views(image: np.ndarray, bits: int = 256) -> np.ndarray:
    """The hashes of the picture in its 8 orientations (4 turns, each mirrored too): uint64 ``(8, bits / 64)``.

    The first is `phash`. To find turned and mirrored copies, search with all 8 of one side.
    """
    low = _low_frequencies(image, bits)
    odd = np.where(np.arange(len(low)) % 2, -1, 1)  # mirroring changes the sign of every odd frequency
    flips = [low, low * odd, low * odd[:, None], low * odd * odd[:, None]]
    return np.stack([_pack(_signs(view)) for flip in flips for view in (flip, flip.T)])


def canonical_phash(image: np.ndarray, bits: int = 256) -> np.ndarray:
    """The smallest of `phash_views`: one hash for all orientations of the same pixels, uint64 ``(bits / 64,)``.

    An eighth of the search with all views, at a price: where a copy's few changed bits make another view the smallest,
    the two hashes have nothing in common (64 bits, radius 4, real lesions: 91 of 100 JPEG copies found instead of 100).
    """
    return min(phash_views(image, bits), key=tuple)


@dataclass(frozen=True)
class PCAHash:
    """A hash fitted to a collection: on which side of the mean a picture lies along each principal component."""

    mean: np.ndarray  # float32 (side * side,)
    components: np.ndarray  # float32 (bits, side * side)

    def __call__(self, thumbnails: np.ndarray) -> np.ndarray:
        """Gray pictures, uint8 ``(N, side, side)`` as `thumbnail` makes them, to uint64 ``(N, bits / 64)``."""
        flat = _standardised(thumbnails)
        return _pack((flat - self.mean) @ self.components.T > 0)


def fit_pca_hash(thumbnails: np.ndarray, bits: int = 64) -> PCAHash:
    """Fit to gray pictures, uint8 ``(N, side, side)``: a sample of the collection, a few times `bits` at least.

    Raises:
        DinomedError: fewer pictures than bits.
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
    sign = np.sign(components[np.arange(bits), strongest])  # eigenvectors have none of their own
    return PCAHash(mean, (components * sign[:, None]).astype(np.float32))


def thumbnail(image: np.ndarray, side: int = THUMBNAIL) -> np.ndarray:
    """A picture, uint8 RGB ``(H, W, 3)``, squashed to gray, uint8 ``(side, side)``."""
    return np.asarray(Image.fromarray(image).convert("L").resize((side, side), Image.Resampling.LANCZOS))


def hamming_pairs(x: np.ndarray, y: np.ndarray | None = None, *, radius: int) -> HashPairs:
    """All pairs of hashes at most `radius` bits apart, within `x` (each once, i < j) or between `x` and `y`.

    Exact (faiss: 3 to 7 times as fast as NumPy's popcount, one core, 10,000 hashes in 0.1 to 0.2 s).

    Args:
        x: uint64 (N, words); y: (M, words).

    Raises:
        UsageError: a radius that is negative or as large as the hash.
        DinomedError: hashes of different lengths.
    """
    other = x if y is None else y
    if x.shape[1] != other.shape[1]:
        raise DinomedError(f"hashes of {64 * x.shape[1]} bits against others of {64 * other.shape[1]}")
    if not 0 <= radius < 64 * x.shape[1]:
        raise UsageError(f"radius {radius}: expected 0 to {64 * x.shape[1] - 1} for hashes of {64 * x.shape[1]} bits")
    index = faiss.IndexBinaryFlat(64 * int(x.shape[1]))
    index.add(_bytes(other))
    parts = []
    for start in range(0, len(x), _BLOCK):
        limits, distance, j = index.range_search(_bytes(x[start : start + _BLOCK]), radius + 1)  # it means "below"
        ends = limits.astype(np.int64)
        i = np.repeat(np.arange(start, start + len(ends) - 1), ends[1:] - ends[:-1])
        keep = np.ones(len(i), bool) if y is not None else i < j
        parts.append(np.stack([i[keep], j[keep], distance[keep].astype(np.int64)]))
    found = np.concatenate(parts, axis=1) if parts else np.empty((3, 0), np.int64)
    return HashPairs(*found[:, np.lexsort((found[1], found[0]))])


def to_hex(hashes: np.ndarray) -> list[str]:
    """uint64 ``(N, words)`` as hexadecimal text, 16 digits a word, as ImageHash prints them."""
    return [row.tobytes().hex() for row in hashes.astype(">u8")]


def from_hex(texts: list[str]) -> np.ndarray:
    """Back from `to_hex`: uint64 (N, words)."""
    return np.array([np.frombuffer(bytes.fromhex(text), ">u8") for text in texts], np.uint64)


def _low_frequencies(image: np.ndarray, bits: int) -> np.ndarray:
    _check_bits(bits)
    side = isqrt(bits)
    return dctn(thumbnail(image, 4 * side).astype(np.float64))[:side, :side]


def _signs(low: np.ndarray) -> np.ndarray:
    return (low > np.median(low)).ravel()


def _standardised(thumbnails: np.ndarray) -> np.ndarray:
    """Rows of mean 0 and spread 1, float32: brightness and contrast are no part of the hash."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(flat.std(axis=1, keepdims=True), 1.0)


def _pack(signs: np.ndarray) -> np.ndarray:
    """bool (..., bits) -> uint64 (..., bits / 64), the first bit the highest."""
    return np.packbits(signs, axis=-1).view(">u8").astype(np.uint64)


def _bytes(hashes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(hashes, np.uint64).view(np.uint8)


def _check_bits(bits: int) -> None:
    if bits not in BITS:
        raise UsageError(f"a hash of {bits} bits: expected {' or '.join(map(str, BITS))}")
