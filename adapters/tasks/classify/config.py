"""Settings of a classifier's training run."""

from typing import Any, Literal

from pydantic import Field, SerializeAsAny, model_validator

from dinomed.adapters.adapter import HeadConfig
from dinomed.adapters.fitting.config import FitConfig, TrainConfig, adapter_class
from dinomed.adapters.heads.linear import LinearClassifierConfig
from dinomed.adapters.heads.solve import SolvedClassifier
from dinomed.adapters.tasks.classify.answer import Answer
from dinomed.adapters.tasks.classify.groups import FRAMES
from dinomed.adapters.tasks.classify.labels import LabelColumns
from dinomed.errors import UsageError


class ClassifyConfig(TrainConfig):
    """`image_size` null: the backbone's own.

    `label` is the manifest's column of classes. Labels that do not exclude each other are several columns of 0 and 1
    (``[oedema, effusion]``), or one column with a `separator` (``a|b``); each then has a sigmoid of its own, and
    `class_weights` are not applied, since a threshold is chosen for each.

    `unit` group: one answer for a group (a lesion, a video) by the features of at most `frames` of its images, evenly
    spaced, averaged (`pool` mean) or beside each other (concat), as in the paper's video protocol.

    A linear classifier is a convex problem and often an ill-conditioned one: on dermoscopy with an untrained backbone
    L-BFGS reached a balanced accuracy of 0.41 on test where AdamW ended at 0.34, in the same time.
    """

    task = "classify"
    head: SerializeAsAny[HeadConfig] = LinearClassifierConfig()
    label: str | tuple[str, ...] = Field("label", min_length=1)
    separator: str | None = Field(None, min_length=1)
    class_weights: Literal["balanced", "none"] = Field("balanced", description="balanced: each class weighs the same")
    unit: Literal["image", "group"] = "image"
    pool: Literal["mean", "concat"] = "mean"
    frames: int = Field(FRAMES, ge=1, le=64)
    fit: FitConfig = FitConfig(optimizer="lbfgs", weight_decay=1e-5, epochs=100, patience=10, batch_size=256)

    @model_validator(mode="before")
    @classmethod
    def _fit_of_the_head(cls, data: Any) -> Any:
        """Where the head has settings of its own for the fit, those that are not given are the head's."""
        head = data.get("head") if isinstance(data, dict) else None
        name = head.get("name", "linear") if isinstance(head, dict) else getattr(head, "name", "linear")
        try:
            fit_defaults = adapter_class("classify", str(name)).fit_defaults
        except UsageError:
            return data  # the head's own validator tells
        if not fit_defaults or not isinstance(data.get("fit", {}), dict):
            return data
        return {**data, "fit": {**fit_defaults, **data.get("fit", {})}}

    @model_validator(mode="after")
    def _possible(self) -> "ClassifyConfig":
        if self.separator is not None and len(self.columns) > 1:
            raise ValueError(
                "label: several columns hold 0 and 1 each; a separator is for one column: leave one of them out"
            )
        twice = [name for name in self.columns if self.columns.count(name) > 1]
        if twice:
            raise ValueError(f"label: column {twice[0]!r} is named twice")
        patches = adapter_class("classify", self.head.name).uses_patches
        if patches and self.fit.optimizer == "lbfgs":
            raise ValueError(f"fit.optimizer: lbfgs takes all images at once; head {self.head.name} needs adamw")
        if patches and self.unit == "group":
            raise ValueError(f"unit: head {self.head.name} looks at the patches of one image; for groups take another")
        if self.live and self.unit == "group":
            raise ValueError("unit: augment and tune are for single images; leave them out, or set unit: image")
        if self.live and issubclass(adapter_class("classify", self.head.name), SolvedClassifier):
            raise ValueError(f"augment and tune are for heads trained by epochs; {self.head.name} is solved at once")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.label,) if isinstance(self.label, str) else self.label

    @property
    def label_columns(self) -> LabelColumns:
        return LabelColumns(self.columns, self.separator)

    @property
    def answer(self) -> Answer:
        """What is known of the answer before the fit."""
        width = self.frames if self.unit == "group" and self.pool == "concat" else 1
        return Answer(
            multilabel=self.label_columns.multilabel, unit=self.unit, pool=self.pool, frames=self.frames, width=width,
            columns=self.columns, separator=self.separator,
        )  # fmt: skip
