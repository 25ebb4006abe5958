"""The lesion segmentation demo: drop a picture, see the outline, move the threshold, take the mask away."""

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import gradio as gr
import numpy as np
from PIL import Image

from dinomed.adapters.predict import lesion_summary
from dinomed.apps.demos.parts import PUT_AWAY, WAITING, drop_zone, message
from dinomed.apps.demos.recent import Recent, Seen
from dinomed.apps.demos.serve import CACHE_SWEEP_S
from dinomed.apps.examples import MAX_PIXELS
from dinomed.apps.overlay import FILL, draw_mask, draw_probability
from dinomed.errors import DinomedError
from dinomed.images.read import read_image, write_mask
from dinomed.notice import RESEARCH_USE

KEPT_PIXELS = 2 * MAX_PIXELS  # of all visitors together, 7 bytes each
FILLED, OUTLINE, PROBABILITY = "Filled", "Outline", "Probability"
EXPLANATION = (
    "Drop a picture in: the model says of each pixel how probable a lesion is there, and what is at least as probable "
    "as the threshold is outlined. Nothing leaves the machine that serves this page."
)
CONFIDENCE = (
    "mean of the lesion probability that the model gives to the pixels inside the outline. It is not calibrated: "
    "it says how sure the model is, not how often it is right."
)


class Predictor(Protocol):
    """What the demo needs of a segmentation adapter (`dinomed.adapters.predict.load_adapter` gives one)."""

    threshold: float

    def probability(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, channels) to the probability of lesion, float32 (H, W)."""
        ...


def describe(probability: np.ndarray, threshold: float) -> str:
    """The measurements as cards of HTML, or that no lesion was found."""
    found = lesion_summary(probability, threshold)
    if found.confidence is None:
        return message(
            "no-lesion",
            f"No lesion found at threshold {threshold:.2f}. The highest probability in this picture is "
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


def build_segment_demo(
    predictor: Predictor,
    examples: Sequence[Path] = (),
    subtitle: str = "",
    read: Callable[[str], np.ndarray] | None = None,
) -> gr.Blocks:
    """The page; `serve` serves it.

    Args:
        predictor: gives the probability map of a picture; called once for each picture, not for each threshold.
        examples: pictures to try, shown as thumbnails.
        subtitle: one line under the title: which adapter on which backbone.
        read: a file -> what the predictor takes of it (16 bits, bands), where that is not the picture as it is shown.
    """
    with gr.Blocks(title="dinomed: lesion segmentation", analytics_enabled=False, delete_cache=CACHE_SWEEP_S) as demo:
        gr.HTML(f"<h1>Lesion segmentation</h1><p>{EXPLANATION}</p><p>{html.escape(subtitle)}</p>", elem_id="title")
        gr.HTML(f'<div id="research">{RESEARCH_USE.capitalize()}.</div>')
        recent = Recent(KEPT_PIXELS)
        seen = gr.State(None, time_to_live=CACHE_SWEEP_S[1], delete_callback=recent.drop)  # a key of `recent`
        looked_at = gr.State(0)  # pictures in this visit, which number the files to take away: names may be patients'
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                picture = drop_zone(examples)
            with gr.Column(scale=3, min_width=380):
                result = gr.Image(
                    label="Outline", interactive=False, height=400, elem_id="result",
                    buttons=["fullscreen", "download"], alt_text="The picture with the outline of the lesion",
                )  # fmt: skip
                with gr.Row():
                    threshold = gr.Slider(
                        0.01, 0.99, value=round(predictor.threshold, 2), step=0.01, elem_id="threshold",
                        label="Threshold (probability)", info="0 to 1; pixels at least so probable are outlined.",
                    )  # fmt: skip
                    view = gr.Radio([FILLED, OUTLINE, PROBABILITY], value=FILLED, label="Show", elem_id="view")
                numbers = gr.HTML(WAITING, elem_id="numbers")
                download = gr.DownloadButton(
                    "Download the mask (PNG)", variant="primary", interactive=False, elem_id="download"
                )

        outputs = [result, numbers, download]

        def look(path: str | None, cut: float, shown: str, before: str | None, count: int) -> list[Any]:
            recent.drop(before)
            if path is None:
                return [None, count, None, WAITING, _no_mask()]
            try:
                image = read_image(path, max_pixels=MAX_PIXELS)
                pixels = image if read is None else read(path)
            except DinomedError as error:
                reason = getattr(error, "reason", None) or str(error).removeprefix(f"{path}: ")
                told = message("error", f"This file cannot be read as a picture: {reason}")
                return [None, count, None, told, _no_mask()]
            key = recent.put(Seen(count + 1, image, predictor.probability(pixels)))
            return [key, count + 1, *draw(key, cut, shown)]

        def draw(key: str | None, cut: float, shown: str) -> list[Any]:
            if key is None:
                return [gr.skip(), gr.skip(), gr.skip()]
            now = recent.get(key)
            if now is None:
                return [None, PUT_AWAY, _no_mask()]
            mask = (now.probability >= cut).astype(np.uint8)
            if shown == PROBABILITY:
                drawn = draw_probability(now.image, now.probability)
            else:
                drawn = draw_mask(now.image, mask, fill=FILL if shown == FILLED else 0)
            # Straight into Gradio's own cache, which is private and swept; it would make a second copy otherwise.
            folder = now.new_drawing(Path(result.GRADIO_CACHE))
            outlined, taken = folder / f"outline_{now.number}.jpg", folder / f"mask_{now.number}.png"
            Image.fromarray(drawn).save(outlined, quality=92, subsampling=0)
            write_mask(taken, mask)
            return [outlined, describe(now.probability, cut), gr.DownloadButton(value=taken, interactive=True)]

        # One at a time, whichever event it is: the memory of one picture at work, not of all that wait.
        one: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "look", "concurrency_limit": 1}
        every = [seen, looked_at, *outputs]
        picture.change(look, [picture, threshold, view, seen, looked_at], every, show_progress_on=[result], **one)
        live = {"trigger_mode": "always_last", "show_progress": "hidden"} | one
        threshold.change(draw, [seen, threshold, view], outputs, **live)
        view.change(draw, [seen, threshold, view], outputs, **live)
    return demo


def _no_mask() -> gr.DownloadButton:
    return gr.DownloadButton(value=None, interactive=False)


def _card(elem_id: str, name: str, value: str, unit: str) -> str:
    return (
        f'<div class="card"><div class="name">{name}</div>'
        f'<div class="value"><span id="{elem_id}">{value}</span> <span class="unit">{unit}</span></div></div>'
    )
