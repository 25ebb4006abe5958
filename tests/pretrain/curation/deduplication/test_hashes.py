"""Perceptual hashes: bits of ImageHash, symmetries, search against brute force, copies of real images."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinomed.errors import DinomedError, UsageError
from dinomed.images.read import read_image
from dinomed.pretrain.curation.deduplication.hashes import (
    HashPairs,
    fit_pca_hash,
    hamming_pairs,
    phash_views,
    thumbnail,
)
from dinomed.pretrain.curation.descriptors.synthetic_copies import make_copy

# `str(imagehash.phash(image, hash_size=8))`, and 16, of ImageHash 4.3 for the image that `pattern` draws
IMAGEHASH = {
    64: "800f3e7873676c4d",
    256: "80190fe33e1f78f0738f67366ce84d935b6e52d856a1b553aac4ac8869936b32",
}


def pattern() -> np.ndarray:
    y, x = np.mgrid[:90, :120]
    return np.stack([(x * 2) % 256, (y * x // 7) % 256, (x * x + 3 * y) // 9 % 256], axis=-1).astype(np.uint8)


def phash(image: np.ndarray, bits: int = 256) -> np.ndarray:
    """The hash of an image in its own orientation."""
    return phash_views(image, bits)[0]


def differ(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Number of differing bits, counted one by one."""
    bits = np.unpackbits((x ^ y).view(np.uint8).reshape(*np.broadcast_shapes(x.shape, y.shape), 8), axis=-1)
    return bits.sum(axis=(-1, -2))


@pytest.mark.parametrize("bits", IMAGEHASH)
def test_the_bits_are_those_of_imagehash(bits: int) -> None:
    assert phash(pattern(), bits).astype(">u8").tobytes().hex() == IMAGEHASH[bits]


@pytest.mark.parametrize("bits", [64, 256])
def test_views_are_the_hashes_of_the_rotated_images(bits: int) -> None:
    image = pattern()
    views = phash_views(image, bits)
    assert views.shape == (8, bits // 64)
    for turned in (np.rot90(flip, k) for flip in (image, image[:, ::-1]) for k in range(4)):
        # resampling rounds to whole grey levels, in another order for a rotated image: a bit at the median may change
        assert differ(views, phash(np.ascontiguousarray(turned), bits)).min() <= bits // 32


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(1, 60), st.integers(0, 40), st.sampled_from([1, 4]), st.integers(0, 63),
    st.booleans(),
)  # fmt: skip
def test_pairs_are_those_of_brute_force(seed: int, n: int, m: int, words: int, radius: int, within: bool) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, (4, words), dtype=np.uint64)
    noise = rng.integers(0, 2**64, (n + m, words), dtype=np.uint64)
    for _ in range(3):  # few bits, so that there are pairs at many distances
        noise &= rng.integers(0, 2**64, (n + m, words), dtype=np.uint64)
    every = centres[rng.integers(4, size=n + m)] ^ noise
    x, y = every[:n], (None if within else every[n:])
    distance = differ(x[:, None], (x if y is None else y)[None]) if y is None or len(y) else np.empty((n, 0))
    expected = np.argwhere(distance <= radius)
    if within:
        expected = expected[expected[:, 0] < expected[:, 1]]
    pairs = hamming_pairs(x, y, radius=radius)
    assert np.stack([pairs.i, pairs.j], axis=1).tolist() == expected.tolist()
    assert pairs.distance.tolist() == [distance[i, j] for i, j in expected]


def test_hashes_that_cannot_be_compared_are_an_error() -> None:
    short, long = np.zeros((2, 1), np.uint64), np.zeros((2, 4), np.uint64)
    with pytest.raises(DinomedError, match="64 bits cannot be compared with hashes of 256"):
        hamming_pairs(short, long, radius=1)
    for radius in (-1, 64):
        with pytest.raises(UsageError, match="give 0 to 63"):
            hamming_pairs(short, radius=radius)
    with pytest.raises(UsageError, match="use 64 or 256"):
        phash(pattern(), 128)
    with pytest.raises(DinomedError, match="more than 64 images"):
        fit_pca_hash(np.zeros((64, 8, 8), np.uint8))


def test_pca_bits_are_the_sides_of_the_principal_components() -> None:
    """Compared with scikit-learn, which fixes the sign of a component in another way."""
    from sklearn.decomposition import PCA

    gray = np.random.default_rng(0).integers(0, 256, (300, 12, 12)).astype(np.uint8)
    gray[:, :6] //= 2  # some directions are wider than others
    hashes = fit_pca_hash(gray)(gray)
    flat = gray.reshape(300, -1).astype(np.float64)
    flat = (flat - flat.mean(1, keepdims=True)) / flat.std(1, keepdims=True)
    theirs = PCA(64, svd_solver="full").fit_transform(flat) > 0
    ours = np.unpackbits(hashes.astype(">u8").view(np.uint8).reshape(300, 8), axis=1).astype(bool)
    agreement = (ours == theirs).mean(axis=0)
    # float32 projections: a value within 1e-6 of zero may fall on either side
    assert np.maximum(agreement, 1 - agreement).min() > 0.99


def test_the_hashes_ignore_brightness_and_contrast() -> None:
    image = (pattern() // 2 + 40).astype(np.uint8)
    brighter = (image * 1.3 + 20).astype(np.uint8)
    assert differ(phash(image), phash(brighter)) <= 8  # of 256: rounding to grey levels
    grays = np.random.default_rng(0).integers(0, 120, (200, 8, 8)).astype(np.uint8)
    pca = fit_pca_hash(grays)
    assert (pca(grays) == pca(grays * 2)).mean() > 0.95


@pytest.mark.data
def test_copies_of_real_lesions_are_near_and_other_lesions_are_not(real_data: Path) -> None:
    paths = sorted((real_data / "dermoscopy" / "images").glob("*.jpg"))[:600:2]
    images = [read_image(path) for path in paths]
    hashes = np.stack([phash(image) for image in images])
    assert len(hamming_pairs(hashes, radius=24)) == 0
    pca = fit_pca_hash(np.stack([thumbnail(image) for image in images]))
    for kind, least in (("jpeg", 0.85), ("rescale", 0.95), ("blur", 0.95), ("brightness", 0.9)):
        copies = [make_copy(image, kind, np.random.default_rng(i)) for i, image in enumerate(images[:40])]
        near = hamming_pairs(np.stack([phash(copy) for copy in copies]), hashes, radius=24)
        assert _recall(near) >= least, kind
        assert (near.i == near.j).all(), kind
        small = np.stack([thumbnail(image) for image in images])
        fitted = hamming_pairs(pca(np.stack([thumbnail(copy) for copy in copies])), pca(small), radius=4)
        assert _recall(fitted) >= least, kind
    turned = [phash_views(make_copy(image, "turn", np.random.default_rng(i))) for i, image in enumerate(images[:40])]
    near = hamming_pairs(np.concatenate(turned), hashes, radius=24)
    assert {*(near.i // 8).tolist()} == set(range(40))
    assert (near.i // 8 == near.j).all()


def _recall(near: HashPairs) -> float:
    return int((near.i == near.j).sum()) / 40
