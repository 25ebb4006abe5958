"""Settings for the training of segmenters."""

from typing import Any

from pydantic import Field, model_validator

from dinomed.adapters.fitting.augment import AugmentConfig
from dinomed.adapters.fitting.config import DENSE_FIT, TrainConfig, adapter_class
from dinomed.adapters.tasks.segment.losses import TVERSKY_ALPHA, LossName
from dinomed.adapters.tasks.segment.mask_schema import Kind, build_mask_schema
from dinomed.errors import UsageError


class SegmentConfig(TrainConfig):
    """Settings of a segmenter.

    With `image_size` null, it is the smallest size with 24 patches along a side (32 for the multi-scale head), and at
    least the size of the backbone. A linear head cannot draw details finer than a patch.

    `kind` and `classes` define the mask schema (`dinomed.adapters.tasks.segment.mask_schema`). For multiclass label
    maps `classes` may be empty; the classes are then the values in train and val.

    `flips` and `scales`: average predictions over mirror images, and over other sizes of the image, as factors of
    `image_size`; null uses the defaults of the head.

    `window`: predict images with a side longer than this, px, by windows of this size that overlap by the share
    `overlap`; null resizes every image as a whole. Windows must show lesions at the scale of the training: either no
    image of train is larger than the window, or `crop` is set. With `crop`, training uses a new random window of each
    larger image in every epoch; the share `crop` of the windows contains a part of the mask
    (`dinomed.adapters.fitting.windows`). Val is then predicted by windows after every epoch.
    """

    task, fit_is_augmented, default_fit = "segment", True, DENSE_FIT
    augment: AugmentConfig = Field(
        AugmentConfig(preset="auto"),
        description="augmentation of training images: the name of a preset, or a table of values",
    )
    kind: Kind = Field(
        "binary", description="binary: one class; multiclass: one class per pixel; multilabel: classes that overlap"
    )
    classes: dict[str, int | str] = Field({}, description="NAME: value in the label map, bit, or column")
    loss: LossName = Field(
        "dice_ce", description="loss of the masks: Dice, Dice with cross-entropy or focal loss, or Tversky"
    )
    tversky_alpha: float = Field(TVERSKY_ALPHA, gt=0, lt=1, description="weight of false positives")
    flips: bool | None = Field(
        None, description="average predictions over mirror images; null: the default of the head"
    )
    scales: tuple[float, ...] | None = Field(
        None,
        description="average predictions over sizes of the image, as factors of image_size; null: default of the head",
    )
    window: int | None = Field(
        None,
        ge=16,
        description="predict images with a longer side than this by windows of this size, px; null: resize them",
    )
    overlap: float = Field(0.25, ge=0, le=0.9, description="share by which windows overlap")
    crop: float | None = Field(
        None, ge=0, le=1, description="share of training windows that contain a part of the mask"
    )

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
        kind = adapter_class("segment", self.head.name)
        if kind.chooses and (self.tune.active or self.crop is not None):
            raise ValueError(f"tune and crop: head {self.head.name} tries heads on features that are computed once")
        if self.window is not None and not kind.one_pass:
            raise ValueError(f"window: head {self.head.name} fuses views of the whole image; leave window out")
        if self.crop is not None and self.window is None:
            raise ValueError("crop: training uses random windows; set their size: window=PX")
        return self

    @classmethod
    def _uses_windows(cls, data: dict[str, Any]) -> bool:
        return data.get("crop") is not None

    @property
    def live(self) -> bool:
        return super().live or self.crop is not None
