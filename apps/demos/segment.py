"""The segmentation panel: see the outline, move the threshold, take the mask away."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import gradio as gr
import numpy as np
from PIL import Image

from dinomed.adapters.tasks.segment.mask_schema import LESION
from dinomed.adapters.tasks.segment.predict import SegmentPredictor, lesion_summary
from dinomed.apps.demos.page import LIVE, Panel
from dinomed.apps.demos.parts import PUT_AWAY, WAITING, Picture, message
from dinomed.apps.demos.recent import Recent, Seen
from dinomed.apps.pages.overlay import FILL, draw_mask, draw_probability
from dinomed.apps.quickstart.examples import MAX_PIXELS
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.images.read import write_mask

KEPT_PIXELS = 2 * MAX_PIXELS  # of all visitors together, 7 bytes each
FILLED, OUTLINE, PROBABILITY = "Filled", "Outline", "Probability"
ANY = "any of them"
CONFIDENCE = (
    "mean of the probability that the model gives to the pixels inside the outline. It is not calibrated: "
    "it says how sure the model is, not how often it is right."
)


class Predictor(Protocol):
    """What the panel needs of a segmentation adapter (`dinomed.adapters.inference.loader.load_adapter` gives one)."""

    threshold: float

    def probability(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, channels) to the probability of lesion, float32 (H, W)."""
        ...


def describe(probability: np.ndarray, threshold: float, kind: str = LESION) -> str:
    """The measurements as cards of HTML, or that nothing of this `kind` was found."""
    found = lesion_summary(probability, threshold)
    if found.confidence is None:
        return message(
            "no-lesion",
            f"No {kind} found at threshold {threshold:.2f}. The highest probability in this picture is "
            f"{found.highest:.2f}: a lower threshold may outline something, or there may be nothing.",
        )
    height, width = probability.shape
    return (
        '<div class="cards">'
        + _card("area-px", "Area", f"{found.area_px:,}", "px")
        + _card("area-percent", "Share of the picture", f"{100 * found.area_fraction:.1f}", "%")
        + _card("confidence", "Mean confidence", f"{100 * found.confidence:.0f}", "%")
        + f'</div><div class="hint">Picture: {width} × {height} px. Mean confidence: {CONFIDENCE}</div>'
    )


