"""What an adapter has seen, by hashes: so that nobody measures it on its own training images unawares."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dinomed.datasets.manifest import Manifest

_BYTES = 16  # of each SHA-256: two of a million images share them by chance once in 10^27


@dataclass(frozen=True)
class TrainingOverlap:
    """Rows of a manifest that were seen: `images` of the same bytes; `groups`: others, of a group that was seen. Both
    by the images' paths."""

    images: tuple[str, ...]
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images) + len(self.groups)

    def remove_from(self, manifest: Manifest) -> Manifest:
        """The rows of `manifest` that are not among them."""
        known = {*self.images, *self.groups}
        return manifest.take([i for i, image in enumerate(manifest.column("image")) if image not in known])


@dataclass(frozen=True)
class TrainingHashes:
    """Hashes of the images (their bytes) and of the groups (their names) of train and val.

    Groups that are numbers are left out: another collection has the same ones, and the number of a patient could be
    found by trying all. They are still recognised in a manifest that lists a seen image of theirs.
    """

    images: frozenset[bytes]
    groups: frozenset[bytes]

    def find(self, chosen: Manifest, manifest: Manifest) -> TrainingOverlap:
        """What of `chosen` was seen; it is a part of `manifest`, whose other rows tell more about groups."""
        own = {group for group, content in zip(manifest.groups(), _contents(manifest), strict=True)
               if content in self.images}  # fmt: skip
        own |= {group for group in set(chosen.groups()) - own if group is not None and _hash(group) in self.groups}
        images, groups = [], []
        rows = zip(chosen.column("image"), _contents(chosen), chosen.groups(), strict=True)
        for image, content, group in rows:
            if content in self.images:
                images.append(image)
            elif group is not None and group in own:
                groups.append(image)
        return TrainingOverlap(tuple(images), tuple(groups))

    def to_tensors(self) -> dict[str, Tensor]:
        """uint8 (N, 16) each, sorted."""
        return {"images": _pack(self.images), "groups": _pack(self.groups)}


def hash_training_images(manifests: Iterable[Manifest]) -> TrainingHashes:
    """What fitting on these manifests sees."""
    images: set[bytes] = set()
    groups: set[bytes] = set()
    for manifest in manifests:
        images.update(_contents(manifest))
        groups.update(_hash(group) for group in {*manifest.groups()} if group is not None and not group.isdecimal())
    return TrainingHashes(frozenset(images), frozenset(groups))


def training_hashes_from_tensors(tensors: Mapping[str, Tensor]) -> TrainingHashes:
    """The inverse of `TrainingHashes.to_tensors`."""
    images, groups = (frozenset(row.numpy().tobytes() for row in tensors[name]) for name in ("images", "groups"))
    return TrainingHashes(images, groups)


def _contents(manifest: Manifest) -> list[bytes]:
    return [bytes.fromhex(value)[:_BYTES] for value in manifest.column("sha256")]


def _hash(group: str) -> bytes:
    return hashlib.sha256(f"dinomed group\0{group}".encode()).digest()[:_BYTES]


def _pack(hashes: frozenset[bytes]) -> Tensor:
    return torch.from_numpy(np.frombuffer(b"".join(sorted(hashes)), np.uint8).reshape(-1, _BYTES).copy())
