"""Audit: finds test images that are in a training set, as exact copies, near-duplicates or shared groups.

Hashes and descriptors compare all pairs and propose near-duplicates; each proposal is checked by aligned keypoints. A
threshold alone would give many false alarms or misses among millions of pairs of similar images. The training index of
a run (`index.parquet`) holds no images, so only hashes can be compared with it.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from dinomed.config import Config
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.pixels import read_picture
from dinomed.errors import UsageError
from dinomed.features.neighbors import nearest
from dinomed.images.read import UnreadableImage
from dinomed.pretrain.curation.audit.hashed_images import HASH_BITS, HashedImages, hash_images
from dinomed.pretrain.curation.audit.training_index import TrainingIndex, hash_group
from dinomed.pretrain.curation.deduplication.config import MIN_MATCHES
from dinomed.pretrain.curation.deduplication.hashes import hamming_pairs
from dinomed.pretrain.curation.deduplication.pair_check import match_pairs
from dinomed.pretrain.curation.descriptors.config import MIN_FIT_IMAGES, DescriptorConfig
from dinomed.pretrain.curation.descriptors.descriptor import Descriptor, fit_descriptor
from dinomed.progress import bar

Kind = Literal["exact", "near", "group"]
KINDS: tuple[Kind, ...] = ("exact", "near", "group")
_MIN_CHECKED = 400  # pairs that are checked at any similarity if there are few test images: half a minute


class AuditConfig(Config):
    """Settings of the audit. The defaults were measured on real dermoscopy (docs/curation.md)."""

    descriptor: DescriptorConfig = Field(DescriptorConfig(), description="descriptor by which images are compared")
    near: bool = Field(True, description="compare images; else content hashes and groups only")
    groups: bool = Field(True, description="report patients, lesions or videos that are on both sides")
    hash_radius: int = Field(
        24, ge=0, lt=HASH_BITS, description=f"of {HASH_BITS} bits, in any orientation: a near-duplicate without a check"
    )
    min_similarity: float = Field(0.5, ge=-1, le=1, description="cosine from which a pair is checked")
    candidates: int = Field(8, ge=1, description="maximum number of training images checked per test image")
    always_checked: int = Field(
        2, ge=0, description="this number of the most similar ones is checked at any similarity"
    )
    min_matches: int = Field(MIN_MATCHES, ge=4, description="keypoints that must align")


@dataclass(frozen=True)
class LeakedPair:
    """A test image and the training image that it duplicates or shares a group with."""

    kind: Kind
    train: int | None  # row of the training manifest; None if only its hash is known
    test: int  # row of the test manifest
    similarity: float | None = None  # cosine of the descriptors; 1 for exact copies
    distance: int | None = None  # bits of the perceptual hash, in the nearest orientation
    matches: int | None = None  # keypoints that align
    group: str | None = None


@dataclass(frozen=True)
class Audit:
    """Result of an audit. `pairs` are sorted by kind, then by similarity. The `unreadable` test images were compared by
    their content hash alone."""

    pairs: list[LeakedPair]
    train_images: int
    test_images: int
    unreadable: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Number of pairs of each kind."""
        return {kind: sum(pair.kind == kind for pair in self.pairs) for kind in KINDS}

    @property
    def leaked(self) -> int:
        """Number of test images that are in any pair."""
        return len({pair.test for pair in self.pairs})


def audit(
    train: Manifest,
    test: Manifest,
    config: AuditConfig | None = None,
    *,
    device: str = "auto",
    workers: int | None = None,
    cache: Path | None = None,
) -> Audit:
    """Find every leak between two manifests.

    Args:
        device: of networks: auto, cpu, cuda.
        workers: threads; None for one per processor.
        cache: folder for computed hashes and descriptors, so that an interrupted audit can continue.

    Raises:
        UsageError: a manifest has no images.
    """
    config = config or AuditConfig()
    for manifest, name in ((train, "training"), (test, "test")):
        if not len(manifest):
            raise UsageError(f"the {name} set has no images")
    pairs = _exact(train.column("sha256"), test.column("sha256"))
    notes: list[str] = []
    unreadable = 0
    if config.near:
        descriptor = _descriptor(train, test, config, device, workers)
        if descriptor is None:
            notes.append(
                f"fewer than {MIN_FIT_IMAGES} images to fit a descriptor: near-duplicates were searched by hash alone"
            )
        sides = []
        for manifest, what in ((train, "training images"), (test, "test images")):
            sides.append(hash_images(manifest, descriptor, cache=cache, workers=workers, description=what))
        unreadable = int((~sides[1].readable).sum())
        exact = {(pair.train, pair.test) for pair in pairs}
        proposed = _propose(sides[0], sides[1], config, descriptor is not None)
        proposed = [pair for pair in proposed if (pair.train, pair.test) not in exact]
        pairs += _check(train, test, proposed, config, workers)
    if config.groups:
        pairs += _shared_groups(train.groups(), test.groups(), pairs)
    return Audit(_sorted(pairs), len(train), len(test), unreadable, notes)


