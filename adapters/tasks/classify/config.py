"""Settings for the training of classifiers."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from dinomed.adapters.fitting.config import TrainConfig, adapter_class
from dinomed.adapters.tasks.classify.groups import FRAMES
from dinomed.adapters.tasks.classify.labels import LabelColumns
from dinomed.metrics.uncertainty.conformal import COVERAGE

if TYPE_CHECKING:
    from dinomed.adapters.tasks.classify.answer import Answer


class ClassifyConfig(TrainConfig):
    """Settings of a classifier. With `image_size` null, images have the backbone's own size.

    `label` is the column of the classes. Labels that may occur together are several columns of 0 and 1
    (``[oedema, effusion]``), or one column with a `separator` (``a|b``). Each label then has its own sigmoid, and
    `class_weights` are not applied, because each label has its own threshold.

    With `unit` group, one prediction is made for each group (a lesion, a video) from the features of at most `frames`
    evenly spaced images, averaged (`pool` mean) or concatenated (`pool` concat), as in the video protocol of DINOv2
    (section 7.2).

    With several `scales`, the features of the image at these factors of `image_size` are concatenated; each size needs
    a pass of its own.

    `coverage` is the probability with which a prediction set holds the true class
    (`dinomed.metrics.uncertainty.conformal`); labels that may occur together have no sets.

    The fit of a linear classifier is convex and often ill-conditioned: on dermoscopy with an untrained backbone, L-BFGS
    reached a balanced accuracy of 0.41 on test and AdamW 0.34, in the same time.
    """

    task, default_fit = "classify", {"optimizer": "lbfgs", "weight_decay": 1e-5, "epochs": 100, "patience": 10}
    label: str | tuple[str, ...] = Field(
        "label",
        min_length=1,
        description="column of the classes; several columns of 0 and 1 for labels that may occur together",
    )
    separator: str | None = Field(
        None,
        min_length=1,
        description="text between labels that occur together in one column, such as |; null: one class per image",
    )
    class_weights: Literal["balanced", "none"] = Field(
        "balanced", description="balanced: each class has the same weight"
    )
    unit: Literal["image", "group"] = Field(
        "image", description="what a prediction is made for: each image, or each group (a lesion, a video)"
    )
    pool: Literal["mean", "concat"] = Field(
        "mean", description="unit group: features of the images of a group are averaged, or concatenated"
    )
    frames: int = Field(
        FRAMES, ge=1, le=64, description="unit group: largest number of evenly spaced images of a group"
    )
    scales: tuple[float, ...] = Field((1.0,), min_length=1, max_length=3, description="factors of image_size")
    coverage: float = Field(COVERAGE, ge=0.5, lt=1, description="share of prediction sets that hold the true class")

    @model_validator(mode="after")
    def _check_combinations(self) -> "ClassifyConfig":
        from dinomed.adapters.heads.solved.solve import SolvedClassifier  # here: it imports torch

        if self.separator is not None and len(self.columns) > 1:
            raise ValueError(
                "label: several columns hold 0 and 1 each; a separator is for one column: leave one of them out"
            )
        twice = [name for name in self.columns if self.columns.count(name) > 1]
        if twice:
            raise ValueError(f"label: column {twice[0]!r} is named twice")
        if min(self.scales) < 0.25 or max(self.scales) > 4:
            raise ValueError("scales: factors from 0.25 to 4")
        kind = adapter_class("classify", self.head.name)
        patches = kind.uses_patches
        if kind.chooses and self.live:
            raise ValueError(f"augment and tune: head {self.head.name} tries heads on features that are computed once")
        if kind.chooses and self.scales != (1.0,):
            raise ValueError(f"scales: head {self.head.name} tries them itself; set head.second_scale")
        if self.scales != (1.0,) and (patches or self.live or self.unit == "group"):
            raise ValueError("scales: only for heads on pooled tokens of single images, without augment and tune")
        if patches and self.fit.optimizer == "lbfgs":
            raise ValueError(f"fit.optimizer: lbfgs takes all images at once; head {self.head.name} needs adamw")
        if patches and self.unit == "group":
            raise ValueError(f"unit: head {self.head.name} reads the patches of one image; use another head for groups")
        if self.live and self.unit == "group":
            raise ValueError("unit: augment and tune are for single images; leave them out, or set unit: image")
        if self.live and issubclass(adapter_class("classify", self.head.name), SolvedClassifier):
            raise ValueError(f"augment and tune are for heads trained by epochs; {self.head.name} is solved at once")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the labels."""
        return (self.label,) if isinstance(self.label, str) else self.label

    @property
    def label_columns(self) -> LabelColumns:
        """The reader of the labels."""
        return LabelColumns(self.columns, self.separator)

    @property
    def answer(self) -> "Answer":
        """The answer before the fit: without temperature and thresholds."""
        from dinomed.adapters.tasks.classify.answer import Answer  # here: it imports torch

        width = self.frames if self.unit == "group" and self.pool == "concat" else len(self.scales)
        return Answer(
            multilabel=self.label_columns.multilabel, unit=self.unit, pool=self.pool, frames=self.frames, width=width,
            columns=self.columns, separator=self.separator, scales=self.scales,
        )  # fmt: skip
