"""Page of a demo: a viewer for one picture, and a tab for each result.

The page is one component of Gradio, `static/app.html`, with its own script. The script sends a request for a picture
and draws the answer; see `App`.
"""

import html
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import gradio as gr
from gradio.route_utils import Request

from dinomed.adapters.inference.shared import FeatureConsumer, predict_many
from dinomed.adapters.training_images import FamiliarityCheck, usable_check
from dinomed.apps.demos.guard import REFUSALS
from dinomed.apps.demos.look import fill_template, script, text
from dinomed.apps.demos.parts import (
    PUT_AWAY,
    Picture,
    Summary,
    find_upload,
    inline_file,
    inline_preview,
    inline_values,
    message,
    read_picture,
)
from dinomed.apps.demos.turns import Busy, Gone, Turns
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.burned_in_text.mask import TextMask
from dinomed.errors import first_line
from dinomed.features.familiarity.reference import Familiarity
from dinomed.features.finite import NotFiniteError
from dinomed.log import logger
from dinomed.video.packets import MAX_FRAMES

MAX_VISITS = 1024
BUSY = message("busy", text("busy"))
BAD_REQUEST = message("error", text("bad_request"))
NO_RESULT = message("error", text("no_result"))
FAILED = message("error", text("failed"))


class Panel(ABC):
    """The part of a page that shows the result of one adapter or index.

    Attributes:
        name: of the panel in requests; the settings of its controls arrive under this name.
        reference: what `check` compares a picture with, in words.
        consumers: adapters and indexes; those of all panels run together and share the pass of their backbone.
        preprocessing: reads the files.
        check: whether a picture is unlike the images of the training or of the index; the page then shows the answer
            only if the visitor asks for it.
        predicts: False for a panel that shows features and no prediction; it needs no check.
        answers: False for a panel that shows nothing of the picture in the viewer.
        summarizes: whether the panel takes part in a batch.
        outlines: whether its summaries have masks.
        has_uncertainty: whether its summaries have an uncertainty.
        text_mask: masks burned-in text in what is shown and saved, or None.
        functions: further functions that the script calls, by name; each answers a request in its turn.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    explanation: ClassVar[str]
    reference: ClassVar[str] = text("training_images")
    consumers: Sequence[FeatureConsumer]
    preprocessing: Preprocessing | None
    check: FamiliarityCheck | None = None
    text_mask: TextMask | None = None
    predicts: ClassVar[bool] = True
    answers: ClassVar[bool] = True
    summarizes: ClassVar[bool] = False
    outlines: ClassVar[bool] = False
    has_uncertainty: ClassVar[bool] = False
    functions: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = MappingProxyType({})

    @abstractmethod
    def controls(self) -> str:
        """Return the HTML of the panel.

        An input with the attribute `data-setting` is sent under this name. If it has `data-asks` too, its change runs
        the consumers again. The element `.dm-result` receives the `html` of an answer.
        """

    @abstractmethod
    def answer(self, picture: Picture, answers: Sequence[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the script shows, for the results of the consumers, as `predict_many` returns them."""

    def summarize(self, picture: Picture, answers: Sequence[Any], settings: Mapping[str, Any]) -> Summary | None:
        """Return the result of one picture of a batch; None if its values are not finite."""
        return None


