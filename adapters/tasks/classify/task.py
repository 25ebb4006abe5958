"""Classification task: classes or labels of an image, or of a group of images."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from dinomed.adapters.fitting.config import TrainConfig
from dinomed.adapters.fitting.head_fit import HeadFit
from dinomed.adapters.heads.auto import AutoClassifierConfig, candidate_data, last_blocks
from dinomed.adapters.record import AdapterRecord
from dinomed.adapters.task import OF_SINGLE_MEMBERS, TASKS, EnsembleUse, Task, Unit
from dinomed.adapters.tasks.classify.answer import answer_from, combine_answers
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.adapters.tasks.classify.evaluated import EvaluatedClasses, join_classes
from dinomed.adapters.tasks.classify.labels import LabelColumns
from dinomed.adapters.tasks.classify.predict import ClassifyPredictor, EnsembleClassifier
from dinomed.adapters.tasks.classify.writer import ClassifyWriter
from dinomed.adapters.tasks.monai_maps import monai_literal
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.config import build_config
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.metrics.uncertainty.abstention import AbstentionRule

TOKENS = ("cls", "mean", "cls+mean")


@TASKS.register("classify")
class ClassifyTask(Task):
    """Classification: probabilities of exclusive classes, or of labels that may occur together."""

    name, title = "classify", "classifier"
    pipeline_tag, output_names = "image-classification", ("probabilities",)
    page_section, panel = "dinomed.apps.pages.classes:build_class_section", "dinomed.apps.demos.classify:ClassifyPanel"
    panel_takes_index = True
    video_answer = "dinomed.adapters.video.groups:build_answer"
    metric_titles: ClassVar[Mapping[str, str]] = {
        "auroc": "AUROC (mean over classes, each against the rest)",
        "auprc": "AUPRC (mean over classes)",
        "balanced_accuracy": "balanced accuracy",
        "accuracy": "accuracy",
        "ece": "calibration error (ECE, 15 bins)",
        "brier": "Brier score",
        "nll": "log loss, nats",
    }
    has_ensembles = True
    config, predictor = ClassifyConfig, ClassifyPredictor

    @property
    def head_fit(self) -> type[HeadFit]:
        from dinomed.adapters.tasks.classify.fit import ClassifierFit

        return ClassifierFit

    def candidates(self, config: ClassifyConfig, backbone: FrozenBackbone) -> dict[str, TrainConfig]:
        """List the cheap heads and read-outs; the attentive heads and the second size are for single images."""
        choice = config.head
        assert isinstance(choice, AutoClassifierConfig)
        configs: dict[str, TrainConfig] = {}

        def add(title: str, head: dict[str, Any], **settings: Any) -> None:
            configs[title] = build_config(
                ClassifyConfig, candidate_data(config, head, **settings), f"head auto, {title}"
            )

        if "knn" in choice.heads:
            for tokens in TOKENS:
                add(f"knn, {tokens}", {"name": "knn", "tokens": tokens})
        if "logistic" in choice.heads:
            for blocks in last_blocks(choice.last, backbone.depth):
                for tokens in TOKENS:
                    title = (
                        f"logistic, last {len(blocks)} blocks, {tokens}" if len(blocks) > 1 else f"logistic, {tokens}"
                    )
                    add(title, {"name": "logistic", "blocks": blocks, "tokens": tokens})
            if choice.second_scale is not None and config.unit == "image":
                scales = (1.0, choice.second_scale)
                add(
                    f"logistic, cls+mean, sizes 1 and {choice.second_scale:g}",
                    {"name": "logistic", "tokens": "cls+mean"},
                    scales=scales,
                )
        if "attentive" in choice.heads and config.unit == "image":
            for registers in (0, 4):
                title = f"attentive, {registers} registers" if registers else "attentive"
                add(title, {"name": "attentive", "registers": registers})
        if not configs:
            raise UsageError(
                "head.heads: attentive is for single images, not for unit: group; name knn or logistic too"
            )
        return configs

    def usable_rows(self, record: AdapterRecord, manifest: Manifest) -> Manifest:
        answer = answer_from(record)
        return LabelColumns(answer.columns, answer.separator).usable(manifest)

    def evaluate(self, predictor: ClassifyPredictor, manifest: Manifest, split: str) -> EvaluatedClasses:
        return self.evaluate_units(predictor, manifest, split)

    def evaluate_units(
        self, predictor: ClassifyPredictor, manifest: Manifest, split: str, unit: Unit | None = None
    ) -> EvaluatedClasses:
        from dinomed.adapters.tasks.classify.evaluate import evaluate_classifier

        return evaluate_classifier(predictor, manifest, split, unit)

    def build_ensemble(self, record: AdapterRecord, members: Sequence[ClassifyPredictor]) -> ClassifyPredictor:
        return EnsembleClassifier(record, members)

    def combine_use(self, members: Sequence[AdapterRecord], evaluated: Sequence[EvaluatedClasses]) -> EnsembleUse:
        joined = join_classes(evaluated)
        answers = [answer_from(record) for record in members]
        answer = combine_answers(
            answers,
            [part.probabilities for part in evaluated],
            [part.targets for part in evaluated],
            [part.groups for part in evaluated],
        )
        left_out = {
            name: f"{what} {OF_SINGLE_MEMBERS}"
            for name, what in (("abstention", "the thresholds were"), ("prediction sets", "the limit was"))
            if answer.unit == "group" and (name == "abstention" or answers[0].sets is not None)
        }
        return EnsembleUse(replace(joined, answer=answer), answer.model_dump(mode="json"), left_out=left_out)

    def evaluation_settings(self, predictor: ClassifyPredictor) -> dict[str, Any]:
        return {"classes": predictor.classes}

    def class_table(self, metrics: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        keys = ("n", "recall" if "confusion" in metrics else "sensitivity", "auroc", "auprc")
        rows = [(name, *(row[key] for key in keys)) for name, row in metrics["per_class"].items()]
        return ("class", "n", "sensitivity", "AUROC", "AUPRC"), rows

    def build_writer(self, predictor: ClassifyPredictor, names: Sequence[str]) -> ClassifyWriter:
        return ClassifyWriter(predictor, names)

    def predict_groups(
        self, predictor: ClassifyPredictor, manifest: Manifest, out: Path, *, overwrite: bool,
        rule: AbstentionRule | None = None,
    ) -> Any:  # fmt: skip
        from dinomed.adapters.tasks.classify.predict_groups import predict_group_table

        return predict_group_table(predictor, manifest, out, overwrite=overwrite, rule=rule)

    def card_rows(self, record: AdapterRecord) -> list[tuple[str, str]]:
        usage = record.usage
        labels = "labels that may occur together" if usage.get("multilabel") else "one class of several"
        unit = "a group of images" if usage.get("unit") == "group" else "an image"
        temperature = usage.get("temperature")
        scales = usage.get("scales") or [1.0]
        sizes = f", read at {' and '.join(f'{scale:g}' for scale in scales)} times the image size"
        return [
            ("prediction", f"{labels}, for {unit}{sizes if list(scales) != [1.0] else ''}"),
            ("temperature", "none" if temperature is None else f"{temperature:.3f}, fitted on val"),
            *_set_rows(record),
        ]

    def export_lines(self, predictor: ClassifyPredictor) -> list[str]:
        answer = predictor.answer
        kind = "a sigmoid for each label" if answer.multilabel else "one softmax over the classes"
        temperature = "no temperature" if answer.temperature is None else f"temperature {answer.temperature:.4f}"
        several = isinstance(predictor, EnsembleClassifier)
        if several:
            temperature = "the temperature of each member"
        lines = [f"- probabilities: {kind}, {temperature} (applied already)"]
        if any(threshold is not None for threshold in answer.thresholds):
            thresholds = ", ".join(
                f"{name} {'none' if threshold is None else f'{threshold:.4f}'}"
                for name, threshold in zip(predictor.classes, answer.thresholds, strict=True)
            )
            images = "out of fold" if several else "on validation"
            lines.append(f"- thresholds with the largest sensitivity + specificity {images}: {thresholds}")
        if answer.unit == "group":
            pooling = (
                "features averaged" if answer.pool == "mean" else f"features of {answer.width} images concatenated"
            )
            lines.append(f"- trained on groups of images ({pooling}); the exported model treats each image as a group")
        return lines

    def monai_output(self, predictor: ClassifyPredictor) -> dict[str, Any]:
        return {
            "type": "probabilities", "format": "classes", "num_channels": len(predictor.classes), "value_range": [0, 1]
        }  # fmt: skip

    def monai_postprocessing(self, predictor: ClassifyPredictor) -> tuple[list[dict[str, Any]], str]:
        names = monai_literal(list(map(str, predictor.classes)))
        if predictor.answer.multilabel:
            limits = predictor.answer.limits(len(predictor.classes)).tolist()
            decide = (
                f"{monai_literal(predictor.separator)}.join(name for name, value, limit in zip({names}, "
                f"data['pred'].tolist(), {limits!r}) if value >= limit)"
            )
        else:
            decide = f"{names}[int(data['pred'].argmax())]"
        label = {"_target_": "Lambda", "func": f"$lambda data: {{**data, 'label': {decide}}}"}
        return [label], "{'image': image, 'label': done['label'], 'probabilities': done['pred'].tolist()}"


def _set_rows(record: AdapterRecord) -> list[tuple[str, str]]:
    """Return the row of the model card about prediction sets; none for an adapter without them."""
    answer = answer_from(record)
    if (cross := answer.cross) is not None:
        text = f"coverage {cross.coverage:g}, by comparison with images out of fold (CV+; no guarantee, because "
        text += "members were selected on their fold)"
        text = text if cross.problem is None else f"hold all classes: {cross.problem}"
        return [("prediction sets", f"{text}; calibrated on {cross.groups} groups")]
    limit = answer.sets
    if limit is None:
        return []
    text = f"coverage {limit.coverage:g}: classes with a probability of at least {limit.limit:.4g}"
    text = text if limit.problem is None else f"hold all classes: {limit.problem}"
    return [("prediction sets", f"{text}; chosen on {limit.groups} groups of val")]
