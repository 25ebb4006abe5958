"""Parts of a page: messages, pictures that were uploaded, and images inside the HTML."""

import base64
import html
import io
import os
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dinomed.apps.demos.look import text
from dinomed.apps.pages.examples import MAX_PIXELS
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.burned_in_text.mask import TextMask
from dinomed.errors import DinomedError
from dinomed.images.decode import UnreadableImage
from dinomed.images.dicom.codecs import holds_video_stream
from dinomed.images.dicom.elements import is_dicom
from dinomed.images.dicom.spacing import FrameSpacings
from dinomed.images.frames import forget_frame, frame_path
from dinomed.io.files import sha256_file
from dinomed.isolation.images import (
    PictureFacts,
    read_facts_isolated,
    read_gray_values_isolated,
    read_image_isolated,
    read_shown_isolated,
    read_spacings_isolated,
)
from dinomed.metrics.uncertainty.abstention import AbstentionRule
from dinomed.video.facts import container_of
from dinomed.video.video import LostFrame, Video

PREVIEW_PX = 2048  # of the longer side


def message(kind: str, content: str) -> str:
    """Return a box with a text; its CSS class is its kind."""
    return f'<div class="message {kind}">{html.escape(content)}</div>'


def abstains(rule: AbstentionRule, confidence: float) -> bool:
    """Return whether a model abstains on a picture whose prediction has this confidence, 0 to 1."""
    return bool(rule.abstains(np.array([confidence]))[0])


def show_abstention(name: str, rule: AbstentionRule, confidence: float, note: str) -> str:
    """Return HTML that says that a model abstains, and why.

    Args:
        name: of the element.
        rule: its threshold.
        confidence: of the prediction, below the threshold.
        note: what is shown nevertheless.
    """
    values = {
        "confidence": f"{confidence:.3g}", "threshold": f"{rule.threshold:.3g}",
        "coverage": f"{100 * rule.coverage:.0f}%", "risk": f"{rule.risk:.3f}", "loss": rule.loss,
    }  # fmt: skip
    shown = f"{text('abstains')} {text('abstains_rule').format(**values)} {note}"
    return f'<div class="message uncertain" id="{name}">{html.escape(shown)}</div>'


def name_abstention(rule: AbstentionRule, confidence: float, shown: str) -> str:
    """Return the result of a picture of a batch in words, with the reason if the model abstains on it."""
    if not abstains(rule, confidence):
        return shown
    values = {"confidence": f"{confidence:.3g}", "threshold": f"{rule.threshold:.3g}", "result": shown}
    return text("batch_abstained").format(**values)


PUT_AWAY = message("put-away", text("mask_removed"))


@dataclass(frozen=True)
class Picture:
    """An uploaded picture.

    Attributes:
        shown: uint8 (H, W, 3), for display.
        pixels: as `Preprocessing.read` returns them.
        sha256: hash of the file.
        spacings: pixel spacing of the frame, and ultrasound regions, or None if the file is no DICOM.
        frame: number of the frame, from 0.
        frames: number of frames of the file.
        seconds: time of the frame, or None if the file states no rate.
        has_values: `inline_values` sends its values.
        separate_channels: its channels are windows or neighbouring slices, no colours.
        problem: one line if the file is a video that does not hold what its header announces, or None.
        unmasked: `shown` with its burned-in text, if that is masked; the field of view is found in it. It is not
            displayed.
    """

    shown: np.ndarray
    pixels: np.ndarray
    sha256: str
    spacings: FrameSpacings | None = None
    frame: int = 0
    frames: int = 1
    seconds: float | None = None
    has_values: bool = False
    separate_channels: bool = False
    problem: str | None = None
    unmasked: np.ndarray | None = None

    @property
    def by_region(self) -> bool:
        """Whether the spacing holds in ultrasound regions only, so that it depends on the mask that is measured."""
        return self.spacings is not None and self.spacings.stated() is None and bool(self.spacings.regions)

    @property
    def spacing_mm(self) -> tuple[float, float] | None:
        """Distance of neighbouring rows and columns in the patient; None if the file does not state it.

        In an ultrasound image it is the scale of all regions, None if they have several.
        """
        return spacing_in_patient(self.spacings)


def spacing_in_patient(spacings: FrameSpacings | None, mask: np.ndarray | None = None) -> tuple[float, float] | None:
    """Return the distance of rows and columns in the patient for a mask (H, W), by the rule of `predict`."""
    spacing = None if spacings is None else spacings.of(0, mask)
    return (spacing.rows_mm, spacing.columns_mm) if spacing is not None and spacing.in_patient else None


def measured_mask(mask: np.ndarray, areas_px: list[int], spacings: FrameSpacings | None) -> dict[str, Any]:
    """Return the numbers of a mask, bool (H, W), for the page: area, share, areas of the lesions, and spacing in mm."""
    area = int(mask.sum())
    spacing = spacing_in_patient(spacings, mask)
    return {"area": area, "share": area / mask.size, "areas": areas_px, "spacing": spacing}


@dataclass(frozen=True)
class Summary:
    """The result of a panel for one picture of a batch.

    Attributes:
        text: the result in a few words.
        values: columns of the table to numbers or text.
        uncertainty: 0 to 1, by which pictures are sorted; None if there is no measure.
        area: share of the picture in the mask, 0 to 1, or None.
        mask: bool (H, W), or None.
    """

    text: str
    values: dict[str, Any]
    uncertainty: float | None = None
    area: float | None = None
    mask: np.ndarray | None = None


def uploads_folder() -> Path:
    """Return the folder of the uploads of all visitors."""
    return Path(os.environ["GRADIO_TEMP_DIR"]).resolve()


