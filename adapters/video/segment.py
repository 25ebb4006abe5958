"""The answer of a segmenter for a video: mask videos, an overlay video, and areas over time."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.adapters.tasks.areas import AREA_COLUMN, pixel_mm2
from dinomed.adapters.tasks.segment.predict import MaskPrediction, SegmentPredictor, mask_uncertainty, summarize
from dinomed.adapters.video.answer import DrawMask, VideoAnswer
from dinomed.adapters.video.dicom_seg import SEG_FILE, VideoSegmentation, VideoSegOptions
from dinomed.adapters.video.plot import draw_series
from dinomed.adapters.writer import Row
from dinomed.errors import DinomedError
from dinomed.html.drawing import Drawing
from dinomed.images.decode import UnreadableImage
from dinomed.images.dicom.spacing import FrameSpacings, read_frame_spacings
from dinomed.log import logger
from dinomed.video.facts import VideoFrame
from dinomed.video.write import SUFFIX, writing_video

OVERLAY_FILE = f"overlay{SUFFIX}"
_NAME_LENGTH = 40


class SegmentVideo(VideoAnswer):
    """Areas and masks of each class.

    The mask video of a class is lossless, 0 and 255. With several classes the overlay has the outline of all of them
    together, and `area_fraction` is the share of the frame in any class.
    """

    plot_file = "area.svg"
    shows_frames = True

    def __init__(self, predictor: SegmentPredictor, draw: DrawMask) -> None:
        schema = predictor.schema
        self._channels = {schema.names[k]: k for k in schema.reported}
        super().__init__(predictor, draw, self._channels)  # lines: px in each class
        self._draw, self._segmenter = draw, predictor
        self._single = len(schema.names) == 1
        self.mask_files = name_masks(list(self._channels)) if not self._single else [f"mask{SUFFIX}"]
        self.video_files = [*self.mask_files, OVERLAY_FILE]
        cells = ("area_px", "area_fraction", "confidence")
        self.columns = (
            [*cells, "uncertainty"]
            if self._single
            else [*(f"{cell} {name}" for name in self._channels for cell in cells), "area_fraction", "uncertainty"]
        )
        self._union: list[int] = []  # px in any class, of `frames`
        self._mm2: dict[str | None, list[float | None]] = {name: [] for name in (None, *self._channels)}
        self._append: list[Callable[[np.ndarray], None]] = []
        self._size = (0, 0)
        self._spacings: FrameSpacings | None = None
        self._seg_options: VideoSegOptions | None = None
        self._segmentation: VideoSegmentation | None = None

    def add_dicom_seg(self, options: VideoSegOptions) -> None:
        self._seg_options, self.other_files = options, [SEG_FILE]

    def begin(self, path: Path) -> None:
        if self._seg_options is not None:
            model = str(self._segmenter.metadata["weights_sha256"])
            self._segmentation = VideoSegmentation(path, list(self._channels), model, self._seg_options)
        try:
            self._spacings = read_frame_spacings(path)
        except UnreadableImage as error:
            logger.warning(f"{path}: its pixel spacing cannot be read ({error.reason}); {AREA_COLUMN} is left empty")
            self._spacings = FrameSpacings([None])
        if self._spacings is not None:
            cells = [
                [name, name.replace("area_px", AREA_COLUMN)] if "area_px" in name else [name] for name in self.columns
            ]
            self.columns = [name for names in cells for name in names]

    @contextmanager
    def writing(self, folder: Path, size: tuple[int, int], fps: float) -> Iterator[None]:
        self._size = size
        with ExitStack() as stack:
            self._append = [
                stack.enter_context(writing_video(folder / name, size, fps, lossless=name != OVERLAY_FILE))
                for name in self.video_files
            ]
            yield

    def add(self, frame: VideoFrame, prediction: MaskPrediction) -> Row:
        row: Row = []
        areas: dict[str, float] = {}
        union = np.zeros(self._size, bool)
        uncertainties = []
        if self._segmentation is not None:
            self._segmentation.add(frame.number, [prediction.masks[name].astype(bool) for name in self._channels])
        for append, (name, k) in zip(self._append, self._channels.items(), strict=False):
            inside, probability = prediction.masks[name].astype(bool), prediction.probabilities[k]
            append(inside.astype(np.uint8) * 255)
            measured = summarize(probability, inside)
            confidence = None if measured.confidence is None else f"{measured.confidence:.4f}"
            area = self._add_mm2(name, frame.number, inside)
            row += [measured.area_px, *area, f"{measured.area_fraction:.6f}", confidence]
            uncertainties.append(mask_uncertainty(probability, inside))
            areas[name] = measured.area_px
            union |= inside
        self._append[-1](self._draw(frame.pixels, union))
        self._union.append(int(union.sum()))
        self._add_mm2(None, frame.number, union)
        self.record(frame, areas)
        any_class = [] if self._single else [f"{union.mean():.6f}"]
        return [*row, *any_class, f"{np.mean(uncertainties):.4f}"]

    def _add_mm2(self, name: str | None, number: int, inside: np.ndarray) -> list[str | None]:
        """Record the area in mm² of the mask of a class, or with None of all of them, if it is known.

        Returns:
            Its cell, None if it is not known; no cell if the video is no DICOM.
        """
        if self._spacings is None:
            return []
        pixel = pixel_mm2(self._spacings, number, inside)
        area = None if pixel is None else np.count_nonzero(inside) * pixel
        self._mm2[name].append(area)
        return [None if area is None else f"{area:.2f}"]

    def finish(self, folder: Path, problem: str | None = None) -> list[str]:
        if self._segmentation is None:
            return []
        try:
            self._segmentation.write(folder / SEG_FILE, problem)
        except DinomedError as error:
            self.other_files = []
            return [f"no DICOM segmentation: {error}"]
        return []

    def confidence(self, prediction: MaskPrediction) -> float:
        return self._segmenter.confidence(prediction.probabilities)

    def add_lost(self) -> None:
        for append in self._append:
            append(np.zeros(self._size, np.uint8))
        super().add_lost()

    def summarize(self) -> dict[str, Any]:
        answer = self._summarize(np.array(self._union), self._mm2[None])
        if not self._single:
            areas = zip(self.lines, self.values().T, strict=True)
            answer["classes"] = {name: self._summarize(pixels, self._mm2[name]) for name, pixels in areas}
        return answer | {"masks": dict(zip(self._channels, self.mask_files, strict=True))}

    def _summarize(self, pixels: np.ndarray, areas_mm2: Sequence[float | None]) -> dict[str, Any]:
        place = int(pixels.argmax())
        number, time_s = self.frames[place]
        seen = bool(pixels.any())
        return {
            "frames_with_lesion": int((pixels > 0).sum()),
            "share_of_frames_with_lesion": round(float((pixels > 0).mean()), 6),
            "largest_area_px": int(pixels.max()),
            "largest_area_frame": number if seen else None,
            "largest_area_time_s": round(time_s, 3) if seen else None,
            **self._largest_mm2(pixels, areas_mm2),
            "mean_area_fraction": round(float(pixels.mean()) / (self._size[0] * self._size[1]), 6),
        }

    def _largest_mm2(self, pixels: np.ndarray, areas: Sequence[float | None]) -> dict[str, Any]:
        """Return the largest area in mm² with its frame, among the frames whose area is known.

        An empty mask has a known area, 0. It says nothing about the lesions of other frames: nothing is returned if
        there are lesions and the area of none is known.
        """
        known = [(area, place) for place, area in enumerate(areas) if area is not None]
        if not known or (pixels.any() and not any(pixels[place] for _, place in known)):
            return {}
        area, place = max(known, key=lambda entry: entry[0])
        number, time_s = self.frames[place]
        return {
            "frames_with_area_mm2": len(known),
            "largest_area_mm2": round(area, 2),
            "largest_area_mm2_frame": number if area > 0 else None,
            "largest_area_mm2_time_s": round(time_s, 3) if area > 0 else None,
        }

    def plot(self) -> Drawing:
        height, width = self._size
        shares = {name: [100 * (area / (height * width)) for area in areas] for name, areas in self.lines.items()}
        return draw_series(self.times_s, shares, "Predicted area over time", "% of the frame")


def name_masks(classes: Sequence[str]) -> list[str]:
    """Return a file name for the mask video of each class, from its letters and digits; all are different.

    >>> name_masks(["polyp", "Polyp", "a/b"])
    ['mask_polyp.avi', 'mask_Polyp_2.avi', 'mask_a_b.avi']
    """
    stems: list[str] = []
    for name in classes:
        base = stem = re.sub(r"\W+", "_", name).strip("_")[:_NAME_LENGTH] or "class"
        count = 1
        while stem.casefold() in [other.casefold() for other in stems]:
            count += 1
            stem = f"{base}_{count}"
        stems.append(stem)
    return [f"mask_{stem}{SUFFIX}" for stem in stems]
