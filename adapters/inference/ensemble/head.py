"""The head of an ensemble: the heads of its members on shared features.

Members with the backbone of the first member read the same features, which are computed once. A member whose backbone
was trained with its head runs its own backbone on the images.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dinomed.adapters.adapter import Adapter, FeatureSpec
from dinomed.adapters.catalogue import HeadConfig
from dinomed.adapters.predictor import Predictor
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.features.compute import Features, compute_features

WHOLE: tuple[float, ...] = (1.0,)


class MemberBackbone(nn.Module):
    """The features of one member whose backbone was trained with its head.

    Args:
        backbone: the backbone of the member.
        spec: the features that its head reads.
    """

    def __init__(self, backbone: FrozenBackbone, spec: FeatureSpec) -> None:
        super().__init__()
        self.backbone, self.spec = backbone, spec

    def forward(self, images: Tensor) -> Features:
        """Return the features of preprocessed images (B, channels, height, width)."""
        return compute_features(self.backbone, images, self.spec.blocks, self.spec.patches)


class EnsembleHead(Adapter):
    """Several heads as one.

    Args:
        members: the predictors of the members.
        combine: function from the logits of the members to those of the ensemble.
        scales: factors of the image size that each member reads; by default the size itself.
    """

    def __init__(
        self,
        members: Sequence[Predictor],
        combine: Callable[[Sequence[Tensor]], Tensor],
        scales: Sequence[tuple[float, ...]] | None = None,
    ) -> None:
        first = members[0].backbone
        shared = [member.backbone.fingerprint == first.fingerprint for member in members]
        specs = [member.feature_spec for member, is_shared in zip(members, shared, strict=True) if is_shared]
        blocks = tuple(sorted({block % first.depth for spec in specs for block in spec.blocks}))
        super().__init__(HeadConfig(name="ensemble", blocks=blocks), first.embed_dim, len(members[0].classes))
        self.heads = nn.ModuleList(member.adapter for member in members)
        self.extractors = nn.ModuleDict(
            {
                str(place): MemberBackbone(member.backbone, member.feature_spec)
                for place, member in enumerate(members)
                if not shared[place]
            }
        )
        self.depth, self.combine = first.depth, combine
        self.scales_of_members = [WHOLE] * len(members) if scales is None else list(scales)
        self.all_scales = tuple(sorted({scale for each in self.scales_of_members for scale in each}))
        self.one_pass = all(member.adapter.one_pass for member in members)  # type: ignore[misc]
        self._spec = FeatureSpec(
            blocks, any(spec.patches for spec in specs), any(spec.images for spec in specs) or not all(shared)
        )

    @property
    def feature_spec(self) -> FeatureSpec:
        return self._spec

    def forward(self, features: Features) -> Tensor:
        return self.combine(self.logits_of_members(features))

    def logits_of_members(self, features: Features) -> list[Tensor]:
        """Return the logits of each member."""
        return [head(part) for head, part in zip(self.heads, self._parts(features), strict=True)]

    def probe_logits(self, features: Features) -> Tensor:
        """Return the maps of each part of the heads, those of the members one after the other along the classes."""
        return torch.cat(
            [head.probe_logits(part) for head, part in zip(self._adapters(), self._parts(features), strict=True)], dim=2
        )

    def fuse(self, maps: np.ndarray, exclusive: bool) -> np.ndarray:
        """Fuse the maps of each member, (views, members * classes, H, W) -> (members * classes, H, W)."""
        parts = np.split(maps, len(self.heads), axis=1)
        fused = (head.fuse(part, exclusive) for head, part in zip(self._adapters(), parts, strict=True))
        return np.concatenate(list(fused))

    def _adapters(self) -> Iterator[Adapter]:
        for head in self.heads:
            assert isinstance(head, Adapter)
            yield head

    def _parts(self, features: Features) -> list[Features]:
        """Return the features of each member."""
        return [self._part(place, head.feature_spec, features) for place, head in enumerate(self._adapters())]

    def _part(self, place: int, spec: FeatureSpec, features: Features) -> Features:
        if str(place) in self.extractors:
            part: Features = self.extractors[str(place)](features.images)
            return part
        blocks = [self._spec.blocks.index(block % self.depth) for block in spec.blocks]
        sizes = [self.all_scales.index(scale) for scale in self.scales_of_members[place]]
        count = len(self._spec.blocks)

        def pick(tokens: Tensor) -> Tensor:
            table = tokens.unflatten(1, (count, len(self.all_scales), -1))
            return table[:, blocks][:, :, sizes].flatten(1)

        patches = features.patches if spec.patches else None
        if patches is not None:
            patches = patches.unflatten(1, (count, -1))[:, blocks].flatten(1, 2)
        return Features(pick(features.cls), pick(features.mean), patches, features.images)
