"""Panel of the tasks that have no panel of their own: a table of values."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from dinomed.adapters.predictor import Predictor
from dinomed.adapters.task import find_task
from dinomed.apps.demos.look import text
from dinomed.apps.demos.page import Panel
from dinomed.apps.demos.parts import Picture, Summary


class ValuesPanel(Panel):
    """The panel of an adapter of any task: the values that `Task.output_rows` names."""

    name, explanation = "values", text("values_explanation")
    summarizes = True

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.preprocessing = predictor, predictor.backbone.preprocessing
        self.consumers, self.check = [predictor], predictor.check
        self.task = find_task(predictor.task)
        self.name, self.title = self.task.name, self.task.title.capitalize()  # type: ignore[misc]

    def controls(self) -> str:
        return f'<div class="dm-result" id="values-{html.escape(self.name)}" aria-live="polite"></div>'

    def answer(self, picture: Picture, answers: Sequence[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        return {"html": show_values(self.task.output_rows(self.predictor, answers[0]))}

    def summarize(self, picture: Picture, answers: Sequence[Any], settings: Mapping[str, Any]) -> Summary:
        rows = self.task.output_rows(self.predictor, answers[0])
        shown = ", ".join(f"{name} {value:.4g}" for name, value in rows[:3])
        return Summary(shown, {f"{self.name} {name}": float(value) for name, value in rows})


def show_values(rows: Sequence[tuple[str, float]]) -> str:
    """Return HTML with a card for each value."""
    cards = "".join(f"<div><dt>{html.escape(name)}</dt><dd>{value:.4g}</dd></div>" for name, value in rows)
    return f'<dl class="dm-cards">{cards}</dl>'
