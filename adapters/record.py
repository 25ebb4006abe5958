"""What an adapter says of itself: task, head, classes, threshold, preprocessing, and which backbone it was made on."""

from typing import Any, Final, Literal

from pydantic import Field

from dinomed.adapters.contract import Task
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.config import Config
from dinomed.notice import RESEARCH_USE

FORMAT: Final = "dinomed.adapter/3"
READABLE: Final = (FORMAT, "dinomed.adapter/2")
"""What this version reads. 3 added `usage`, which an older version would not apply; a record of 2 has none."""


class BackboneReference(Config):
    """Where the backbone is: `path` (a folder) or `weights` (a file, with `name`), relative to the bundle; with
    neither, the released weights of `name`."""

    name: str
    path: str | None = None
    weights: str | None = None
    fingerprint: str
    embed_dim: int


class AdapterRecord(Config):
    """The content of `adapter.json`, which also stands in the header of the weights.

    `threshold` is for segmenters of one class. `usage` is what else using the head takes: how masks are read and
    written, thresholds of classes, mirror images and windows, the range of depths; of a classifier what
    `dinomed.adapters.answer` says. `validation` are metrics on the val images. `weights_sha256` is over the tensors,
    not over the file (see `dinomed.adapters.bundle.hash_tensors`): the file holds the record itself.
    """

    format: Literal["dinomed.adapter/3", "dinomed.adapter/2"] = FORMAT
    purpose: str = RESEARCH_USE
    task: Task
    head: dict[str, Any]
    classes: tuple[str, ...] = Field(min_length=1)
    threshold: float | None = Field(None, gt=0, lt=1)
    usage: dict[str, Any] = Field(default_factory=dict)
    backbone: BackboneReference
    preprocessing: Preprocessing
    validation: dict[str, Any]
    training: dict[str, Any]
    weights_sha256: str
