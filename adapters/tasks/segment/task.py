"""The task segment: masks of one class or of several."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

from dinomed.adapters.evaluated import EvaluatedValues, ReportTable, join_values
from dinomed.adapters.fitting.config import TrainConfig
from dinomed.adapters.fitting.head_fit import HeadFit
from dinomed.adapters.heads.auto import AutoSegmenterConfig, candidate_data, last_blocks
from dinomed.adapters.heads.dpt import quarter_blocks
from dinomed.adapters.inference.ensemble.maps import same_settings
from dinomed.adapters.record import AdapterRecord
from dinomed.adapters.task import OF_SINGLE_MEMBERS, TASKS, EnsembleUse, Task
from dinomed.adapters.tasks.areas import area_tables
from dinomed.adapters.tasks.monai_maps import MONAI_FILE, Transform, monai_map_transforms, on_members, on_pred
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.adapters.tasks.segment.mask_schema import mask_schema_from
from dinomed.adapters.tasks.segment.predict import EnsembleSegmenter, SegmentPredictor
from dinomed.adapters.tasks.segment.writer import SegmentWriter
from dinomed.adapters.tasks.volume_metrics import case_tables
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.config import build_config
from dinomed.datasets.manifest import Manifest

LESION_COLUMNS = {
    "lesions": "lesions", "found": "detected", "missed": "missed", "false": "false positives",
    "sensitivity": "sensitivity", "precision": "precision", "false_per_image": "false positives per image",
    "clear_images": "images without a lesion", "clear_with_false": "of these, with a false positive",
}  # fmt: skip
THRESHOLD_ORIGINS = {
    "val": "chosen on val",
    "fixed": "fixed, since val has few groups",
    "members": "the mean of the members' thresholds",
}
"""Texts of the card for the entry `thresholds_origin` of `AdapterRecord.usage`."""
LESION_NOTE = (
    "A lesion (connected area) counts as detected if a tenth of it is covered; a predicted area that touches no lesion "
    "is a false positive."
)


@TASKS.register("segment")
class SegmentTask(Task):
    """Probabilities of classes at each pixel, and masks."""

    name, title = "segment", "segmenter"
    pipeline_tag, output_names = "image-segmentation", ("probabilities",)
    case_note = "Coloured: predicted. White line: the reference."
    page_section = "dinomed.apps.pages.sections.masks:build_mask_section"
    panel = "dinomed.apps.demos.segment:SegmentPanel"
    video_answer = "dinomed.adapters.video.segment:SegmentVideo"
    metric_titles: ClassVar[Mapping[str, str]] = {
        "dice": "Dice",
        "iou": "IoU",
        "surface_dice": "surface Dice (tolerance 0.5% of the diagonal)",
        "hd95_px": "HD95, px",
    }
    has_ensembles = True
    config, predictor = SegmentConfig, SegmentPredictor

    @property
    def head_fit(self) -> type[HeadFit]:
        from dinomed.adapters.tasks.segment.fit import SegmenterFit

        return SegmenterFit

    def candidates(self, config: SegmentConfig, backbone: FrozenBackbone) -> dict[str, TrainConfig]:
        choice = config.head
        assert isinstance(choice, AutoSegmenterConfig)
        choices = {f"linear, last {len(blocks)} blocks" if len(blocks) > 1 else "linear": blocks
                   for blocks in last_blocks(choice.last, backbone.depth)}  # fmt: skip
        quarters = tuple(dict.fromkeys(quarter_blocks(backbone.depth)))
        choices[f"linear, blocks {', '.join(map(str, quarters))}"] = quarters
        return {
            title: build_config(
                SegmentConfig, candidate_data(config, {"name": "linear", "blocks": blocks}), f"head auto, {title}"
            )
            for title, blocks in choices.items()
        }

    def usable_rows(self, record: AdapterRecord, manifest: Manifest) -> Manifest:
        return mask_schema_from(record.usage.get("mask_schema")).usable(manifest)

    def evaluate(self, predictor: SegmentPredictor, manifest: Manifest, split: str) -> EvaluatedValues:
        from dinomed.adapters.tasks.segment.evaluate import evaluate_segmenter  # imports MONAI, which takes seconds

        return evaluate_segmenter(predictor, manifest)

    def build_ensemble(self, record: AdapterRecord, members: Sequence[SegmentPredictor]) -> SegmentPredictor:
        same_settings(members, "schema")
        return EnsembleSegmenter(record, members)

    def combine_use(self, members: Sequence[AdapterRecord], evaluated: Sequence[EvaluatedValues]) -> EnsembleUse:
        """Average the thresholds of the members: out-of-fold maps at full size are not kept."""
        from dinomed.adapters.tasks.segment.evaluate import summarize_masks  # imports MONAI, which takes seconds

        usage = {name: members[0].usage[name] for name in ("mask_schema", "views")}
        if members[0].usage.get("thresholds"):
            usage["thresholds"] = np.mean([member.usage["thresholds"] for member in members], axis=0).tolist()
            fixed = all(member.usage.get("thresholds_origin") == "fixed" for member in members)
            usage["thresholds_origin"] = "fixed" if fixed else "members"
        known = [member.threshold for member in members if member.threshold is not None]
        threshold = float(np.mean(known)) if known else None
        joined = join_values(evaluated, partial(summarize_masks, classes=list(evaluated[0].cases[0])))
        return EnsembleUse(joined, usage, threshold, {"abstention": f"the thresholds were {OF_SINGLE_MEMBERS}"})

    def evaluation_settings(self, predictor: SegmentPredictor) -> dict[str, Any]:
        return {"threshold": predictor.threshold}

    def report_tables(self, report: Mapping[str, Any]) -> list[ReportTable]:
        lesions = report["metrics"]["lesions"]
        by_class = lesions if isinstance(next(iter(lesions.values())), dict) else {"lesion": lesions}
        rows = [(name, *(row[key] for key in LESION_COLUMNS)) for name, row in by_class.items()]
        table = ReportTable("Lesions", ("", *LESION_COLUMNS.values()), rows, LESION_NOTE)
        return [table, *case_tables(report), *area_tables(report)]

    def build_writer(self, predictor: SegmentPredictor, names: Sequence[str]) -> SegmentWriter:
        return SegmentWriter(predictor, names)

    def masks_of_case(self, predictor: SegmentPredictor, manifest: Manifest, row: int) -> tuple[np.ndarray, np.ndarray]:
        schema, image = predictor.schema, predictor.backbone.preprocessing.read_row(manifest, row)
        predicted = predictor.decide(predictor.probabilities(image))
        return schema.any_class(predicted), schema.any_class(schema.read(manifest, row))

    def card_rows(self, record: AdapterRecord) -> list[tuple[str, str]]:
        if record.threshold is None:
            return []
        origin = THRESHOLD_ORIGINS[record.usage.get("thresholds_origin", "val")]
        return [("threshold", f"{record.threshold:g}, {origin}")]

    def export_lines(self, predictor: SegmentPredictor) -> list[str]:
        schema = predictor.schema
        if schema.exclusive:
            return ["- every pixel has one class, the most probable one"]
        if len(schema.names) == 1:
            return []
        thresholds = ", ".join(
            f"{name} {threshold:.4f}" for name, threshold in zip(schema.names, predictor.thresholds, strict=True)
        )
        origin = " (mean of the members' thresholds)" if isinstance(predictor, EnsembleSegmenter) else ""
        return [f"- classes may overlap; thresholds{origin}: {thresholds}"]

    def monai_output(self, predictor: SegmentPredictor) -> dict[str, Any]:
        schema = predictor.schema
        values = [1] if len(schema.names) == 1 else schema.written_values
        meaning = ({} if 0 in values else {"0": "background"}) | {
            str(value): name for value, name in zip(values, predictor.classes, strict=True)
        }
        adds = len(values) > 1 and not schema.exclusive
        sums = {"description": "a value is the sum of the values of the classes of a pixel"} if adds else {}
        return {
            "type": "labels", "format": "segmentation", "num_channels": 1,
            "value_range": [0, sum(values) if adds else max(values)], "channel_def": meaning, **sums,
        }  # fmt: skip

    def monai_postprocessing(self, predictor: SegmentPredictor) -> tuple[list[Transform], str]:
        schema = predictor.schema
        codes = schema.written_values
        kind = "uint8" if (max(codes) if schema.exclusive else sum(codes)) < 256 else "uint16"
        members = getattr(predictor, "members", [predictor])
        activation = on_members(["lambda y: y.softmax(0)" if schema.exclusive else "torch.sigmoid"] * len(members))
        decision: list[Transform]
        if len(schema.names) == 1:  # 1 in the mask; the file has 255 there, as that of `dinomed predict`
            decision = [{"_target_": "AsDiscreted", "keys": "pred", "threshold": predictor.threshold}]
            return monai_map_transforms([activation, *decision], ".png", "uint8", 255), MONAI_FILE
        if schema.exclusive:
            decision = [
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                on_pred(f"lambda x: torch.tensor({codes})[x.long()]"),
            ]
        else:
            thresholds, bits = (f"torch.tensor({list(row)})[:, None, None]" for row in (predictor.thresholds, codes))
            decision = [on_pred(f"lambda x: ((x >= {thresholds}) * {bits}).sum(0, keepdim=True)")]
        return monai_map_transforms([activation, *decision], ".png", kind, None), MONAI_FILE
