"""Tasks: what distinguishes classification, segmentation and depth estimation, in one object each.

Training, evaluation, prediction, export, the model card, the evaluation page and the demo use the members of `Task`,
and have no branches on its name.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dinomed.errors import UsageError, did_you_mean
from dinomed.registry import Registry

if TYPE_CHECKING:
    import numpy as np

    from dinomed.adapters.evaluated import EvaluatedUnits, ReportTable
    from dinomed.adapters.fitting.config import TrainConfig
    from dinomed.adapters.fitting.head_fit import HeadFit
    from dinomed.adapters.predictor import Predictor
    from dinomed.adapters.record import AdapterRecord
    from dinomed.adapters.writer import PredictionWriter
    from dinomed.backbones.frozen import FrozenBackbone
    from dinomed.datasets.manifest import Manifest
    from dinomed.metrics.uncertainty.abstention import AbstentionRule

GROUP = "dinomed.tasks"
BUILT_IN_TASKS = {name: f"dinomed.adapters.tasks.{name}.task" for name in ("classify", "segment", "depth")}
Unit = Literal["image", "group"]

OF_SINGLE_MEMBERS = (
    "chosen on the confidence of single members, and the mean of several is less sure; `dinomed predict` with a member "
    "has them"
)
"""Reason why an ensemble lacks an ability."""


@dataclass(frozen=True)
class EnsembleUse:
    """How the predictions of an ensemble are used.

    Attributes:
        evaluated: the out-of-fold predictions, with the settings of the ensemble.
        usage: settings for the use of the ensemble; see `dinomed.adapters.record.AdapterRecord`.
        threshold: threshold of a segmenter of one class, in (0, 1).
        left_out: abilities of single adapters that the ensemble lacks, with the reason.
    """

    evaluated: "EvaluatedUnits"
    usage: dict[str, Any]
    threshold: float | None = None
    left_out: dict[str, str] = field(default_factory=dict)


class Task(ABC):
    """A kind of prediction.

    To add a task NAME, write one module (tests/adapters/tasks/number_task.py is a complete example):

    1. a subclass of `TrainConfig` with ``task = "NAME"`` and the settings;
    2. a head: a subclass of `Adapter` with ``task = "NAME"``, registered by ``@ADAPTERS.register("NAME.linear")``;
    3. a subclass of `HeadFit` with the steps of the fit, like `dinomed.adapters.tasks.depth.fit.DepthFit`;
    4. a subclass of `Predictor`, and one of `PredictionWriter`;
    5. a subclass of `Task`, registered by ``@TASKS.register("NAME")``, with the members that are abstract here.

    Import the module, or name the class in an entry point of the group ``dinomed.tasks``; ``dinomed train NAME`` then
    works, as do evaluate, predict, export and ``dinomed demo all --adapter``.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    """What an adapter of this task is called: ``classifier``."""
    help: ClassVar[str] = ""
    """Help text of ``dinomed train NAME``."""
    pipeline_tag: ClassVar[str] = "other"
    """The task in the terms of the Hugging Face hub."""
    output_names: ClassVar[tuple[str, ...]] = ("output",)
    """Names of the outputs of an exported graph."""
    case_note: ClassVar[str] = ""
    """Explanation of the pictures of cases on the page of an evaluation."""
    metric_titles: ClassVar[Mapping[str, str]] = {}
    """Readable names of metrics, for the page of an evaluation."""
    page_section: ClassVar[str] = ""
    """Function "module:name" that draws the section of the task on the page of an evaluation, from the report and the
    `EvaluatedUnits` to parts of HTML. Empty: the page shows `report_tables`."""
    panel: ClassVar[str] = ""
    """Class "module:name" of the panel in the demo, made from a predictor. Empty: a panel that shows `output_rows`."""
    panel_takes_index: ClassVar[bool] = False
    """Whether the panel shows similar cases too: it is made from a predictor and an index, which may be None."""
    has_ensembles: ClassVar[bool] = False
    """Whether adapters can be averaged: `build_ensemble` and `combine_use` are there."""
    video_answer: ClassVar[str] = ""
    """Class "module:name" of the answer for a video, a `dinomed.adapters.video.answer.VideoAnswer`, or a function that
    makes one, from a predictor and a function that draws masks. Empty: ``predict`` refuses videos."""
    config: "type[TrainConfig]"
    predictor: "type[Predictor]"

    @property
    @abstractmethod
    def head_fit(self) -> "type[HeadFit]":
        """The steps of a fit, which `dinomed.adapters.fit.fit_head` calls."""

    def candidates(self, config: Any, backbone: "FrozenBackbone") -> "dict[str, TrainConfig]":
        """Return the settings of the heads among which ``--head auto`` chooses, by their titles, the simplest first."""
        raise UsageError(f"a {self.title} has no choice of heads; give the name of one")

    @abstractmethod
    def usable_rows(self, record: "AdapterRecord", manifest: "Manifest") -> "Manifest":
        """Return the rows of a manifest that have targets for an adapter. Raise a `UsageError` if there are none."""

    @abstractmethod
    def evaluate(self, predictor: Any, manifest: "Manifest", split: str) -> "EvaluatedUnits":
        """Return the predictions for the rows of `usable_rows`, beside their targets."""

    @abstractmethod
    def build_writer(self, predictor: Any, names: Sequence[str]) -> "PredictionWriter":
        """Return the writer of predictions for images of these relative paths."""

    def evaluate_units(
        self, predictor: Any, manifest: "Manifest", split: str, unit: Unit | None = None
    ) -> "EvaluatedUnits":
        """Return the predictions as `evaluate` does, by image or by group; only classifiers predict groups."""
        if unit == "group":
            raise UsageError(f"`unit=group` is for classifiers, and this is a {self.title}; leave it out")
        return self.evaluate(predictor, manifest, split)

    def predict_groups(
        self, predictor: Any, manifest: "Manifest", out: Path, *, overwrite: bool, rule: "AbstentionRule | None" = None
    ) -> Any:
        """Write a table with one row for each group; see `dinomed.adapters.tasks.classify.predict_groups`."""
        raise UsageError(f"`unit=group` is for classifiers, and this is a {self.title}; leave it out")

    def build_ensemble(self, record: "AdapterRecord", members: Sequence[Any]) -> "Predictor":
        """Return the predictor that averages the predictions of `members`, predictors of this task.

        Args:
            record: what the ensemble is as an adapter; its `usage` is that of `combine_use`.
            members: two or more predictors with the same classes.
        """
        raise UsageError(f"a {self.title} has no ensembles; use its members")

    def combine_use(self, members: "Sequence[AdapterRecord]", evaluated: Sequence[Any]) -> EnsembleUse:
        """Choose what an ensemble needs, such as thresholds.

        Args:
            members: records of the members.
            evaluated: for each member the predictions for its own validation units, none of which is in two.
        """
        raise UsageError(f"a {self.title} has no ensembles; leave `folds` out")

    def evaluation_settings(self, predictor: Any) -> dict[str, Any]:
        """Return settings of the adapter that the report of an evaluation holds, such as its threshold."""
        return {}

    def class_table(self, metrics: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]] | None:
        """Return columns and rows of the metrics by class that ``dinomed evaluate`` prints; None without classes."""
        return None

    def report_tables(self, report: "Mapping[str, Any]") -> "list[ReportTable]":
        """Return tables for the page of an evaluation; by default the metrics that have no interval.

        Args:
            report: of `dinomed.adapters.evaluation.report.summarize`.
        """
        from dinomed.adapters.evaluated import table_of_further_metrics

        return table_of_further_metrics(report, self.metric_titles)

    def output_rows(self, predictor: Any, output: Any) -> list[tuple[str, float]]:
        """Return names and values that the demo shows for an output of `Predictor.outputs_of_features`.

        By default these are the values by name, one value for each class, or the range of a map.
        """
        import numpy as np

        if isinstance(output, Mapping):
            return [(str(name), float(value)) for name, value in output.items()]
        values = np.asarray(output, float)
        if values.size == len(predictor.classes):
            return list(zip(predictor.classes, values.ravel().tolist(), strict=True))
        return [("lowest", float(values.min())), ("mean", float(values.mean())), ("highest", float(values.max()))]

    def masks_of_case(self, predictor: Any, manifest: "Manifest", row: int) -> "tuple[np.ndarray, np.ndarray] | None":
        """Return the predicted and the reference mask (H, W) of a case, for its picture; None without masks.

        The image is read as for the metrics, by the preprocessing of the backbone: the picture of the page may be
        another one, of 3 channels, with the full range of values and without burned-in text.
        """
        return None

    def card_rows(self, record: "AdapterRecord") -> list[tuple[str, str]]:
        """Return rows of the model card: how outputs are to be read."""
        return []

    def export_lines(self, predictor: Any) -> list[str]:
        """Return lines for the card of an exported folder: how outputs are to be read."""
        return []

    def monai_output(self, predictor: Any) -> dict[str, Any]:
        """Return the output format for the metadata of a MONAI bundle."""
        raise UsageError(f"a {self.title} cannot be exported as a MONAI bundle; take another format")

    def monai_postprocessing(self, predictor: Any) -> tuple[list[dict[str, Any]], str]:
        """Return the post-processing of a MONAI bundle.

        Returns:
            MONAI transforms of a dictionary, in which ``pred`` is the output for an image and ``image`` the image with
            its metadata; and a Python expression for the entry of ``predictions.json``, in which ``done`` is the
            transformed dictionary and ``image`` the path.
        """
        raise UsageError(f"a {self.title} cannot be exported as a MONAI bundle; take another format")


TASKS: Registry[type[Task]] = Registry("task", GROUP)


def task_names() -> list[str]:
    """Return the names of all tasks, those of dinomed first."""
    return [*BUILT_IN_TASKS, *(name for name in TASKS if name not in BUILT_IN_TASKS)]


def find_task(name: str) -> Task:
    """Return a task by its name; its module is imported now.

    Raises:
        UsageError: there is no such task; the message gives the nearest name.
    """
    if name in BUILT_IN_TASKS:
        import_module(BUILT_IN_TASKS[name])
    elif name not in TASKS:
        raise UsageError(f"unknown task {name!r}{did_you_mean(name, task_names())}")
    return TASKS[name]()
