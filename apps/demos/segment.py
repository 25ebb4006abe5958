"""Panel of a segmenter: outline, threshold and download of the mask."""

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
from dinomed.apps.demos.recent import Recent, VisitedPicture
from dinomed.apps.pages.overlay import FILL, draw_mask, draw_probability
from dinomed.apps.quickstart.examples import MAX_PIXELS
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.images.read import write_mask

KEPT_PIXELS = 2 * MAX_PIXELS  # of all visitors in total, 7 bytes per pixel
FILLED, OUTLINE, PROBABILITY = "Filled", "Outline", "Probability"
ANY = "any of them"
CONFIDENCE = (
    "mean of the probability that the model gives to the pixels inside the outline. It is not calibrated: "
    "it shows how certain the model is, not how often it is right."
)


class LesionModel(Protocol):
    """The part of a segmenter that the panel uses."""

    threshold: float

    def probability(self, image: np.ndarray) -> np.ndarray:
        """Return the probability of a lesion, float32 (H, W), for an image, uint8 (H, W, channels)."""
        ...


def describe(probability: np.ndarray, threshold: float, kind: str = LESION) -> str:
    """Return the measurements as HTML, or a message that no region of this `kind` was found."""
    summary = lesion_summary(probability, threshold)
    if summary.confidence is None:
        return message(
            "no-lesion",
            f"No {kind} found at threshold {threshold:.2f}. The highest probability in this picture is "
            f"{summary.highest:.2f}: a lower threshold may outline something, or there may be nothing.",
        )
    height, width = probability.shape
    return (
        '<div class="cards">'
        + _card("area-px", "Area", f"{summary.area_px:,}", "px")
        + _card("area-percent", "Share of the picture", f"{100 * summary.area_fraction:.1f}", "%")
        + _card("confidence", "Mean confidence", f"{100 * summary.confidence:.0f}", "%")
        + f'</div><div class="hint">Picture: {width} × {height} px. Mean confidence: {CONFIDENCE}</div>'
    )


class SegmentPanel(Panel):
    """The panel of a segmenter. One class is outlined at a time; of several classes the visitor chooses one, or any.

    The model runs once for each picture (and class), not for each threshold.

    Args:
        predictor: a `SegmentPredictor`, which shares the pass of its backbone with other panels, or a `LesionModel`.
        preprocessing: reads the files for a `LesionModel`; None for 8-bit RGB.
    """

    name, title = "segment", "Segmentation"
    explanation = (
        "The model estimates the probability of a lesion at each pixel. Pixels with at least the probability of the "
        "threshold are outlined."
    )

    def __init__(self, predictor: LesionModel, preprocessing: Preprocessing | None = None) -> None:
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
            buttons=["fullscreen", "download"], alt_text="The picture with the outline of the lesion",
        )  # fmt: skip
        with gr.Row():
            threshold = gr.Slider(
                0.01, 0.99, value=round(cut, 2), step=0.01, elem_id="threshold",
                label="Threshold (probability)", info="0 to 1; pixels with at least this probability are outlined.",
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
        probability = self._of_class(answers[0], which) if answers else self.predictor.probability(picture.pixels)
        key = self.recent.put(VisitedPicture(count + 1, picture.shown, probability))
        return [key, count + 1, *self.draw(key, cut, view, which), moved, which]

    def refuse(self, reason: str, *values: Any) -> list[Any]:
        _, _, before, count, which, _ = values
        self.recent.drop(before)
        return [None, count, None, reason, _no_mask(), self._cut(*values)[1], which]

    def draw(self, key: str | None, cut: float, view: str, which: str) -> list[Any]:
        """Return the values of the picture, the numbers and the button."""
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
        # Written into Gradio's cache, which is private and emptied regularly; otherwise Gradio would copy the file.
        folder = now.new_drawing(Path(self.result.GRADIO_CACHE))
        outlined, taken = folder / f"outline_{now.number}.jpg", folder / f"mask_{now.number}.png"
        Image.fromarray(drawn).save(outlined, quality=92, subsampling=0)
        write_mask(taken, mask)
        measurements = describe(now.probability, cut, which)
        return [outlined, measurements, gr.DownloadButton(value=taken, interactive=True)]

    def _cut(self, threshold: float, view: str, before: Any, count: int, which: str, chosen: str) -> tuple[float, Any]:
        """Return the threshold and the update of its slider; another class starts at its own threshold."""
        if which == chosen:
            return threshold, gr.skip()
        return self.cuts[which], gr.Slider(value=round(self.cuts[which], 2))

    def _of_class(self, maps: np.ndarray, which: str) -> np.ndarray:
        """Return the map (H, W) of a class from maps float32 (classes, H, W)."""
        assert isinstance(self.predictor, SegmentPredictor)
        if which == ANY or len(maps) == 1:
            return self.predictor.any_class(maps)
        return np.ascontiguousarray(maps[self.predictor.schema.names.index(which)])


def _cuts(predictor: SegmentPredictor) -> dict[str, float]:
    """Return the classes to choose from, each with its initial threshold."""
    schema = predictor.schema
    cuts = {schema.names[k]: 0.5 if schema.exclusive else predictor.thresholds[k] for k in schema.reported}
    return cuts if len(cuts) == 1 else {ANY: predictor.threshold, **cuts}


def _no_mask() -> gr.DownloadButton:
    return gr.DownloadButton(value=None, interactive=False)


def _card(elem_id: str, name: str, value: str, unit: str) -> str:
    return (
        f'<div class="card"><div class="name">{name}</div>'
        f'<div class="value"><span id="{elem_id}">{value}</span> <span class="unit">{unit}</span></div></div>'
    )
