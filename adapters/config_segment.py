"""Settings of a segmenter's training run."""

from pydantic import SerializeAsAny

from dinomed.adapters.config import FitConfig, TrainConfig
from dinomed.adapters.contract import HeadConfig


class SegmentConfig(TrainConfig):
    """`image_size` null: the smallest that gives 24 patches a side, and not less than the backbone's own. Patches are
    the finest detail that a linear head can draw."""

    task = "segment"
    head: SerializeAsAny[HeadConfig] = HeadConfig()
    fit: FitConfig = FitConfig(epochs=15, patience=3, batch_size=32, learning_rate=1e-3)
