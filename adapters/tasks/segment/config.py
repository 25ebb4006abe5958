"""Settings of a segmenter's training run."""

from typing import Any

from pydantic import Field, SerializeAsAny, model_validator

from dinomed.adapters.adapter import HeadConfig
from dinomed.adapters.fitting.config import FitConfig, TrainConfig
from dinomed.adapters.tasks.segment.losses import TVERSKY_ALPHA, LossName
from dinomed.adapters.tasks.segment.mask_schema import Kind, build_mask_schema
from dinomed.errors import UsageError


class SegmentConfig(TrainConfig):
    """`image_size` null: the smallest that gives 24 patches a side (32 for the multi-scale head), and not less than
    the backbone's own. Patches are the finest detail that a linear head can draw.

    `kind` and `classes` say how masks are stored, see `dinomed.adapters.tasks.segment.mask_schema`. Of multiclass label maps
    `classes` may stay empty: the values that train and val have are the classes then.

    `flips` and `scales`: predictions averaged over mirror images and over other sizes of the same image, as factors of
    `image_size`; null leaves it to the head.

    `window`: images with a longer side than this, px, are predicted by windows of this size, which overlap by the share
    `overlap`; null squashes every image whole. What is cut out of an image then has to be as large as what was learned
    from: either the images of train are not larger than the window, or `crop` is set. Then training looks at random
    windows of larger images, too, in every epoch another one of each, the share `crop` of which holds something of the
    mask (`dinomed.adapters.fitting.windows`); val is predicted by windows after every epoch.
    """

    task = "segment"
    head: SerializeAsAny[HeadConfig] = HeadConfig()
    kind: Kind = "binary"
    classes: dict[str, int | str] = Field({}, description="NAME: value in the label map, bit, or column")
    loss: LossName = "dice_ce"
    tversky_alpha: float = Field(TVERSKY_ALPHA, gt=0, lt=1, description="weight of false positives")
    flips: bool | None = None
    scales: tuple[float, ...] | None = None
    window: int | None = Field(None, ge=16)
    overlap: float = Field(0.25, ge=0, le=0.9)
    crop: float | None = Field(None, ge=0, le=1, description="share of training windows with something of the mask")
    fit: FitConfig = FitConfig(epochs=15, patience=3, batch_size=32, learning_rate=1e-3)

    @model_validator(mode="after")
    def _mask_schema(self) -> "SegmentConfig":
        try:
            build_mask_schema(self.kind, self.classes)
        except UsageError as error:
            raise ValueError(str(error)) from None
        if self.scales is not None and (not self.scales or min(self.scales) < 0.25 or max(self.scales) > 4):
            raise ValueError("scales: one or more factors from 0.25 to 4")
        if self.window is not None and self.scales not in (None, (1.0,)):
            raise ValueError("window and scales: windows have one size; leave one of them out")
        if self.crop is not None and self.window is None:
            raise ValueError("crop: training looks at random windows; say how large they are: window=PX")
        return self

    @classmethod
    def _uses_windows(cls, data: dict[str, Any]) -> bool:
        return data.get("crop") is not None

    @property
    def live(self) -> bool:
        return super().live or self.crop is not None