def audit_training_index(
    index: TrainingIndex, test: Manifest, config: AuditConfig | None = None, *, workers: int | None = None
) -> Audit:
    """Find every leak between the training images of a run and a manifest, by hashes alone.

    Raises:
        UsageError: the manifest has no images.
    """
    config = config or AuditConfig()
    if not len(test):
        raise UsageError("the test set has no images")
    pairs = [LeakedPair("exact", None, pair.test, 1.0, 0) for pair in _exact(index.sha256, test.column("sha256"))]
    unreadable = 0
    if config.near:
        images = hash_images(test, workers=workers, description="test images")
        unreadable = int((~images.readable).sum())
        exact = {pair.test for pair in pairs}
        known = np.flatnonzero(index.readable)
        best = _nearest_by_hash(index.hashes[known], images, config.hash_radius)
        least: dict[int, int] = {}
        for (_, row), distance in best.items():
            least[row] = min(distance, least.get(row, HASH_BITS))
        pairs += [LeakedPair("near", None, row, None, bits) for row, bits in least.items() if row not in exact]
    if config.groups:
        known_groups = {group for group in index.groups if group is not None}
        reported = {pair.test for pair in pairs}
        for row, group in enumerate(test.groups()):
            if group is not None and row not in reported and hash_group(group, index.salt) in known_groups:
                pairs.append(LeakedPair("group", None, row, group=group))
    notes = ["compared with hashes of the training images: cropped and rotated copies are not found"]
    return Audit(_sorted(pairs), len(index), len(test), unreadable, notes if config.near else [])


def _descriptor(
    train: Manifest, test: Manifest, config: AuditConfig, device: str, workers: int | None
) -> Descriptor | None:
    if config.descriptor.fit != "none" and len(train) + len(test) < MIN_FIT_IMAGES:
        return None
    return fit_descriptor(config.descriptor, [train, test], device=device, workers=workers)


def _exact(train: Sequence[str], test: Sequence[str]) -> list[LeakedPair]:
    rows: dict[str, list[int]] = {}
    for row, digest in enumerate(train):
        rows.setdefault(digest, []).append(row)
    return [LeakedPair("exact", i, j, 1.0, 0) for j, digest in enumerate(test) for i in rows.get(digest, ())]


def _nearest_by_hash(train: np.ndarray, test: HashedImages, radius: int) -> dict[tuple[int, int], int]:
    """Return (row of `train`, row of the test set) -> bits, in the nearest of the 8 orientations of the test image."""
    rows = test.rows
    best: dict[tuple[int, int], int] = {}
    if len(rows) and len(train):
        pairs = hamming_pairs(test.hashes[rows].reshape(-1, train.shape[1]), train, radius=radius)
        for view, i, bits in zip(pairs.i.tolist(), pairs.j.tolist(), pairs.distance.tolist(), strict=True):
            key = (i, int(rows[view // 8]))
            best[key] = min(bits, best.get(key, HASH_BITS))
    return best


def _propose(train: HashedImages, test: HashedImages, config: AuditConfig, described: bool) -> list[LeakedPair]:
    """Return the pairs that hashes or descriptors propose."""
    rows, queries = train.rows, test.rows
    if not len(rows) or not len(queries):
        return []
    bits = {
        (int(rows[i]), j): distance
        for (i, j), distance in _nearest_by_hash(train.hashes[rows, 0], test, config.hash_radius).items()
    }
    wanted = set(bits)
    if described:
        similarity, nearest_rows = nearest(test.vectors[queries], train.vectors[rows], config.candidates)
        chosen = similarity >= config.min_similarity
        chosen[:, : max(config.always_checked, _MIN_CHECKED // len(queries))] = True
        for query, rank in zip(*np.nonzero(chosen), strict=True):
            wanted.add((int(rows[nearest_rows[query, rank]]), int(queries[query])))
    return [
        LeakedPair("near", i, j, float(train.vectors[i] @ test.vectors[j]) if described else None, bits.get((i, j)))
        for i, j in sorted(wanted, key=lambda pair: (pair[1], pair[0]))
    ]


def _check(
    train: Manifest, test: Manifest, proposed: list[LeakedPair], config: AuditConfig, workers: int | None
) -> Iterator[LeakedPair]:
    """Yield the pairs whose keypoints align, and those whose hashes are near enough without a check."""
    rows = [(pair.train, pair.test) for pair in proposed if pair.train is not None]  # all have a row
    paths = [(str(train.path(i)), str(test.path(j))) for i, j in rows]
    undecoded = {path for pair in paths for side, path in zip((train, test), pair, strict=True) if not side.decoded}
    read = partial(_read_if_readable, undecoded)
    with bar("checking pairs", len(proposed)) as progress:
        for pair, matches in zip(proposed, match_pairs(paths, read, workers), strict=True):
            progress.advance()
            if matches >= config.min_matches or pair.distance is not None:
                yield replace(pair, matches=matches)


def _read_if_readable(undecoded: Set[str], path: str) -> np.ndarray | None:
    """Read an image, or return None; the paths that no scan has decoded in a process with limits."""
    try:
        return read_picture(path, isolated=path in undecoded)
    except UnreadableImage:
        return None


def _shared_groups(train: list[str | None], test: list[str | None], pairs: list[LeakedPair]) -> list[LeakedPair]:
    """Return a pair for each test image whose group is in the training set, unless a pair with this group exists."""
    first: dict[str, int] = {}
    for row, group in enumerate(train):
        if group is not None:
            first.setdefault(group, row)
    reported = {(pair.test, train[pair.train]) for pair in pairs if pair.train is not None}
    return [
        LeakedPair("group", first[group], row, group=group)
        for row, group in enumerate(test)
        if group is not None and group in first and (row, group) not in reported
    ]


def _sorted(pairs: list[LeakedPair]) -> list[LeakedPair]:
    def place(pair: LeakedPair) -> tuple[int, float, int, int]:
        return KINDS.index(pair.kind), -(pair.similarity or 0.0), pair.test, -1 if pair.train is None else pair.train

    return sorted(pairs, key=place)
