"""Settings for the training of depth estimators."""

from typing import TYPE_CHECKING

from pydantic import Field

from dinomed.adapters.fitting.augment import AugmentConfig
from dinomed.adapters.fitting.config import DENSE_FIT, TrainConfig
from dinomed.datasets.manifest import Manifest

if TYPE_CHECKING:
    from dinomed.backbones.frozen import FrozenBackbone


class DepthConfig(TrainConfig):
    """Settings of a depth estimator.

    With `image_size` null, it is the smallest size with 24 patches along a side, and at least the size of the backbone.
    `column` is the column of the depth maps. `scale` is the depth of a stored value of 1, in `unit` (SimCol3D, cm:
    20 / 65280 = 3.0637e-4); `unit` is only a name. `gradient_weight` is the weight of the gradient loss; SigLoss has 1.
    """

    task, fit_is_augmented, default_fit = "depth", True, DENSE_FIT
    augment: AugmentConfig = Field(
        AugmentConfig(preset="auto"),
        description="augmentation of training images: the name of a preset, or a table of values; scale is not used",
    )
    column: str = Field("depth", description="column of the manifest with the paths of the depth maps")
    scale: float = Field(
        1.0, gt=0, description="depth of a stored value of 1, in `unit` (SimCol3D, cm: 20 / 65280 = 3.0637e-4)"
    )
    unit: str = Field("", description="name of the unit of depth, such as cm; shown beside numbers")
    gradient_weight: float = Field(0.5, ge=0, description="weight of the gradient loss; SigLoss has weight 1")
    flips: bool | None = Field(
        None, description="average predictions over mirror images; null: the default of the head"
    )

    def augmentation(self, manifest: Manifest, backbone: "FrozenBackbone") -> AugmentConfig:
        return super().augmentation(manifest, backbone).without_scale()
