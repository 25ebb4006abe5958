"""Parts of a page: the place for a picture, messages, and images inside the HTML."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from dinomed.apps.quickstart.examples import MAX_PIXELS
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.errors import DinomedError
from dinomed.io.files import sha256_file
from dinomed.isolation.images import read_image_isolated, read_shown_isolated


def message(kind: str, text: str) -> str:
    """Return a box with a text; its CSS class is its kind."""
    return f'<div class="message {kind}">{html.escape(text)}</div>'


PUT_AWAY = message("put-away", "This picture was removed to save memory; drop it again.")
WAITING = message("waiting", "Drop a picture, or click an example.")


def drop_zone(examples: Sequence[Path]) -> gr.Image:
    """Return the place for a picture, with examples below it; its value is the path of the uploaded file."""
    picture = gr.Image(
        label="Picture", type="filepath", sources=["upload", "clipboard"], height=330, elem_id="picture",
        placeholder="Drop a picture here\nor click to choose one", buttons=["fullscreen"],
    )  # fmt: skip
    take_as_is(picture)
    if examples:
        gr.Examples(
            [[str(path)] for path in examples], inputs=[picture], label="Examples", elem_id="examples",
            cache_examples=False, api_visibility="private",
        )  # fmt: skip
    return picture


def take_as_is(component: gr.Image) -> None:
    """Pass the uploaded file on unchanged, and accept nothing but files.

    Gradio would decode the file first, without the limits of dinomed, and would fetch a URL. The methods are set on the
    instance, because Gradio writes a stub file beside the source of a subclass.
    """
    move = component.async_move_resource_to_block_cache

    async def only_files(url_or_file_path: str | Path | None) -> str | None:
        if "://" in str(url_or_file_path):
            raise gr.Error("A URL was given; this demo takes files only.")
        return await move(url_or_file_path)

    def keep_path(payload: Any) -> str | None:
        return payload.path if payload is not None else None

    component.async_move_resource_to_block_cache = only_files  # type: ignore[method-assign]
    component.preprocess = keep_path  # type: ignore[method-assign]


@dataclass(frozen=True)
class Picture:
    """An uploaded picture: uint8 (H, W, 3) for display, the pixels that `Preprocessing.read` returns, and its hash."""

    shown: np.ndarray
    pixels: np.ndarray
    sha256: str


def read_picture(path: str, preprocessing: Preprocessing | None) -> tuple[Picture | None, str]:
    """Return the picture, or None and a message as HTML. Without a preprocessing both forms of the pixels are equal."""
    try:
        if preprocessing is None:
            shown = pixels = read_image_isolated(path, max_pixels=MAX_PIXELS)
        else:
            channels, intensity = preprocessing.channels, preprocessing.intensity
            pixels = read_image_isolated(path, channels=channels, intensity=intensity, max_pixels=MAX_PIXELS)
            shown = read_shown_isolated(path, channels, intensity, MAX_PIXELS)
        return Picture(shown, pixels, sha256_file(path)), ""
    except DinomedError as error:
        reason = getattr(error, "reason", None) or str(error).removeprefix(f"{path}: ")
        if reason == "does not exist":  # swept, while the page was still open
            return None, PUT_AWAY
        return None, message("error", f"This file cannot be read as a picture: {reason}")


def inline(picture: np.ndarray, alt: str, height_px: int) -> str:
    """Return an <img> with the pixels of a picture, uint8 (H, W, 3), in it, reduced to `height_px`."""
    small = Image.fromarray(picture)
    small.thumbnail((10 * height_px, height_px), Image.Resampling.BICUBIC)
    data = io.BytesIO()
    small.save(data, format="JPEG", quality=88)
    source = base64.b64encode(data.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{source}" alt="{html.escape(alt, quote=True)}">'
