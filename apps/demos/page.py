"""A page: one drop zone, and beside it what one panel, or several in tabs, say of the picture."""

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
"""Whichever event it is: the memory of one picture at work, not of all that wait."""
LIVE: dict[str, Any] = {"trigger_mode": "always_last", "show_progress": "hidden"} | ONE_AT_A_TIME
EVERYTHING = "Drop a picture in: each tab says something else of it."
NOTHING_LEAVES = "Nothing leaves the machine that serves this page."


class Panel(ABC):
    """What a page says of a picture by one adapter or index.

    `consumers` are asked together with those of the other panels, so that adapters of one backbone share its pass.
    `preprocessing` reads the files. After `build` there are `inputs`, what visitors set (and what the page remembers of
    a visit); `outputs`, what `answer` and `refuse` give values for; `asks`, those of the inputs whose change asks the
    adapter anew; and `waits`, the output that shows that an answer is under way.
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
        """Make the components, within the page."""

    def listen(self) -> None:  # noqa: B027 (most have none)
        """Events of its own: what visitors can change without asking the adapter anew."""

    @abstractmethod
    def answer(self, picture: Picture, answers: Sequence[Any], *values: Any) -> list[Any]:
        """What each consumer says of the picture (`predict_many`) -> values of the outputs."""

    @abstractmethod
    def refuse(self, told: str, *values: Any) -> list[Any]:
        """Values of the outputs where there is no picture: `told`, HTML, says why."""


def build_page(panels: Sequence[Panel], examples: Sequence[Path] = (), subtitle: str = "") -> gr.Blocks:
    """The page of these panels; `serve` serves it. Of a visit nothing is kept but what a panel says."""
    title = " · ".join(panel.title for panel in panels)
    explanation = panels[0].explanation if len(panels) == 1 else EVERYTHING
    with gr.Blocks(title=f"dinomed: {title.lower()}", analytics_enabled=False, delete_cache=CACHE_SWEEP_S) as demo:
        told = f"<p>{explanation} {NOTHING_LEAVES}</p><p>{html.escape(subtitle)}</p>"
        gr.HTML(f"<h1>{title}</h1>{told}", elem_id="title")
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
        every = [picture, *(one for panel in panels for one in panel.inputs)]
        outputs = [one for panel in panels for one in panel.outputs]
        picture.change(look, every, outputs, show_progress_on=[panel.waits for panel in panels], **ONE_AT_A_TIME)
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
    """A function of a file's path (None: there is none) and the inputs of all panels; it gives all their outputs."""

    def look(path: str | None, *values: Any) -> list[Any]:
        left = iter(values)
        own = [[next(left) for _ in panel.inputs] for panel in panels]
        found: list[Any] = []
        for panel, answered, given in zip(panels, _ask(panels, path), own, strict=True):
            if isinstance(answered, str):
                found += panel.refuse(answered, *given)
            else:
                found += panel.answer(*answered, *given)
        return found

    return look


def _ask(panels: Sequence[Panel], path: str | None) -> list[tuple[Picture, list[Any]] | str]:
    """Of each panel the picture as its backbone reads it, and what its consumers say; or why there is none."""
    if path is None:
        return [WAITING] * len(panels)
    together: dict[Any, list[int]] = {}
    for place, panel in enumerate(panels):
        reads = panel.preprocessing
        together.setdefault(None if reads is None else (reads.channels, reads.intensity), []).append(place)
    found: dict[int, tuple[Picture, list[Any]] | str] = {}
    for places in together.values():  # of those that read a file alike
        picture, told = read_picture(path, panels[places[0]].preprocessing)
        if picture is None:
            found |= dict.fromkeys(places, told)
            continue
        consumers = [one for place in places for one in panels[place].consumers]
        said = iter([of_images[0] for of_images in predict_many(consumers, [picture.given])])
        found |= {place: (picture, [next(said) for _ in panels[place].consumers]) for place in places}
    return [found[place] for place in range(len(panels))]
