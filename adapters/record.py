"""What an adapter says of itself: task, head, classes, threshold, preprocessing, and which backbone it was made on."""

from typing import Any, Final, Literal

from pydantic import Field

from dinomed.backbones.preprocessing import Preprocessing
from dinomed.config import Config
from dinomed.notice import RESEARCH_USE

FORMAT: Final = "dinomed.adapter/5"


class BackboneReference(Config):
    """Where the backbone is: `path` (a folder) or `weights` (a file, with `name`), relative to the bundle; with
    neither, the released weights of `name`."""

    name: str
    path: str | None = None
    weights: str | None = None
    fingerprint: str
    embed_dim: int


class TunedReference(Config):
    """What became of the backbone where it learned with the head: `how` (``last:2``, ``lora:8``), how many weights
    changed, and the fingerprint of the whole with these. They are in the file of the adapter."""

    how: str
    weights: int
    fingerprint: str


class AdapterRecord(Config):
    """The content of `adapter.json`, which also stands in the header of the weights.

    `threshold` is for segmenters of one class. `usage` is what else using the head takes: how masks are read and
    written, thresholds of classes, mirror images and windows, the range of depths; of a classifier what
    `dinomed.adapters.tasks.classify.answer` says. `validation` are metrics on the val images. `tuned`: the
    backbone has learned too, from the one that `backbone` names. `weights_sha256` is over the tensors,
    not over the file (see `dinomed.adapters.bundle.hash_tensors`): the file holds the record itself.
    """

    format: Literal["dinomed.adapter/5"] = FORMAT
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