class SegmentPanel(Panel):
    """One class at a time is outlined: where there are several, the visitor chooses which, or any of them.

    The model is called once for each picture (and class), not for each threshold.

    Args:
        predictor: a `SegmentPredictor`, which shares its pass with the other panels, or another by the contract above.
        preprocessing: how files are read for it; None: as they are shown.
    """

    name, title = "segment", "Segmentation"
    explanation = (
        "The model says of each pixel how probable a lesion is there, and what is at least as probable as the "
        "threshold is outlined."
    )

    def __init__(self, predictor: Predictor, preprocessing: Preprocessing | None = None) -> None:
        self.predictor, self.preprocessing = predictor, preprocessing
        self.consumers, self.cuts = [], {LESION: predictor.threshold}
        if isinstance(predictor, SegmentPredictor):
            self.consumers, self.preprocessing = [predictor], predictor.backbone.preprocessing
            self.cuts = _cuts(predictor)
        self.recent = Recent(KEPT_PIXELS)

    def build(self) -> None:
        first, cut = next(iter(self.cuts.items()))
        self.seen, looked_at, self.chosen = gr.State(), gr.State(0), gr.State(first)
        which = gr.Dropdown(
            list(self.cuts), value=first, label="Class", elem_id="which", visible=len(self.cuts) > 1, filterable=False
        )
        self.result = gr.Image(
            label="Outline", interactive=False, height=400, elem_id="result",
            buttons=["fullscreen", "download"], alt_text="The picture with the outline of what was found",
        )  # fmt: skip
        with gr.Row():
            threshold = gr.Slider(
                0.01, 0.99, value=round(cut, 2), step=0.01, elem_id="threshold",
                label="Threshold (probability)", info="0 to 1; pixels at least so probable are outlined.",
            )  # fmt: skip
            view = gr.Radio([FILLED, OUTLINE, PROBABILITY], value=FILLED, label="Show", elem_id="view")
        numbers = gr.HTML(WAITING, elem_id="numbers")
        download = gr.DownloadButton(
            "Download the mask (PNG)", variant="primary", interactive=False, elem_id="download"
        )
        self.drawn: list[Any] = [self.result, numbers, download]
        self.live: list[Any] = [threshold, view]
        self.inputs = [threshold, view, self.seen, looked_at, which, self.chosen]
        self.outputs = [self.seen, looked_at, *self.drawn, threshold, self.chosen]
        self.asks, self.waits = [which], self.result

    def listen(self) -> None:
        for control in self.live:
            control.change(self.draw, [self.seen, *self.live, self.chosen], self.drawn, **LIVE)

    def answer(self, picture: Picture, answers: Sequence[Any], *values: Any) -> list[Any]:
        _, view, before, count, which, _ = values
        self.recent.drop(before)
        cut, moved = self._cut(*values)
        probability = self._of_class(answers[0], which) if answers else self.predictor.probability(picture.given)
        key = self.recent.put(Seen(count + 1, picture.shown, probability))
        return [key, count + 1, *self.draw(key, cut, view, which), moved, which]

    def refuse(self, told: str, *values: Any) -> list[Any]:
        _, _, before, count, which, _ = values
        self.recent.drop(before)
        return [None, count, None, told, _no_mask(), self._cut(*values)[1], which]

    def draw(self, key: str | None, cut: float, view: str, which: str) -> list[Any]:
        """Values of the picture, the numbers and the button."""
        if key is None:
            return [gr.skip(), gr.skip(), gr.skip()]
        now = self.recent.get(key)
        if now is None:
            return [None, PUT_AWAY, _no_mask()]
        mask = (now.probability >= cut).astype(np.uint8)
        if view == PROBABILITY:
            drawn = draw_probability(now.image, now.probability)
        else:
            drawn = draw_mask(now.image, mask, fill=FILL if view == FILLED else 0)
        # Straight into Gradio's own cache, which is private and swept; it would make a second copy otherwise.
        folder = now.new_drawing(Path(self.result.GRADIO_CACHE))
        outlined, taken = folder / f"outline_{now.number}.jpg", folder / f"mask_{now.number}.png"
        Image.fromarray(drawn).save(outlined, quality=92, subsampling=0)
        write_mask(taken, mask)
        told = describe(now.probability, cut, which)
        return [outlined, told, gr.DownloadButton(value=taken, interactive=True)]

    def _cut(self, threshold: float, view: str, before: Any, count: int, which: str, chosen: str) -> tuple[float, Any]:
        """The threshold, and what becomes of its slider: another class begins at its own."""
        if which == chosen:
            return threshold, gr.skip()
        return self.cuts[which], gr.Slider(value=round(self.cuts[which], 2))

    def _of_class(self, maps: np.ndarray, which: str) -> np.ndarray:
        """float32 (classes, H, W) -> (H, W)."""
        assert isinstance(self.predictor, SegmentPredictor)
        if which == ANY or len(maps) == 1:
            return self.predictor.any_class(maps)
        return np.ascontiguousarray(maps[self.predictor.schema.names.index(which)])


def _cuts(predictor: SegmentPredictor) -> dict[str, float]:
    """The classes to choose from, each with the threshold that it begins at."""
    schema = predictor.schema
    own = {schema.names[k]: 0.5 if schema.exclusive else predictor.thresholds[k] for k in schema.reported}
    return own if len(own) == 1 else {ANY: predictor.threshold, **own}


def _no_mask() -> gr.DownloadButton:
    return gr.DownloadButton(value=None, interactive=False)


def _card(elem_id: str, name: str, value: str, unit: str) -> str:
    return (
        f'<div class="card"><div class="name">{name}</div>'
        f'<div class="value"><span id="{elem_id}">{value}</span> <span class="unit">{unit}</span></div></div>'
    )
