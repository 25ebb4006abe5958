"""The head of an ensemble: the heads of its members on shared features.

Members with the backbone of the first member read the same features, which are computed once. A member whose backbone
was trained with its head runs its own backbone on the images.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dinomed.adapters.adapter import Adapter, FeatureSpec
from dinomed.adapters.catalogue import HeadConfig
from dinomed.adapters.predictor import Predictor
from dinomed.features.compute import Features, compute_features

WHOLE: tuple[float, ...] = (1.0,)


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
        self.shared = [member.backbone.fingerprint == first.fingerprint for member in members]
        specs = [member.feature_spec for member, shared in zip(members, self.shared, strict=True) if shared]
        blocks = tuple(sorted({block % first.depth for spec in specs for block in spec.blocks}))
        super().__init__(HeadConfig(name="ensemble", blocks=blocks), first.embed_dim, len(members[0].classes))
        self.heads = nn.ModuleList(member.adapter for member in members)
        self.members, self.combine = list(members), combine
        self.scales_of_members = [WHOLE] * len(members) if scales is None else list(scales)
        self.all_scales = tuple(sorted({scale for each in self.scales_of_members for scale in each}))
        self.one_pass = all(member.adapter.one_pass for member in members)  # type: ignore[misc]
        self._spec = FeatureSpec(
            blocks, any(spec.patches for spec in specs), any(spec.images for spec in specs) or not all(self.shared)
        )

    @property
    def feature_spec(self) -> FeatureSpec:
        return self._spec

    def forward(self, features: Features) -> Tensor:
        return self.combine([head(part) for head, part in zip(self.heads, self._parts(features), strict=True)])

    def probe_logits(self, features: Features) -> Tensor:
        """Return the maps of each part of the heads, those of the members one after the other along the classes."""
        maps = [
            member.adapter.probe_logits(part) for member, part in zip(self.members, self._parts(features), strict=True)
        ]
        return torch.cat(maps, dim=2)

    def fuse(self, maps: np.ndarray, exclusive: bool) -> np.ndarray:
        """Fuse the maps of each member, (views, members * classes, H, W) -> (members * classes, H, W)."""
        parts = np.split(maps, len(self.members), axis=1)
        fused = (member.adapter.fuse(part, exclusive) for member, part in zip(self.members, parts, strict=True))
        return np.concatenate(list(fused))

    def _parts(self, features: Features) -> list[Features]:
        """Return the features of each member."""
        return [self._part(place, features) for place in range(len(self.members))]

    def _part(self, place: int, features: Features) -> Features:
        member = self.members[place]
        spec = member.feature_spec
        if not self.shared[place]:
            assert features.images is not None
            return compute_features(member.backbone, features.images, spec.blocks, spec.patches)
        blocks = [self._spec.blocks.index(block % member.backbone.depth) for block in spec.blocks]
        sizes = [self.all_scales.index(scale) for scale in self.scales_of_members[place]]
        count = len(self._spec.blocks)

        def pick(tokens: Tensor) -> Tensor:
            table = tokens.unflatten(1, (count, len(self.all_scales), -1))
            return table[:, blocks][:, :, sizes].flatten(1)

        patches = features.patches if spec.patches else None
        if patches is not None:
            patches = patches.unflatten(1, (count, -1))[:, blocks].flatten(1, 2)
        return Features(pick(features.cls), pick(features.mean), patches, features.images)
