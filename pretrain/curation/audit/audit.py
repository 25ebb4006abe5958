"""Are images of a test set among those of a training set? Exact copies, near copies, and shared groups.

Near copies are proposed by hashes and descriptors, which look at every pair, and checked one by one by points that
align, which are hardly ever wrong: among millions of pairs of look-alikes, a threshold alone would either cry wolf or
sleep. Between a run's `seen.parquet` and a test set only hashes can be compared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from dinomed.config import Config
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.features.neighbors import nearest
from dinomed.images.read import UnreadableImage, read_image
from dinomed.io.prefetch import prefetch
from dinomed.pretrain.curation.audit.hashed_images import HASH_BITS, HashedImages, hash_images
from dinomed.pretrain.curation.audit.training_index import TrainingIndex, hash_group
from dinomed.pretrain.curation.deduplication.config import MIN_MATCHES
from dinomed.pretrain.curation.deduplication.hashes import hamming_pairs
from dinomed.pretrain.curation.deduplication.keypoints import ImageKeypoints, count_matches, find_keypoints
from dinomed.pretrain.curation.deduplication.pair_check import KEPT_KEYPOINTS
from dinomed.pretrain.curation.descriptors.config import MIN_FIT_IMAGES, DescriptorConfig
from dinomed.pretrain.curation.descriptors.descriptor import Descriptor, fit_descriptor
from dinomed.progress import bar

Kind = Literal["exact", "near", "group"]
KINDS: tuple[Kind, ...] = ("exact", "near", "group")
_CHEAP = 400  # pairs that are checked in any case, where there are few test images: half a minute


class AuditConfig(Config):
    """What counts as a copy. The defaults were measured on real dermoscopy (docs/curation.md)."""

    descriptor: DescriptorConfig = DescriptorConfig()
    near: bool = Field(True, description="look at the pictures; else content hashes and groups only")
    groups: bool = Field(True, description="patients, lesions, videos on both sides are a leak")
    hash_radius: int = Field(
        24, ge=0, lt=HASH_BITS, description=f"of {HASH_BITS} bits, in any orientation: a copy by that alone"
    )
    min_similarity: float = Field(0.5, ge=-1, le=1, description="cosine from which on a pair is checked")
    candidates: int = Field(8, ge=1, description="training images that are checked for a test image, at most")
    always_checked: int = Field(2, ge=0, description="of them, so many are checked however unlike they are")
    min_matches: int = Field(MIN_MATCHES, ge=4, description="points that have to align")


@dataclass(frozen=True)
class Pair:
    """A test image and the training image that gives it away. `train` is None where only its hash is known."""

    kind: Kind
    train: int | None  # row of the training manifest
    test: int  # row of the test manifest
    similarity: float | None = None  # cosine of the descriptors; 1 for exact copies
    distance: int | None = None  # bits of the perceptual hash, in the nearest orientation
    matches: int | None = None  # points that align
    group: str | None = None


@dataclass(frozen=True)
class Audit:
    """The pairs, by kind and then by likeness. `unreadable` test images were looked for by content hash alone."""

    pairs: list[Pair]
    train_images: int
    test_images: int
    unreadable: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        return {kind: sum(pair.kind == kind for pair in self.pairs) for kind in KINDS}

    @property
    def leaked(self) -> int:
        """Test images that are in any pair."""
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
    """Every leak between two manifests.

    Args:
        cache: folder in which what was computed is kept, so that an interrupted audit goes on.

    Raises:
        UsageError: a manifest without images.
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
                f"fewer than {MIN_FIT_IMAGES} images to fit a descriptor to: near copies were looked for by hash alone"
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
    seen: TrainingIndex, test: Manifest, config: AuditConfig | None = None, *, workers: int | None = None
) -> Audit:
    """Every leak between the images that a run has seen and a manifest: by hashes alone."""
    config = config or AuditConfig()
    if not len(test):
        raise UsageError("the test set has no images")
    pairs = [Pair("exact", None, pair.test, 1.0, 0) for pair in _exact(seen.sha256, test.column("sha256"))]
    unreadable = 0
    if config.near:
        images = hash_images(test, workers=workers, description="test images")
        unreadable = int((~images.readable).sum())
        exact = {pair.test for pair in pairs}
        known = np.flatnonzero(seen.readable)
        best = _nearest_by_hash(seen.hashes[known], images, config.hash_radius)
        least: dict[int, int] = {}
        for (_, row), distance in best.items():
            least[row] = min(distance, least.get(row, HASH_BITS))
        pairs += [Pair("near", None, row, None, bits) for row, bits in least.items() if row not in exact]
    if config.groups:
        known_groups = {group for group in seen.groups if group is not None}
        told = {pair.test for pair in pairs}
        for row, group in enumerate(test.groups()):
            if group is not None and row not in told and hash_group(group, seen.salt) in known_groups:
                pairs.append(Pair("group", None, row, group=group))
    notes = ["compared with hashes of the images that the run has seen: cropped and rotated copies are not found"]
    return Audit(_sorted(pairs), len(seen), len(test), unreadable, notes if config.near else [])


