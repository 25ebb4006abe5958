"""Patch tokens from the shared pass of a backbone."""

from collections.abc import Sequence

import numpy as np

from dinomed.adapters.adapter import FeatureSpec
from dinomed.adapters.fitting.build import at_image_size
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.features.compute import Features


class PatchTokens:
    """A consumer of features (`dinomed.adapters.inference.shared.FeatureConsumer`) that returns the patch tokens.

    Images are always resized to the square: all grids are equal, so that images of any proportions can be compared. A
    backbone that pads images runs once more for them.
    """

    feature_spec = FeatureSpec((-1,), patches=True)

    def __init__(self, backbone: FrozenBackbone) -> None:
        self.backbone = at_image_size(backbone, None, "square")

    def outputs_of_features(self, features: Features, sizes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """Return for each image its tokens, float32 (rows, columns, C)."""
        assert features.patches is not None
        return list(features.patches.permute(0, 2, 3, 1).float().cpu().numpy())
