"""Panel of the most similar cases of an index, with the regions that match."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from dinomed.adapters.retrieval.search import ImageIndex
from dinomed.apps.demos.cases import show_cases, similar
from dinomed.apps.demos.page import Panel
from dinomed.apps.demos.parts import WAITING, Picture

MAX_CASES = 24


class RetrievePanel(Panel):
    """The panel of an index. Pictures of the index become parts of the page; nothing of a visit is kept."""

    name, title = "retrieve", "Similar cases"
    explanation = (
        "The most similar cases of an index are shown, with their labels. Frames of the same number mark regions that "
        "match."
    )

    def __init__(self, image_index: ImageIndex) -> None:
        self.image_index = image_index
        self.consumers, self.preprocessing = [image_index], image_index.backbone.preprocessing

    def build(self) -> None:
        total = len(self.image_index.vector_index)
        with gr.Row():
            count = gr.Slider(1, min(MAX_CASES, total), value=min(6, total), step=1, label="Cases", elem_id="count")
            regions = gr.Checkbox(True, label="Show which regions match", elem_id="regions")
            exclude = gr.Checkbox(
                True, label="Not of the same patient, lesion or video", elem_id="exclude",
                info="Known for pictures that are in the index themselves.",
            )  # fmt: skip
        self.waits = gr.HTML(WAITING, elem_id="found")
        self.inputs, self.outputs, self.asks = [count, regions, exclude], [self.waits], [count, regions, exclude]

    def answer(self, picture: Picture, answers: Sequence[Any], *values: Any) -> list[Any]:
        (query,), (count, regions, exclude) = answers, values
        found, related = similar(self.image_index, query, picture.sha256, int(count), exclude)
        return [show_cases(self.image_index, picture, found, related, regions=regions)]

    def refuse(self, reason: str, *values: Any) -> list[Any]:
        return [reason]
