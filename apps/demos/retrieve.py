"""The retrieval demo: drop a picture, see the most similar cases of an index and what in them matches."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from dinomed.adapters.retrieval.search import Retriever
from dinomed.apps.demos.cases import show_cases, similar
from dinomed.apps.demos.parts import WAITING, drop_zone, read_picture
from dinomed.apps.demos.serve import CACHE_SWEEP_S
from dinomed.notice import RESEARCH_USE

MOST = 24  # cases on a page
EXPLANATION = (
    "Drop a picture in: the most similar cases of the index are shown, with their labels. Frames of the same number "
    "mark regions that match. Nothing leaves the machine that serves this page."
)


def build_retrieve_demo(retriever: Retriever, examples: Sequence[Path] = (), subtitle: str = "") -> gr.Blocks:
    """The page; `serve` serves it. Pictures of the index become parts of the page; nothing of a visit is kept."""
    with gr.Blocks(title="dinomed: similar cases", analytics_enabled=False, delete_cache=CACHE_SWEEP_S) as demo:
        gr.HTML(f"<h1>Similar cases</h1><p>{EXPLANATION}</p><p>{html.escape(subtitle)}</p>", elem_id="title")
        gr.HTML(f'<div id="research">{RESEARCH_USE.capitalize()}.</div>')
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                picture = drop_zone(examples)
                count = gr.Slider(
                    1, min(MOST, len(retriever.index)), value=min(6, len(retriever.index)), step=1,
                    label="Cases", elem_id="count",
                )  # fmt: skip
                regions = gr.Checkbox(True, label="Show which regions match", elem_id="regions")
                exclude = gr.Checkbox(
                    True, label="Not of the same patient, lesion or video", elem_id="exclude",
                    info="Known for pictures that are in the index themselves.",
                )  # fmt: skip
            with gr.Column(scale=3, min_width=380):
                answer = gr.HTML(WAITING, elem_id="answer")

        def look(path: str | None, k: int, with_regions: bool, without_own: bool) -> str:
            if path is None:
                return WAITING
            dropped, told = read_picture(path, retriever.backbone.preprocessing)
            if dropped is None:
                return told
            query = retriever.vectors(retriever.backbone.preprocessing(dropped.given)[None])[0]
            found, related = similar(retriever, query, dropped.sha256, int(k), without_own)
            return show_cases(retriever, dropped, found, related, regions=with_regions)

        one: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "look", "concurrency_limit": 1}
        inputs = [picture, count, regions, exclude]
        picture.change(look, inputs, [answer], show_progress_on=[answer], **one)
        for control in (count, regions, exclude):
            control.change(look, inputs, [answer], trigger_mode="always_last", show_progress="hidden", **one)
    return demo
