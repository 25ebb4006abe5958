"""Page of a demo: one place for a picture, and one panel, or several in tabs, with the results."""

import html
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import gradio as gr

from dinomed.adapters.inference.shared import FeatureConsumer, predict_many
from dinomed.apps.demos.parts import WAITING, Picture, drop_zone, read_picture
from dinomed.apps.demos.serve import CACHE_SWEEP_S
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.notice import RESEARCH_USE

ONE_AT_A_TIME: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "look", "concurrency_limit": 1}
"""All events share one queue, so that only one picture is processed at a time."""
LIVE: dict[str, Any] = {"trigger_mode": "always_last", "show_progress": "hidden"} | ONE_AT_A_TIME
EVERYTHING = "Drop a picture here; each tab shows another result."
NOTHING_LEAVES = "Nothing leaves the machine that serves this page."


class Panel(ABC):
    """The part of a page that shows the result of one adapter or index.

    Attributes:
        consumers: adapters and indexes; those of all panels run together and share the pass of their backbone.
        preprocessing: reads the files.
        inputs: components that visitors set, and the state of a visit; made by `build`.
        outputs: components whose values `answer` and `refuse` return.
        asks: inputs whose change runs the consumers again.
        waits: output that shows that a result is computed.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    explanation: ClassVar[str]
    consumers: Sequence[FeatureConsumer]
    preprocessing: Preprocessing | None
    inputs: list[Any]
    outputs: list[Any]
    asks: Sequence[Any] = ()
    waits: Any

    @abstractmethod
    def build(self) -> None:
        """Create the components inside the page."""

    def listen(self) -> None:  # noqa: B027 (most have none)
        """Connect events that do not run the consumers again."""

    @abstractmethod
    def answer(self, picture: Picture, answers: Sequence[Any], *values: Any) -> list[Any]:
        """Return the values of the outputs for the results of the consumers, as `predict_many` returns them."""

    @abstractmethod
    def refuse(self, reason: str, *values: Any) -> list[Any]:
        """Return the values of the outputs where there is no picture; `reason` is HTML."""


def build_page(panels: Sequence[Panel], examples: Sequence[Path] = (), subtitle: str = "") -> gr.Blocks:
    """Build the page of some panels, which `serve` serves. Nothing of a visit is kept except what a panel states."""
    title = " · ".join(panel.title for panel in panels)
    explanation = panels[0].explanation if len(panels) == 1 else EVERYTHING
    with gr.Blocks(title=f"dinomed: {title.lower()}", analytics_enabled=False, delete_cache=CACHE_SWEEP_S) as demo:
        introduction = f"<p>{explanation} {NOTHING_LEAVES}</p><p>{html.escape(subtitle)}</p>"
        gr.HTML(f"<h1>{title}</h1>{introduction}", elem_id="title")
        gr.HTML(f'<div id="research">{RESEARCH_USE.capitalize()}.</div>')
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                picture = drop_zone(examples)
            with gr.Column(scale=3, min_width=380):
                if len(panels) == 1:
                    panels[0].build()
                else:
                    _build_tabs(panels)
        look = looker(panels)
        inputs = [picture, *(component for panel in panels for component in panel.inputs)]
        outputs = [component for panel in panels for component in panel.outputs]
        picture.change(look, inputs, outputs, show_progress_on=[panel.waits for panel in panels], **ONE_AT_A_TIME)
        for panel in panels:
            panel.listen()
            for control in panel.asks:
                control.change(looker([panel]), [picture, *panel.inputs], panel.outputs, **LIVE)
    return demo


def _build_tabs(panels: Sequence[Panel]) -> None:
    with gr.Tabs():
        for panel in panels:
            with gr.Tab(panel.title, elem_id=f"tab-{panel.name}"):
                gr.HTML(f'<div class="hint">{panel.explanation}</div>')
                panel.build()


def looker(panels: Sequence[Panel]) -> Callable[..., list[Any]]:
    """Return a function from the path of a file (or None) and the inputs of all panels to all their outputs."""

    def look(path: str | None, *values: Any) -> list[Any]:
        remaining = iter(values)
        inputs_of_panels = [[next(remaining) for _ in panel.inputs] for panel in panels]
        outputs: list[Any] = []
        for panel, result, inputs in zip(panels, _run_consumers(panels, path), inputs_of_panels, strict=True):
            if isinstance(result, str):
                outputs += panel.refuse(result, *inputs)
            else:
                outputs += panel.answer(*result, *inputs)
        return outputs

    return look


def _run_consumers(panels: Sequence[Panel], path: str | None) -> list[tuple[Picture, list[Any]] | str]:
    """Return for each panel the picture as its backbone reads it and the results of its consumers, or a message."""
    if path is None:
        return [WAITING] * len(panels)
    panels_by_reading: dict[Any, list[int]] = {}
    for place, panel in enumerate(panels):
        reader = panel.preprocessing
        panels_by_reading.setdefault(None if reader is None else (reader.channels, reader.intensity), []).append(place)
    results: dict[int, tuple[Picture, list[Any]] | str] = {}
    for places in panels_by_reading.values():  # panels that read a file in the same way
        picture, reason = read_picture(path, panels[places[0]].preprocessing)
        if picture is None:
            results |= dict.fromkeys(places, reason)
            continue
        consumers = [consumer for place in places for consumer in panels[place].consumers]
        answers = iter([of_images[0] for of_images in predict_many(consumers, [picture.pixels])])
        results |= {place: (picture, [next(answers) for _ in panels[place].consumers]) for place in places}
    return [results[place] for place in range(len(panels))]
