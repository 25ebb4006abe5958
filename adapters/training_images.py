"""Hashes of the training images of an adapter, by which an evaluation recognises them."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dinomed.datasets.manifest import Manifest

_BYTES = 16  # of each SHA-256; two of a million images share them by chance with probability 1e-27


@dataclass(frozen=True)
class TrainingOverlap:
    """Rows of a manifest that belong to the training data.

    Attributes:
        images: paths of images with the same bytes as a training image.
        groups: paths of other images of a group of the training data.
    """

    images: tuple[str, ...]
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images) + len(self.groups)

    def remove_from(self, manifest: Manifest) -> Manifest:
        """Return the other rows of `manifest`."""
        overlapping = {*self.images, *self.groups}
        return manifest.take([i for i, image in enumerate(manifest.column("image")) if image not in overlapping])


@dataclass(frozen=True)
class TrainingHashes:
    """Hashes of the images (of their bytes) and of the groups (of their names) of train and val.

    Groups whose names are numbers are left out: other collections use the same numbers, and the number of a patient
    could be found by trying all. They are still recognised in a manifest with one of their training images.
    """

    images: frozenset[bytes]
    groups: frozenset[bytes]

    def find(self, chosen: Manifest, manifest: Manifest) -> TrainingOverlap:
        """Find the rows of `chosen` that belong to the training data.

        Args:
            chosen: the rows to check, a part of `manifest`.
            manifest: all rows; a training image in any of them identifies its group.
        """
        seen = {group for group, content in zip(manifest.groups(), _contents(manifest), strict=True)
               if content in self.images}  # fmt: skip
        seen |= {group for group in set(chosen.groups()) - seen if group is not None and _hash(group) in self.groups}
        images, groups = [], []
        rows = zip(chosen.column("image"), _contents(chosen), chosen.groups(), strict=True)
        for image, content, group in rows:
            if content in self.images:
                images.append(image)
            elif group is not None and group in seen:
                groups.append(image)
        return TrainingOverlap(tuple(images), tuple(groups))

    def to_tensors(self) -> dict[str, Tensor]:
        """Return both sets as tensors, uint8 (N, 16), sorted."""
        return {"images": _pack(self.images), "groups": _pack(self.groups)}


def hash_training_images(manifests: Iterable[Manifest]) -> TrainingHashes:
    """Compute the hashes of all images and groups of some manifests."""
    images: set[bytes] = set()
    groups: set[bytes] = set()
    for manifest in manifests:
        images.update(_contents(manifest))
        groups.update(_hash(group) for group in {*manifest.groups()} if group is not None and not group.isdecimal())
    return TrainingHashes(frozenset(images), frozenset(groups))


def training_hashes_from_tensors(tensors: Mapping[str, Tensor]) -> TrainingHashes:
    """Return the hashes from tensors: the inverse of `TrainingHashes.to_tensors`."""
    images, groups = (frozenset(row.numpy().tobytes() for row in tensors[name]) for name in ("images", "groups"))
    return TrainingHashes(images, groups)


def _contents(manifest: Manifest) -> list[bytes]:
    return [bytes.fromhex(value)[:_BYTES] for value in manifest.column("sha256")]


def _hash(group: str) -> bytes:
    return hashlib.sha256(f"dinomed group\0{group}".encode()).digest()[:_BYTES]


def _pack(hashes: frozenset[bytes]) -> Tensor:
    return torch.from_numpy(np.frombuffer(b"".join(sorted(hashes)), np.uint8).reshape(-1, _BYTES).copy())
