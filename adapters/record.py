"""The record of an adapter: task, head, classes, threshold, preprocessing, and the backbone on which it was trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pydantic import Field, ValidationError

from dinomed.backbones.preprocessing import Preprocessing
from dinomed.config import Config
from dinomed.errors import DinomedError, first_line
from dinomed.notice import RESEARCH_USE

FORMAT: Final = "dinomed.adapter/7"
C = TypeVar("C", bound=Config)


class BackboneReference(Config):
    """The place of the backbone: `path` (a folder) or `weights` (a file, with `name`), relative to the bundle.

    Without either it is the released weights of `name`, or the model of that name on a hub. `mean` and `std` are those
    that the user gave, or that were assumed, where the files of the backbone name none.
    """

    name: str
    path: str | None = Field(None, max_length=4096)
    weights: str | None = Field(None, max_length=4096)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    fingerprint: str
    embed_dim: int = Field(ge=1)


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

    format: Literal["dinomed.adapter/7"] = FORMAT
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


def parse_usage(model: type[C], values: Any, *path: str) -> C:
    """Validate a part of `AdapterRecord.usage`.

    Args:
        model: class of the part.
        values: the part as the record holds it.
        path: names that lead to the part.

    Raises:
        DinomedError: a setting is missing or out of its range, in a record that was changed.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, ("usage", *path, *problem["loc"])))
        raise DinomedError(f"the record of the adapter is damaged: {where}: {problem['msg']}; train again") from None


@contextmanager
def reading_record(path: Path) -> Iterator[None]:
    """Turn an error of values that no fit writes into a `DinomedError` of one line."""
    try:
        yield
    except DinomedError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if type(error).__name__ == "OutOfMemoryError":  # of a GPU
            raise
        line = first_line(str(error).strip().splitlines()[-1].strip() if str(error).strip() else error)
        raise DinomedError(
            f"{path}: its weights and its record do not belong together ({line}); copy it again, or train again"
        ) from error