class App:
    """The page of some panels.

    A request is {"id", "visit", "path", "frame", "panels", "settings"}: an identifier of the picture and its frame,
    chosen by the page; one of the visit; the name of the upload (`find_upload`); the number of the frame, 0 if it is
    left out; the names of panels, or null for all; and the settings of each panel by its name. The answer has the same
    "id", by which the page drops answers for a picture or a frame that it no longer shows.

    Args:
        panels: the tabs.
        examples: pictures to choose from.
        subtitle: text below the title.
    """

    def __init__(self, panels: Sequence[Panel], examples: Sequence[Path] = (), subtitle: str = "") -> None:
        self.panels = {panel.name: panel for panel in panels}
        self.examples = {f"example {number}": path for number, path in enumerate(examples, 1)}
        self.subtitle = subtitle
        self.turns = Turns()
        self._newest: OrderedDict[str, str] = OrderedDict()  # visit -> id of the picture that it shows

    async def look(self, request: dict[str, Any], client: Request) -> dict[str, Any]:
        """Answer a request in its turn. It is dropped if its client has gone, or has opened another picture."""
        if isinstance(request, dict) and isinstance(visit := request.get("visit"), str):
            self._newest[visit[:64]] = str(request.get("id"))
            self._newest.move_to_end(visit[:64])
            while len(self._newest) > MAX_VISITS:
                self._newest.popitem(last=False)
        return await self.in_turn(self.answer, request, client)

    async def mask(self, request: dict[str, Any], client: Request) -> dict[str, Any]:
        """Measure a mask of full size, and return it as a file if the request asks for one."""
        panel = self.panels.get("segment")
        return {} if panel is None else await self.in_turn(getattr(panel, "mask"), request, client)  # noqa: B009

    async def save(self, request: dict[str, Any], client: Request) -> dict[str, Any]:
        """Save the decision of a reviewer about the picture, if the demo has a folder for them."""
        panel: Any = self.panels.get("segment")
        if panel is None or panel.corrections is None:
            return {}
        return await self.in_turn(
            lambda decision: panel.save(decision, self._path(decision["path"]), frame_of(decision)), request, client
        )

    async def values(self, request: dict[str, Any], client: Request) -> dict[str, Any]:
        """Return the values of a gray picture for its display; see `inline_values`."""
        return await self.in_turn(self._values, request, client)

    def _values(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if any(panel.text_mask is not None for panel in self.panels.values()):
            return {}  # they would show the text
        path = self._path(request["path"])
        return {"error": PUT_AWAY} if path is None else inline_values(str(path), frame_of(request))

    async def in_turn(self, compute: Any, request: Any, client: Request) -> dict[str, Any]:
        """Return the answer of `compute` to a request, or {"error"}; both have the "id" of the request."""
        identity = request.get("id") if isinstance(request, dict) else None
        if not isinstance(identity, str) or len(identity) > 64:
            return {"id": None, "error": BAD_REQUEST}
        try:
            result: dict[str, Any] = await self.turns.run(
                lambda: compute(request), lambda: self._is_gone(request, client)
            )
        except Busy:
            result = {"error": BUSY}
        except Gone:
            result = {}
        except REFUSALS as error:
            logger.warning(f"the demo refused a request: {type(error).__name__}; --debug shows where")
            logger.debug("the request", exc_info=error)
            result = {"error": BAD_REQUEST}
        except Exception as error:  # of a model or a device; the visitor gets no details of the server
            logger.error(f"the demo could not answer: {first_line(error, 500)}")
            logger.debug("the failure", exc_info=error)
            result = {"error": FAILED}
        return {"id": identity, **result}

    async def _is_gone(self, request: Mapping[str, Any], client: Request) -> bool:
        visit = request.get("visit")
        newest = self._newest.get(visit[:64]) if isinstance(visit, str) else None
        return newest not in (None, request["id"]) or await client.is_disconnected()

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer of each panel in "panels", with facts of the picture, or {"error"} if it cannot be read."""
        wanted = request.get("panels") or [name for name, panel in self.panels.items() if panel.answers]
        panels = [self.panels[name] for name in dict.fromkeys(wanted)]  # each once, however often it is named
        path = self._path(request["path"])
        if path is None:
            return {"error": PUT_AWAY}
        settings = request.get("settings") or {}
        shown: Picture | None = None
        answers: dict[str, Any] = {}
        reason = ""
        for panel, result in zip(panels, run_consumers(panels, str(path), frame_of(request)), strict=True):
            if isinstance(result, str):
                answers[panel.name], reason = {"html": result}, result
            else:
                shown = shown or result.picture
                answers[panel.name] = panel.answer(result.picture, result.answers, settings.get(panel.name) or {})
                if result.familiarity is not None:
                    answers[panel.name]["familiarity"] = vars(result.familiarity)
        if shown is None:
            return {"error": reason}
        height, width = shown.shown.shape[:2]
        preview = {} if request.get("panels") else {"preview": inline_preview(shown.shown)}
        facts = {
            name: getattr(shown, name) for name in ("frame", "frames", "seconds", "has_values", "problem", "by_region")
        }
        return {"size": [width, height], "spacing": shown.spacing_mm, **facts, "panels": answers, **preview}

    def _path(self, name: str) -> Path | None:
        """Return the file of an example or of an upload; None if it was removed."""
        return self.examples[name] if name in self.examples else find_upload(name)


def build_page(panels: Sequence[Panel], examples: Sequence[Path] = (), subtitle: str = "") -> gr.Blocks:
    """Build the page of some panels, which `serve` serves. Nothing of a visit is kept except what a panel states."""
    app = App(panels, examples, subtitle)
    title = " · ".join(panel.title for panel in panels)
    mask = next((panel.text_mask for panel in panels if panel.text_mask is not None), None)
    with gr.Blocks(title=f"dinomed: {title.lower()}", analytics_enabled=False) as demo:
        server = gr.HTML(
            html_template=fill_template(
                title=html.escape(title),
                subtitle=html.escape(subtitle),
                tabs="".join(_tab(panel, place) for place, panel in enumerate(panels)),
                panels="".join(_tab_panel(panel, place) for place, panel in enumerate(panels)),
                thumbs="".join(_example(name, path, mask) for name, path in app.examples.items()),
            ),
            js_on_load=script(), apply_default_css=False, elem_id="app",
        )  # fmt: skip
        for function in (app.look, app.mask, app.save, app.values):
            _add_server_function(server, function.__name__, function)
        for panel in panels:
            for name, compute in panel.functions.items():
                _add_server_function(server, name, partial(app.in_turn, compute))
    return demo


def _add_server_function(component: gr.HTML, name: str, function: Any) -> None:
    """Make a method callable from the script; `server_functions` of Gradio takes plain functions only."""

    async def call(request: dict[str, Any], client: gr.Request) -> dict[str, Any]:
        result: dict[str, Any] = await function(request, client)
        return result

    call.__name__ = name
    call._is_server_fn = True  # type: ignore[attr-defined]
    setattr(component, call.__name__, call)
    component.server_fns.append(call)


def _tab(panel: Panel, place: int) -> str:
    chosen = "true" if place == 0 else "false"
    return (
        f'<button type="button" role="tab" id="tab-{panel.name}" aria-controls="panel-{panel.name}" '
        f'aria-selected="{chosen}" tabindex="{0 if place == 0 else -1}">{html.escape(panel.title)}</button>'
    )


def _tab_panel(panel: Panel, place: int) -> str:
    hidden = "" if place == 0 else " hidden"
    attributes = (
        f'id="panel-{panel.name}" data-panel="{panel.name}" data-reference="{panel.reference}" '
        f'aria-labelledby="tab-{panel.name}"{hidden}'
    )
    explanation = f'<p class="dm-hint">{html.escape(panel.explanation)}</p>'
    _, problem = usable_check(panel.check)
    if not panel.predicts:
        note = ""
    elif problem is None:
        note = '<p class="dm-hint dm-familiar" hidden></p>'
    else:
        unchecked = f"{text('unchecked').format(reference=panel.reference)} {html.escape(problem)}."
        note = f'<p class="dm-hint dm-unchecked">{unchecked}</p>'
    title, warning = (text(name).format(reference=panel.reference) for name in ("unlike_title", "unlike"))
    banner = (
        f'<div class="message dm-unlike" role="alert" hidden><strong>{title}</strong> <span>{warning}</span>'
        f'<button type="button" class="dm-show-anyway">{text("show_anyway")}</button></div>'
    )
    body = f'<div class="dm-body">{panel.controls()}</div>'
    return f'<section role="tabpanel" tabindex="0" {attributes}>{explanation}{banner}{body}{note}</section>'


def _example(name: str, path: Path, mask: TextMask | None) -> str:
    label = text("open_example").format(name=name)
    return (
        f'<button type="button" class="dm-thumb" data-example="{name}" aria-label="{label}">'
        f"{inline_file(path, 96, mask)}</button>"
    )


@dataclass(frozen=True)
class PanelResult:
    """The picture as the backbone of a panel reads it, the results of its consumers, and of its check."""

    picture: Picture
    answers: list[Any]
    familiarity: Familiarity | None


def frame_of(request: Mapping[str, Any]) -> int:
    """Return the number of the frame of a request.

    Raises:
        ValueError: it is not a whole number from 0 to `MAX_FRAMES`.
    """
    frame = request.get("frame", 0)
    if not isinstance(frame, int) or isinstance(frame, bool) or not 0 <= frame <= MAX_FRAMES:
        raise ValueError("no number of a frame")
    return frame


def run_consumers(panels: Sequence[Panel], path: str, frame: int = 0) -> list[PanelResult | str]:
    """Return for each panel its result for a frame of a file, or a message."""
    panels_by_reading: dict[Any, list[int]] = {}
    for place, panel in enumerate(panels):
        reader = panel.preprocessing
        panels_by_reading.setdefault(None if reader is None else (reader.channels, reader.intensity), []).append(place)
    results: dict[int, PanelResult | str] = {}
    for places in panels_by_reading.values():  # panels that read a file in the same way
        picture, reason = read_picture(path, panels[places[0]].preprocessing, frame, panels[places[0]].text_mask)
        if picture is None:
            results |= dict.fromkeys(places, reason)
            continue
        results |= zip(places, _answer([panels[place] for place in places], picture), strict=True)
    return [results[place] for place in range(len(panels))]


def _answer(panels: Sequence[Panel], picture: Picture) -> list[PanelResult | str]:
    """Return the results of panels that read a picture in the same way; a message for a model without finite values."""
    checks = [usable_check(panel.check)[0] for panel in panels]
    consumers: list[FeatureConsumer] = []
    for panel, check in zip(panels, checks, strict=True):
        consumers += [*panel.consumers, *([] if check is None else [check])]
    try:
        answers = iter([of_images[0] for of_images in predict_many(consumers, [picture.pixels])])
    except NotFiniteError:
        if len(panels) == 1:
            return [NO_RESULT]
        return [result for panel in panels for result in _answer([panel], picture)]
    return [
        PanelResult(picture, [next(answers) for _ in panel.consumers], None if check is None else next(answers))
        for panel, check in zip(panels, checks, strict=True)
    ]
