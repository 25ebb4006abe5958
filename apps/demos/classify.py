"""The classification demo: drop a picture, see how probable each class is, and cases that look alike."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from dinomed.adapters.predict import ClassifyPredictor
from dinomed.adapters.retrieval.search import Retriever
from dinomed.adapters.together import predict_many
from dinomed.apps.demos.cases import show_cases, similar
from dinomed.apps.demos.parts import WAITING, drop_zone, read_picture
from dinomed.apps.demos.serve import CACHE_SWEEP_S
from dinomed.notice import RESEARCH_USE

CASES = 6
EXPLANATION = (
    "Drop a picture in: the model says how probable each class is. Nothing leaves the machine that serves this page."
)
CALIBRATED = (
    "Calibrated on the validation images: of pictures like these that get 80%, about 80% were of that class. Of other "
    "pictures, and of classes that the model does not know, it says nothing."
)
UNCALIBRATED = "Not calibrated: how sure the model is, not how often it is right."


def build_classify_demo(
    predictor: ClassifyPredictor, retriever: Retriever | None = None, examples: Sequence[Path] = (), subtitle: str = ""
) -> gr.Blocks:
    """The page; `serve` serves it. With an index on the same backbone and size, one pass answers for both."""
    with gr.Blocks(title="dinomed: classification", analytics_enabled=False, delete_cache=CACHE_SWEEP_S) as demo:
        gr.HTML(f"<h1>Classification</h1><p>{EXPLANATION}</p><p>{html.escape(subtitle)}</p>", elem_id="title")
        gr.HTML(f'<div id="research">{RESEARCH_USE.capitalize()}.</div>')
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                picture = drop_zone(examples)
            with gr.Column(scale=3, min_width=380):
                answer = gr.HTML(WAITING, elem_id="answer")
                with gr.Tabs(visible=retriever is not None), gr.Tab("Similar cases", elem_id="similar-tab"):
                    regions = gr.Checkbox(False, label="Show which regions match", elem_id="regions")
                    alike = gr.HTML("", elem_id="similar")

        def look(path: str | None, with_regions: bool) -> list[str]:
            if path is None:
                return [WAITING, ""]
            dropped, told = read_picture(path, predictor.backbone.preprocessing)
            if dropped is None:
                return [told, ""]
            if retriever is None:
                return [show_probabilities(predictor, predict_many([predictor], [dropped.given])[0][0]), ""]
            (probabilities,), (query,) = predict_many([predictor, retriever], [dropped.given])
            found, related = similar(retriever, query, dropped.sha256, CASES, True)
            cases = show_cases(retriever, dropped, found, related, regions=with_regions)
            return [show_probabilities(predictor, probabilities), cases]

        one: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "look", "concurrency_limit": 1}
        picture.change(look, [picture, regions], [answer, alike], show_progress_on=[answer], **one)
        regions.change(
            look, [picture, regions], [answer, alike], trigger_mode="always_last", show_progress="hidden", **one
        )
    return demo


def show_probabilities(predictor: ClassifyPredictor, probabilities: Mapping[str, float]) -> str:
    """HTML with a bar for each class, the most probable first."""
    rows = []
    for place, (name, value) in enumerate(sorted(probabilities.items(), key=lambda item: -item[1])):
        best = ' id="best"' if place == 0 else ""
        rows.append(
            f'<div class="bar-row"{best}><span class="bar-name">{html.escape(name)}</span>'
            f'<span class="bar"><span class="bar-fill" style="width:{100 * value:.1f}%"></span></span>'
            f'<span class="bar-value">{100 * value:.1f}%</span></div>'
        )
    said = UNCALIBRATED if predictor.answer.temperature is None else CALIBRATED
    if predictor.answer.multilabel:
        said = f"Labels do not exclude each other. {said}"
    return f'<div id="probabilities">{"".join(rows)}</div><div class="hint" id="calibrated">{said}</div>'