def find_upload(name: str) -> Path | None:
    """Return the file of an upload, by its name in the folder of the uploads; None if it was removed.

    Raises:
        ValueError: the name leads out of this folder.
    """
    path = uploads_folder() / name
    try:
        if not path.resolve().is_relative_to(uploads_folder()):
            raise ValueError("not an upload")
        return path if path.is_file() else None
    except OSError:  # a name that is too long for the system
        raise ValueError("not an upload") from None


def read_picture(
    path: str, preprocessing: Preprocessing | None, frame: int = 0, mask: TextMask | None = None
) -> tuple[Picture | None, str]:
    """Return a picture, or a frame of a DICOM file or a video, or None and a message as HTML.

    Without a preprocessing both forms of the pixels are equal. `mask` masks burned-in text in the form for display, of
    which no values are sent then.
    """
    is_stream = holds_video_stream(path)
    is_video = is_stream or (container_of(path) is not None and not is_dicom(path))
    source, number = (frame_path(path, frame), 0) if is_video else (path, frame)
    try:
        if preprocessing is None:
            shown = pixels = read_image_isolated(source, max_pixels=MAX_PIXELS, frame=number)
        else:
            channels, intensity = preprocessing.channels, preprocessing.intensity
            pixels = read_image_isolated(
                source, channels=channels, intensity=intensity, max_pixels=MAX_PIXELS, frame=number
            )
            shown = read_shown_isolated(source, channels, intensity, MAX_PIXELS, number)
        spacings, problem = None, None
        if is_stream or not is_video:
            with suppress(UnreadableImage):  # a damaged spacing: the picture is shown without it
                spacings = read_spacings_isolated(path, frame)
        if is_video:
            facts, problem = _read_video_facts(path, frame)
        else:
            facts = read_facts_isolated(path, frame, MAX_PIXELS)
        unmasked = None if mask is None else shown
        if mask is not None:
            shown, facts = mask(shown), replace(facts, has_values=False)
        sha256, states = sha256_file(path), vars(facts)
        return Picture(shown, pixels, sha256, spacings, frame, **states, problem=problem, unmasked=unmasked), ""
    except LostFrame:
        return None, message("error", text("lost_frame").format(number=frame + 1))
    except DinomedError as error:
        return None, _unreadable(error, path, "unreadable_video" if is_video else "unreadable_picture")
    finally:
        forget_frame()  # of a visitor


def _read_video_facts(path: str, frame: int) -> tuple[PictureFacts, str | None]:
    """Return the facts of a frame of a video, and what is wrong with the file or None."""
    video = Video(path)
    frames = video.count_frames()
    has_rate = video.facts.note is None  # else the times follow from an assumed rate
    return PictureFacts(frames, video.read(frame).time_s if has_rate else None, False), video.facts.problem


def _unreadable(error: DinomedError, path: str, kind: str = "unreadable_picture") -> str:
    """Return the message for a file that cannot be read."""
    reason = getattr(error, "reason", None) or str(error).removeprefix(f"{path}: ")
    if reason == "does not exist":  # swept, while the page was still open
        return PUT_AWAY
    return message("error", text(kind).format(reason=reason))


def inline(picture: np.ndarray, alt: str, height_px: int) -> str:
    """Return an <img> with the pixels of a picture, uint8 (H, W, 3), in it, reduced to `height_px`.

    A picture (H, W, 4) is transparent where its last channel is 0.
    """
    small = Image.fromarray(picture)
    small.thumbnail((10 * height_px, height_px), Image.Resampling.BICUBIC)
    kind = "WEBP" if small.mode == "RGBA" else "JPEG"
    return f'<img src="{_data_url(small, kind, quality=88)}" alt="{html.escape(alt, quote=True)}">'


def inline_file(path: Path, height_px: int, mask: TextMask | None = None) -> str:
    """Return an <img> of an example, a file of our own. It is decorative: the button around it has the name.

    `mask` masks burned-in text in it.
    """
    with Image.open(path) as example:
        picture = np.asarray(example.convert("RGB"))
    return inline(picture if mask is None else mask(picture), "", height_px)


def inline_preview(picture: np.ndarray) -> str:
    """Return a picture, uint8 (H, W, 3), as a data URL, reduced to `PREVIEW_PX`."""
    small = Image.fromarray(picture)
    small.thumbnail((PREVIEW_PX, PREVIEW_PX), Image.Resampling.LANCZOS)
    return _data_url(small, "JPEG", quality=92, subsampling=0)


def inline_map(levels: np.ndarray) -> str:
    """Return an 8-bit map (H, W) as the data URL of a gray PNG."""
    return _data_url(Image.fromarray(levels), "PNG", compress_level=3)


def inline_values(path: str, frame: int) -> dict[str, Any]:
    """Return the values of a gray picture, of at most 2048 px, with its windows, or {"error"}; {} if it has none.

    "codes" are 16-bit numbers (little endian, row by row), deflated (RFC 1950), in Base64; see `GrayValues`.
    """
    try:
        gray = read_gray_values_isolated(path, frame, MAX_PIXELS)
    except DinomedError as error:
        return {"error": _unreadable(error, path)}
    if gray is None:
        return {}
    values = asdict(gray)
    codes = np.ascontiguousarray(values.pop("codes"), "<u2")
    packed = base64.b64encode(zlib.compress(codes.tobytes(), 1)).decode()
    return {**values, "codes": packed, "size": [codes.shape[1], codes.shape[0]]}


def _data_url(picture: Image.Image, kind: str, **options: int) -> str:
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
