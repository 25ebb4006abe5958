"""Settings of a classifier's training run."""

from typing import Literal

from pydantic import Field, SerializeAsAny

from dinomed.adapters.config import FitConfig, TrainConfig
from dinomed.adapters.contract import HeadConfig
from dinomed.adapters.linear import LinearClassifierConfig


class ClassifyConfig(TrainConfig):
    """`image_size` null: the backbone's own. `label` is the manifest's column of classes.

    A linear classifier is a convex problem and often an ill-conditioned one: on dermoscopy with an untrained backbone
    L-BFGS reached a balanced accuracy of 0.41 on test where AdamW ended at 0.34, in the same time.
    """

    task = "classify"
    head: SerializeAsAny[HeadConfig] = LinearClassifierConfig()
    label: str = "label"
    class_weights: Literal["balanced", "none"] = Field("balanced", description="balanced: each class weighs the same")
    fit: FitConfig = FitConfig(optimizer="lbfgs", weight_decay=1e-5, epochs=100, patience=10, batch_size=256)
