"""The task depth: the depth of each pixel."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dinomed.adapters.evaluated import EvaluatedValues, join_values
from dinomed.adapters.fitting.head_fit import HeadFit
from dinomed.adapters.inference.ensemble.maps import same_settings
from dinomed.adapters.record import AdapterRecord
from dinomed.adapters.task import TASKS, EnsembleUse, Task
from dinomed.adapters.tasks.depth.config import DepthConfig
from dinomed.adapters.tasks.depth.maps import source_from
from dinomed.adapters.tasks.depth.predict import DepthPredictor, EnsembleDepth
from dinomed.adapters.tasks.depth.writer import DepthWriter
from dinomed.adapters.tasks.monai_maps import MONAI_FILE, Transform, monai_map_transforms, on_members
from dinomed.datasets.manifest import Manifest
from dinomed.metrics.depth import depth_metrics


@TASKS.register("depth")
class DepthTask(Task):
    """Depth maps in the unit of the training data."""

    name, title = "depth", "depth estimator"
    pipeline_tag, output_names = "depth-estimation", ("depth",)
    metric_titles: ClassVar[Mapping[str, str]] = {"rmse": "RMSE", "abs_rel": "AbsRel"}
    has_ensembles = True
    video_answer = "dinomed.adapters.video.depth:DepthVideo"
    config, predictor = DepthConfig, DepthPredictor

    @property
    def head_fit(self) -> type[HeadFit]:
        from dinomed.adapters.tasks.depth.fit import DepthFit

        return DepthFit

    def usable_rows(self, record: AdapterRecord, manifest: Manifest) -> Manifest:
        return source_from(record.usage).usable(manifest)

    def evaluate(self, predictor: DepthPredictor, manifest: Manifest, split: str) -> EvaluatedValues:
        from dinomed.adapters.tasks.depth.evaluate import evaluate_depth

        return evaluate_depth(predictor, manifest)

    def build_writer(self, predictor: DepthPredictor, names: Sequence[str]) -> DepthWriter:
        return DepthWriter(predictor, names)

    def build_ensemble(self, record: AdapterRecord, members: Sequence[DepthPredictor]) -> DepthPredictor:
        same_settings(members, "source")
        return EnsembleDepth(record, members)

    def combine_use(self, members: Sequence[AdapterRecord], evaluated: Sequence[EvaluatedValues]) -> EnsembleUse:
        """Return the range that holds those of all members."""
        ranges = [member.usage["depth"] for member in members]
        low, high = min(each["low"] for each in ranges), max(each["high"] for each in ranges)
        usage = {"depth": ranges[0] | {"low": low, "high": high}, "views": members[0].usage["views"]}
        limits = {name: usage["depth"][name] for name in ("low", "high", "unit")}
        return EnsembleUse(join_values(evaluated, lambda errors: depth_metrics(errors) | limits), usage)

    def export_lines(self, predictor: DepthPredictor) -> list[str]:
        unit = f" {predictor.source.unit}" if predictor.source.unit else ", in the unit of its maps"
        return [f"- depths from {predictor.low:g} to {predictor.high:g}{unit}"]

    def monai_output(self, predictor: DepthPredictor) -> dict[str, Any]:
        return {"type": "image", "format": "depth", "num_channels": 1, "value_range": [predictor.low, predictor.high]}

    def monai_postprocessing(self, predictor: DepthPredictor) -> tuple[list[Transform], str]:
        members = getattr(predictor, "members", [predictor])
        clamp = on_members([f"lambda y: y.clamp({member.low!r}, {member.high!r})" for member in members])
        return monai_map_transforms([clamp], ".tif", "float32", None), MONAI_FILE
