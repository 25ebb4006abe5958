"""Patch tokens from the shared pass of a backbone."""

from collections.abc import Sequence

import numpy as np

from dinomed.adapters.adapter import FeatureSpec
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.features.compute import Features


class PatchTokens:
    """A consumer of features (`dinomed.adapters.inference.shared.FeatureConsumer`) that returns the patch tokens."""

    feature_spec = FeatureSpec((-1,), patches=True)

    def __init__(self, backbone: FrozenBackbone) -> None:
        self.backbone = backbone

    def outputs_of_features(self, features: Features, sizes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """Return for each image its tokens, float32 (rows, columns, C)."""
        assert features.patches is not None
        contents = (
            self.backbone.preprocessing.patches_of_image(patches[None], size)
            for patches, size in zip(features.patches.float(), sizes, strict=True)
        )
        return [content[0].permute(1, 2, 0).cpu().numpy() for content in contents]
