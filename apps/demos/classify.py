"""Panel of a classifier: probabilities of the classes, and similar cases."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinomed.adapters.retrieval.search import ImageIndex
from dinomed.adapters.tasks.classify.predict import ClassifyPredictor, ClassProbabilities
from dinomed.apps.demos.look import text
from dinomed.apps.demos.page import Panel
from dinomed.apps.demos.parts import Picture, Summary, abstains, name_abstention, show_abstention
from dinomed.apps.demos.retrieve import show_cases, similar
from dinomed.metrics.uncertainty.abstention import AbstentionRule

CASES = 6
UNCERTAIN_LEAD = 0.2


class ClassifyPanel(Panel):
    """Panel of a classifier, with an optional index for similar cases.

    The index must read pictures in the same way as the classifier. If both have the same backbone and image size, they
    share one backbone pass.
    """

    name, title = "classify", text("title_classify")
    explanation = text("classify_explanation")
    summarizes = has_uncertainty = True

    def __init__(self, predictor: ClassifyPredictor, image_index: ImageIndex | None = None) -> None:
        self.predictor, self.preprocessing = predictor, predictor.backbone.preprocessing
        self.image_index, self.check = image_index, predictor.check
        self.rule: AbstentionRule | None = None
        self.consumers = [predictor] if image_index is None else [predictor, image_index]

    def abstain_by(self, rule: AbstentionRule) -> None:
        """Show no answer for pictures on which the model abstains by this rule."""
        self.rule = rule

    def controls(self) -> str:
        if self.image_index is None:
            return '<div class="dm-result" id="classes" aria-live="polite"></div>'
        return (
            '<div class="dm-result" id="classes" aria-live="polite"></div>'
            f'<label class="dm-check"><input id="similar-regions" type="checkbox" data-setting="regions" data-asks> '
            f"{text('regions')}</label>"
        )

    def answer(self, picture: Picture, answers: Sequence[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        bars = show_state(self.predictor, answers[0], self.rule) + show_probabilities(self.predictor, answers[0])
        if self.image_index is None:
            return {"html": bars}
        neighbors, related = similar(self.image_index, answers[1], picture.sha256, CASES, True)
        cases = show_cases(self.image_index, picture, neighbors, related, regions=bool(settings.get("regions")))
        return {"html": f'{bars}<h3>{text("similar")}</h3><div id="similar">{cases}</div>'}

    def summarize(self, picture: Picture, answers: Sequence[Any], settings: Mapping[str, Any]) -> Summary:
        probabilities: ClassProbabilities = answers[0]
        row = np.array([probabilities[name] for name in self.predictor.classes])
        values: dict[str, Any] = {"predicted": self.predictor.predicted(row)}
        values |= {f"probability {name}": round(value, 4) for name, value in probabilities.items()}
        if probabilities.prediction_set is not None:
            values["prediction_set"] = "|".join(probabilities.prediction_set)
        shown = self.predictor.describe(row)
        if self.rule is not None:
            values["abstained"] = "yes" if abstains(self.rule, probabilities.confidence) else "no"
            shown = name_abstention(self.rule, probabilities.confidence, shown)
        return Summary(shown, values, 1 - probabilities.confidence)


def show_state(predictor: ClassifyPredictor, probabilities: ClassProbabilities, rule: AbstentionRule | None) -> str:
    """Return HTML that says whether the model abstains, and which classes are in the prediction set."""
    parts = []
    if rule is not None and abstains(rule, probabilities.confidence):
        parts.append(show_abstention("abstained", rule, probabilities.confidence, text("abstains_classes")))
    held = probabilities.prediction_set
    if held is not None:
        cross, sets = predictor.answer.cross, predictor.answer.sets
        calibration = cross or sets
        assert calibration is not None, "a prediction with a set has its calibration"
        if calibration.problem is not None:
            shown = html.escape(text("set_all").format(reason=calibration.problem))
        else:
            classes = text("set_one" if len(held) == 1 else "set_several").format(names=", ".join(held))
            reason = text("set_rule" if cross is None else "set_rule_ensemble")
            values = {
                "coverage": f"{100 * calibration.coverage:g}%",
                "groups": f"{calibration.groups:,}",
                "missed": f"{100 * (1 - calibration.coverage):.3g}",
            }
            shown = f"<strong>{html.escape(classes)}</strong> {html.escape(reason.format(**values))}"
        parts.append(f'<div class="dm-hint" id="prediction-set">{shown}</div>')
    return "".join(parts)


def show_probabilities(predictor: ClassifyPredictor, probabilities: Mapping[str, float]) -> str:
    """Return HTML with a bar for each class, the most probable first."""
    rows = []
    for rank, (name, value) in enumerate(sorted(probabilities.items(), key=lambda item: -item[1])):
        best = ' id="best"' if rank == 0 else ""
        rows.append(
            f'<div class="bar-row"{best}><span class="bar-name">{html.escape(name)}</span>'
            f'<span class="bar"><span class="bar-fill" style="width:{100 * value:.1f}%"></span></span>'
            f'<span class="bar-value">{100 * value:.1f}%</span></div>'
        )
    values = sorted(probabilities.values(), reverse=True)
    unsure = not predictor.answer.multilabel and len(values) > 1 and values[0] - values[1] < UNCERTAIN_LEAD
    state = f'<div class="message uncertain" id="uncertain">{text("uncertain")}</div>' if unsure else ""
    hint = text("uncalibrated" if predictor.answer.temperature is None else "calibrated")
    if predictor.answer.multilabel:
        hint = f"{text('multilabel')} {hint}"
    return f'{state}<div id="probabilities">{"".join(rows)}</div><div class="dm-hint" id="calibrated">{hint}</div>'
