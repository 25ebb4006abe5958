"""What an adapter keeps of its training images: hashes, by which an evaluation recognises them, and features, by which
an image is found to be unlike them."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dinomed.adapters.adapter import FeatureSpec
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.errors import DinomedError
from dinomed.features.compute import Features
from dinomed.features.familiarity.reference import Familiarity, TrainingReference

_BYTES = 16  # of each SHA-256; two of a million images share them by chance with probability 1e-27


NOTHING_STORED = "no features of the training images are stored"
"""Reason why a bundle does not recognise images that are unlike its training images."""


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


class FamiliarityCheck:
    """The check whether images are unlike the training images of an adapter, or the images of an index.

    It is a `dinomed.adapters.inference.shared.FeatureConsumer`, so that it shares the pass of the backbone.

    Args:
        reference: features of the training images.
        backbone: the backbone of these features.

    Raises:
        DinomedError: the features are of another backbone.
    """

    def __init__(self, reference: TrainingReference, backbone: FrozenBackbone) -> None:
        channels = backbone.embed_dim if reference.distance is None else reference.distance.channels
        if channels != backbone.embed_dim:
            raise DinomedError(
                f"the features of the training images have {channels} values, those of the backbone "
                f"{backbone.embed_dim}"
            )
        if reference.block not in range(-backbone.depth, backbone.depth):
            raise DinomedError(f"the features of the training images are of block {reference.block}, which is unknown")
        self.reference, self.backbone = reference, backbone
        self.feature_spec = FeatureSpec((reference.block,), patches=False)

    def outputs_of_features(self, features: Features, sizes: Sequence[tuple[int, ...]]) -> list[Familiarity]:
        """Return how like the training images each image is, from features whose last block is that of the check."""
        means = features.mean[:, -self.backbone.embed_dim :]
        return self.reference.judge(means.float().cpu().numpy())


def usable_check(check: FamiliarityCheck | None) -> tuple[FamiliarityCheck | None, str | None]:
    """Return the check if it is available, else None and the reason."""
    if check is None:
        return None, NOTHING_STORED
    return (check, None) if check.reference.problem is None else (None, check.reference.problem)


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
