"""Settings of a depth estimator's training run."""

from pydantic import Field, SerializeAsAny

from dinomed.adapters.adapter import HeadConfig
from dinomed.adapters.fitting.config import FitConfig, TrainConfig
from dinomed.adapters.heads.depth import LinearDepthConfig


class DepthConfig(TrainConfig):
    """`image_size` null: the smallest that gives 24 patches a side, and not less than the backbone's own.

    `column` of the manifest names the depth maps. `scale`: units that a stored value stands for (SimCol3D, cm:
    20 / 65280 = 3.0637e-4); `unit` is for people. `gradient_weight`: of the gradient loss beside SigLoss.
    """

    task = "depth"
    head: SerializeAsAny[HeadConfig] = LinearDepthConfig()
    column: str = "depth"
    scale: float = Field(1.0, gt=0)
    unit: str = ""
    gradient_weight: float = Field(0.5, ge=0)
    flips: bool | None = None
    fit: FitConfig = FitConfig(epochs=30, patience=5, batch_size=16, learning_rate=1e-3, min_steps=500)