def _descriptor(
    train: Manifest, test: Manifest, config: AuditConfig, device: str, workers: int | None
) -> Descriptor | None:
    if config.descriptor.fit != "none" and len(train) + len(test) < MIN_FIT_IMAGES:
        return None
    return fit_descriptor(config.descriptor, [train, test], device=device, workers=workers)


def _exact(train: Sequence[str], test: Sequence[str]) -> list[Pair]:
    rows: dict[str, list[int]] = {}
    for row, digest in enumerate(train):
        rows.setdefault(digest, []).append(row)
    return [Pair("exact", i, j, 1.0, 0) for j, digest in enumerate(test) for i in rows.get(digest, ())]


def _nearest_by_hash(train: np.ndarray, test: HashedImages, radius: int) -> dict[tuple[int, int], int]:
    """(row of `train`, row of the test set) -> bits, in the nearest of the 8 orientations of the test image."""
    rows = test.rows
    best: dict[tuple[int, int], int] = {}
    if len(rows) and len(train):
        found = hamming_pairs(test.hashes[rows].reshape(-1, train.shape[1]), train, radius=radius)
        for view, i, bits in zip(found.i.tolist(), found.j.tolist(), found.distance.tolist(), strict=True):
            pair = (i, int(rows[view // 8]))
            best[pair] = min(bits, best.get(pair, HASH_BITS))
    return best


def _propose(train: HashedImages, test: HashedImages, config: AuditConfig, described: bool) -> list[Pair]:
    """Pairs that hashes or descriptors find alike."""
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
        chosen[:, : max(config.always_checked, _CHEAP // len(queries))] = True
        for query, rank in zip(*np.nonzero(chosen), strict=True):
            wanted.add((int(rows[nearest_rows[query, rank]]), int(queries[query])))
    return [
        Pair("near", i, j, float(train.vectors[i] @ test.vectors[j]) if described else None, bits.get((i, j)))
        for i, j in sorted(wanted, key=lambda pair: (pair[1], pair[0]))
    ]


def _check(
    train: Manifest, test: Manifest, proposed: list[Pair], config: AuditConfig, workers: int | None
) -> Iterator[Pair]:
    """Those whose points align, and those whose hashes leave no doubt."""

    @lru_cache(KEPT_KEYPOINTS)
    def points(path: Path) -> ImageKeypoints | None:
        try:
            return find_keypoints(read_image(path))
        except UnreadableImage:
            return None

    def check(pair: Pair) -> Pair | None:
        assert pair.train is not None
        one, other = points(train.path(pair.train)), points(test.path(pair.test))
        matches = 0 if one is None or other is None else count_matches(one, other)
        if matches < config.min_matches and pair.distance is None:
            return None
        return Pair("near", pair.train, pair.test, pair.similarity, pair.distance, matches)

    with bar("checking pairs", len(proposed)) as progress:
        for pair in prefetch(check, proposed, workers):
            progress.advance()
            if pair is not None:
                yield pair


def _shared_groups(train: list[str | None], test: list[str | None], pairs: list[Pair]) -> list[Pair]:
    """A pair for every test image whose group is in the training set, unless it has one with an image of that group."""
    first: dict[str, int] = {}
    for row, group in enumerate(train):
        if group is not None:
            first.setdefault(group, row)
    told = {(pair.test, train[pair.train]) for pair in pairs if pair.train is not None}
    return [
        Pair("group", first[group], row, group=group)
        for row, group in enumerate(test)
        if group is not None and group in first and (row, group) not in told
    ]


def _sorted(pairs: list[Pair]) -> list[Pair]:
    def place(pair: Pair) -> tuple[int, float, int, int]:
        return KINDS.index(pair.kind), -(pair.similarity or 0.0), pair.test, -1 if pair.train is None else pair.train

    return sorted(pairs, key=place)
