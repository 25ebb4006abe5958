"""The choice among heads: `--head auto`.

A task lists the candidates (`Task.candidates`); `dinomed.adapters.fit` fits each and keeps the best on val.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt
from torch import Tensor

from dinomed.adapters.adapter import ADAPTERS, Adapter, HeadConfig
from dinomed.features.compute import Features

AUTO = "auto"


class AutoClassifierConfig(HeadConfig):
    """Settings: `heads` to try; `last`, the numbers of last blocks that are concatenated; `second_scale`, the factor of
    `image_size` of the second size of the image, null for none. The attentive heads and the second size need a pass of
    their own over all images; the other candidates share one."""

    name: str = AUTO
    heads: tuple[Literal["knn", "logistic", "attentive"], ...] = Field(
        ("knn", "logistic", "attentive"), min_length=1, description="heads that are tried"
    )
    last: tuple[PositiveInt, ...] = Field((1, 2, 4), min_length=1, description="numbers of last blocks")
    second_scale: float | None = Field(
        1.5, gt=1, le=4, description="second size of the image that is tried, as a factor of image_size; null: none"
    )


class AutoSegmenterConfig(HeadConfig):
    """Settings: `last`, the numbers of last blocks of the linear heads. A head on the blocks at 1/4, 1/2, 3/4 and 1 of
    the depth is tried too."""

    name: str = AUTO
    last: tuple[PositiveInt, ...] = Field((1, 2, 4), min_length=1, description="numbers of last blocks")


class Choice(Adapter):
    """Placeholder in the registry for ``--head auto``; it is never built."""

    chooses: ClassVar[bool] = True

    def forward(self, features: Features) -> Tensor:
        raise AssertionError("a choice is no head; its result is one of the candidates")


@ADAPTERS.register("classify.auto")
class ClassifierChoice(Choice):
    """The choice among classifiers."""

    task, Config = "classify", AutoClassifierConfig


@ADAPTERS.register("segment.auto")
class SegmenterChoice(Choice):
    """The choice among linear segmenters."""

    task, Config = "segment", AutoSegmenterConfig
    uses_patches = True


def last_blocks(counts: tuple[int, ...], depth: int) -> list[tuple[int, ...]]:
    """Return the last blocks for each number of blocks; numbers above the depth count as the depth.

    >>> last_blocks((1, 2, 4), 3)
    [(-1,), (-2, -1), (-3, -2, -1)]
    """
    return [tuple(range(-count, 0)) for count in sorted({min(count, depth) for count in counts})]


def candidate_data(config: Any, head: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """Return the settings of a candidate: those of the choice with another head; of `fit` only what the user set."""
    data = config.model_dump(exclude={"head", "fit"}) | {"fit": config.fit.model_dump(exclude_unset=True)}
    return {**data, "head": head, **settings}
