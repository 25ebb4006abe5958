"""The record of an adapter: task, head, classes, threshold, preprocessing, and the backbone on which it was trained."""

from typing import Any, Final, Literal

from pydantic import Field

from dinomed.backbones.preprocessing import Preprocessing
from dinomed.config import Config
from dinomed.notice import RESEARCH_USE

FORMAT: Final = "dinomed.adapter/6"


class BackboneReference(Config):
    """The place of the backbone: `path` (a folder) or `weights` (a file, with `name`), relative to the bundle.

    Without either it is the released weights of `name`, or the model of that name on a hub. `mean` and `std` are those
    that the user gave, or that were assumed, where the files of the backbone name none.
    """

    name: str
    path: str | None = None
    weights: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    fingerprint: str
    embed_dim: int


class TunedReference(Config):
    """A backbone that was trained with the head; its changed weights are in the file of the adapter.

    Attributes:
        how: the method, such as ``last:2`` or ``lora:8``.
        weights: number of changed weights.
        fingerprint: fingerprint of the backbone with the changed weights.
    """

    how: str
    weights: int
    fingerprint: str


class AdapterRecord(Config):
    """The content of `adapter.json`, and of the header of the weights.

    Attributes:
        task: name of the task, see `dinomed.adapters.task`.
        head: settings of the head.
        classes: names of the classes.
        threshold: threshold of a segmenter of one class.
        usage: further settings for the use of the head: mask schema, thresholds of classes, mirror images and windows,
            range of depths; for a classifier the fields of `dinomed.adapters.tasks.classify.answer.Answer`.
        backbone: the backbone on which the head was fitted.
        tuned: the same backbone after the fit, if it was trained too.
        preprocessing: how images are prepared.
        validation: metrics on val.
        training: settings, data and library versions of the fit.
        weights_sha256: hash of the tensors, not of the file, which holds this record too (see
            `dinomed.io.tensor_file.hash_tensors`).
    """

    format: Literal["dinomed.adapter/6"] = FORMAT
    purpose: str = RESEARCH_USE
    task: str
    head: dict[str, Any]
    classes: tuple[str, ...] = Field(min_length=1)
    threshold: float | None = Field(None, gt=0, lt=1)
    usage: dict[str, Any] = Field(default_factory=dict)
    backbone: BackboneReference
    tuned: TunedReference | None = None
    preprocessing: Preprocessing
    validation: dict[str, Any]
    training: dict[str, Any]
    weights_sha256: str
