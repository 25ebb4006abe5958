"""Panel of a segmenter: probability map, lesions and download of the mask."""

import base64
import html
import io
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
from PIL import Image

from dinomed.adapters.tasks.areas import pixel_mm2
from dinomed.adapters.tasks.segment.lesions import Lesion, LesionRules, field_of_view, select_lesions
from dinomed.adapters.tasks.segment.mask_schema import LESION
from dinomed.adapters.tasks.segment.predict import SegmentPredictor, mask_uncertainty
from dinomed.apps.demos.batch.work import used_picture
from dinomed.apps.demos.corrections import Corrections, apply_edits, correction_controls
from dinomed.apps.demos.explore.tokens import PatchTokens
from dinomed.apps.demos.look import text
from dinomed.apps.demos.page import Panel, run_consumers
from dinomed.apps.demos.parts import (
    PUT_AWAY,
    Picture,
    Summary,
    abstains,
    inline_map,
    measured_mask,
    name_abstention,
    read_picture,
    show_abstention,
)
from dinomed.apps.pages.examples import MAX_PIXELS
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.explore.live_page import encode_features
from dinomed.explore.similarity import compact_tokens
from dinomed.images.dicom.spacing import FrameSpacings
from dinomed.metrics.uncertainty.abstention import AbstentionRule

KEPT_PIXELS = 2 * MAX_PIXELS  # of all visitors in total, 4 bytes per pixel
MAP_PX = 1024  # of the longer side of the map that the page gets
LEVELS = 200  # of probability; a step of the threshold is half a percent
ANY = text("any_class")
MIN_SHARES = (0.0, 0.0002, 0.0005, 0.002, 0.01)


class LesionModel(Protocol):
    """The part of a segmenter that the panel uses."""

    threshold: float

    def probability(self, image: np.ndarray) -> np.ndarray:
        """Return the probability of a lesion, float32 (H, W), for an image, uint8 (H, W, channels)."""
        ...


def probability_levels(probability: np.ndarray) -> np.ndarray:
    """Return for each pixel the highest level k whose probability k / `LEVELS` it reaches, uint8 (H, W), 0 to `LEVELS`.

    So ``levels >= k`` and ``probability >= k / LEVELS`` are the same mask, and the page needs no further precision.
    """
    thresholds = (np.arange(1, LEVELS + 1) / LEVELS).astype(np.float32)
    return np.searchsorted(thresholds, probability.astype(np.float32), side="right").astype(np.uint8)


def reduce_map(probability: np.ndarray) -> np.ndarray:
    """Return the map, float32 (H, W), with at most `MAP_PX` pixels at its longer side: means of areas."""
    height, width = probability.shape
    scale = MAP_PX / max(height, width)
    if scale >= 1:
        return probability
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(probability).resize(size, Image.Resampling.BOX))


@dataclass(frozen=True)
class VisitedPicture:
    """The probability map of a picture, float32 (H, W); pixels outside the field of view have 0.

    `map_shape` are the rows and columns of the map that the page has, `spacings` those of the picture.
    """

    probability: np.ndarray
    map_shape: tuple[int, ...] = (0, 0)
    spacings: FrameSpacings | None = None


class Recent:
    """Probability maps of current visits, so that a mask of full size is made without running the model again.

    Maps have random keys. At most `max_pixels` are kept in total, and always the newest map; those that were not used
    for the longest time are removed first.
    """

    def __init__(self, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        self._kept: OrderedDict[str, VisitedPicture] = OrderedDict()
        self._lock = Lock()

    def put(self, visited: VisitedPicture) -> str:
        """Keep a map, and return its key, which only its visitor knows."""
        key = uuid.uuid4().hex
        with self._lock:
            self._kept[key] = visited
            while len(self._kept) > 1 and sum(each.probability.size for each in self._kept.values()) > self.max_pixels:
                self._kept.popitem(last=False)
        return key

    def get(self, key: str) -> VisitedPicture | None:
        """Return the map of a key, or None if it was removed."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)


class SegmentPanel(Panel):
    """The panel of a segmenter. One class is outlined at a time; of several classes the visitor chooses one, or any.

    The page gets a reduced map, and draws every threshold itself. The server makes the mask of full size.

    Args:
        predictor: a `SegmentPredictor`, which shares the pass of its backbone with other panels, or a `LesionModel`.
        preprocessing: reads the files for a `LesionModel`; None for 8-bit RGB.
    """

    name, title = "segment", text("title_segment")
    explanation = text("segment_explanation")
    summarizes = outlines = has_uncertainty = True

    def __init__(self, predictor: LesionModel, preprocessing: Preprocessing | None = None) -> None:
        self.predictor, self.preprocessing = predictor, preprocessing
        self.consumers, self.cuts = [], {LESION: predictor.threshold}
        if isinstance(predictor, SegmentPredictor):
            self.consumers, self.preprocessing = [predictor], predictor.backbone.preprocessing
            self.check = predictor.check
            self.cuts = _cuts(predictor)
        self.recent = Recent(KEPT_PIXELS)
        self.corrections: Corrections | None = None
        self.has_patches = False
        self.rule: AbstentionRule | None = None

    def abstain_by(self, rule: AbstentionRule) -> None:
        """Say that there is no answer for pictures on which the model abstains by this rule."""
        self.rule = rule

    def save_decisions(self, corrections: Corrections) -> None:
        """Let reviewers correct masks, also by the features of patches, and save their decisions."""
        self.corrections = corrections
        self.functions = {"rank": self.rank}
        if isinstance(self.predictor, SegmentPredictor):
            self.consumers = [self.predictor, PatchTokens(self.predictor.backbone)]
            self.has_patches = True

    def controls(self) -> str:
        cut = next(iter(self.cuts.values()))
        value = f"{cut:.3f}".rstrip("0").rstrip(".")
        options = "".join(f"<option>{html.escape(name)}</option>" for name in self.cuts)
        hidden = " hidden" if len(self.cuts) == 1 else ""
        shares = "".join(
            f'<option value="{share}"{" selected" if share == LesionRules().min_share else ""}>'
            f"{f'{100 * share:g}%' if share else text('every_region')}</option>"
            for share in MIN_SHARES
        )
        return (
            f'<div class="dm-field"{hidden}><label for="which">{text("class")}</label>'
            f'<select id="which" data-setting="which" data-asks>{options}</select></div>'
            f'<div class="dm-field"><label for="threshold">{text("threshold")}</label>'
            f'<input id="threshold" type="range" min="0.01" max="0.99" step="0.01" value="{value}">'
            f'<input id="threshold-number" type="number" min="0.01" max="0.99" step="0.005" value="{value}" '
            f'inputmode="decimal" aria-label="{text("threshold_number")}"></div>'
            f'<div class="dm-field"><label for="min-share">{text("min_share")}</label>'
            f'<select id="min-share">{shares}</select></div>'
            f'<label class="dm-check"><input id="largest" type="checkbox"> {text("largest")}</label>'
            '<div class="dm-state" aria-live="polite"></div><div class="dm-result" aria-live="polite"></div>'
            '<div id="measures" hidden><dl class="dm-cards">'
            f'<div><dt>{text("lesions")}</dt><dd id="lesion-count"></dd></div>'
            f'<div><dt>{text("area")}</dt><dd><span id="area-px"></span> <small>px²</small></dd></div>'
            f'<div><dt>{text("share")}</dt><dd><span id="area-percent"></span> <small>%</small></dd></div>'
            f'<div id="area-mm-card" hidden><dt>{text("area")}</dt>'
            '<dd><span id="area-mm"></span> <small>mm²</small></dd></div></dl>'
            f'<div id="shape" hidden><dl class="dm-cards"><div><dt>{text("diameter")}</dt><dd id="diameter"></dd></div>'
            f'<div><dt>{text("perpendicular")}</dt><dd id="perpendicular"></dd></div>'
            f'<div><dt>{text("asymmetry")}</dt><dd id="asymmetry"></dd></div></dl>'
            f'<p class="dm-hint">{text("shape_hint")}</p></div>'
            f'<ol id="lesions" aria-label="{text("lesions")}"></ol>'
            f'<p class="dm-hint" id="rules-hint">{text("rules_hint")}</p></div>'
            f'<button type="button" id="download" class="dm-primary" disabled>{text("download")}</button>'
            f"{'' if self.corrections is None else correction_controls(self.has_patches)}"
        )

    def answer(self, picture: Picture, answers: Sequence[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        which, probability = self._probability(picture, answers, settings)
        highest = float(probability.max())
        if not np.isfinite(highest):
            return {"html": f'<div class="message error">{text("not_finite")}</div>'}
        reduced = reduce_map(probability)
        return {
            "key": self.recent.put(VisitedPicture(probability, reduced.shape, picture.spacings)), "which": which,
            "cut": round(self.cuts[which], 3),
            "map": inline_map(probability_levels(reduced)), "exact": reduced.shape == probability.shape,
            "levels": LEVELS, "highest": highest, "html": "", "patches": self._patches(picture, answers),
            "state": self._state(answers),
        }  # fmt: skip

    def _state(self, answers: Sequence[Any]) -> str:
        """Return HTML that says that the model abstains; empty if it does not, or without a rule."""
        if self.rule is None or not abstains(self.rule, confidence := self._confidence(answers)):
            return ""
        return show_abstention("mask-abstained", self.rule, confidence, text("abstains_masks"))

    def _confidence(self, answers: Sequence[Any]) -> float:
        """Return how sure the masks of all classes are, at the thresholds of the adapter, as `predict` compares it."""
        assert isinstance(self.predictor, SegmentPredictor), "a rule comes from an adapter"
        return self.predictor.confidence(answers[0])

    def _patches(self, picture: Picture, answers: Sequence[Any]) -> dict[str, Any] | None:
        """Return the features of the patches as `similarity.js` takes them, or None without corrections."""
        if not self.has_patches:
            return None
        (features,) = compact_tokens([self.patch_tokens(picture, answers)])
        rows, columns, components = features.shape
        return {"rows": rows, "columns": columns, "components": components, "features": encode_features(features)}

    def patch_tokens(self, picture: Picture, answers: Sequence[Any]) -> np.ndarray:
        """Return the tokens of the patches, float32 (rows, columns, C), of the picture squashed to a square."""
        tokens: np.ndarray = answers[1]
        return tokens

    def _probability(
        self, picture: Picture, answers: Sequence[Any], settings: Mapping[str, Any]
    ) -> tuple[str, np.ndarray]:
        """Return the class that is outlined, and its map, float32 (H, W), 0 outside the field of view."""
        which = settings.get("which")
        which = which if which in self.cuts else next(iter(self.cuts))
        probability = self._of_class(answers[0], which) if answers else self.predictor.probability(picture.pixels)
        field = field_of_view(picture.shown if picture.unmasked is None else picture.unmasked)
        return which, np.where(field, probability, np.float32(0))

    def summarize(self, picture: Picture, answers: Sequence[Any], settings: Mapping[str, Any]) -> Summary | None:
        which, probability = self._probability(picture, answers, settings)
        if not np.isfinite(probability).all():
            return None
        mask, lesions = _final_mask(VisitedPicture(probability), settings)
        area = int(mask.sum())
        values = {"class": which, "regions": len(lesions), "area_px": area, "area_share": round(area / mask.size, 6)}
        size = text("share_of_image").format(percent=f"{100 * area / mask.size:.1f}")
        if (pixel := pixel_mm2(picture.spacings, 0, mask)) is not None:
            values["area_mm2"] = round(area * pixel, 3)
            size = f"{values['area_mm2']:,.1f} mm² ({size})"
        shown = f"{len(lesions)} × {which}, {size}" if lesions else text("batch_nothing")
        if self.rule is not None:
            values["abstained"] = "yes" if abstains(self.rule, self._confidence(answers)) else "no"
            shown = name_abstention(self.rule, self._confidence(answers), shown)
        return Summary(shown, values, mask_uncertainty(probability, mask), area / mask.size, mask)

    def mask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Measure the mask of full size at a threshold, and return it as a PNG in Base64 if "file" is true.

        Returns:
            {"area": pixels, "share": 0 to 1, "areas": of each lesion, "spacing": mm, of rows and columns, for this mask
            or None, "file"}, or {"error"} if the map was removed.
        """
        visited = self.recent.get(str(request["key"]))
        if visited is None:
            return {"error": PUT_AWAY}
        mask, lesions = _final_mask(visited, request)
        result = measured_mask(mask, [lesion.area_px for lesion in lesions], visited.spacings)
        if request.get("file"):
            data = io.BytesIO()
            Image.fromarray(mask.astype(np.uint8) * 255).save(data, "PNG")
            result["file"] = base64.b64encode(data.getvalue()).decode()
        return result

    def save(self, request: Mapping[str, Any], path: Path | None, frame: int = 0) -> dict[str, Any]:
        """Save the decision of a reviewer; see `Corrections`.

        Args:
            request: as for `mask`, with "decision" and "reviewer".
            path: the picture.
            frame: number of its frame.

        Returns:
            {"saved": number of decisions in the folder}, or {"error"}.
        """
        visited = self.recent.get(str(request["key"]))
        if self.corrections is None or path is None or visited is None:
            return {"error": PUT_AWAY}
        picture, reason = read_picture(str(path), self.preprocessing, frame, self.text_mask)
        if picture is None:
            return {"error": reason}
        if picture.pixels.shape[:2] != visited.probability.shape:
            raise ValueError("the map is of another picture")
        decision = str(request["decision"])
        mask = None if decision == "rejected" else _final_mask(visited, request)[0]
        self.corrections.save(
            picture, mask, decision, float(request["threshold"]), str(request["reviewer"]), self.text_mask
        )
        return {"saved": len(self.corrections)}

    def rank(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return how uncertain the mask of a waiting picture is, and whether a decision about its file is saved.

        Args:
            request: "path" of an upload, which is removed, and "settings" as `summarize` takes them.

        Returns:
            {"uncertainty": 0 to 1 (`mask_uncertainty`) or None, "judged"}, or {"error"}.
        """
        with used_picture({"path": request["path"]}) as (path, problem):
            if path is None:
                return {"error": problem}
            (result,) = run_consumers([self], str(path))
        if isinstance(result, str):
            return {"error": result}
        summary = self.summarize(result.picture, result.answers, request["settings"])
        judged = self.corrections is not None and self.corrections.has_decision(result.picture.sha256)
        return {"uncertainty": None if summary is None else summary.uncertainty, "judged": judged}

    def _of_class(self, maps: np.ndarray, which: str) -> np.ndarray:
        """Return the map (H, W) of a class from maps float32 (classes, H, W)."""
        assert isinstance(self.predictor, SegmentPredictor)
        if which == ANY or len(maps) == 1:
            return self.predictor.any_class(maps)
        return np.ascontiguousarray(maps[self.predictor.schema.names.index(which)])


def _final_mask(visited: VisitedPicture, request: Mapping[str, Any]) -> tuple[np.ndarray, list[Lesion]]:
    """Return the mask of full size, bool (H, W), by the threshold, the rules and the edits of a request."""
    rules = LesionRules(float(request["min_share"]), bool(request["largest_only"]))
    threshold = float(request["threshold"])
    if not (0 <= rules.min_share <= 1 and 0 < threshold <= 1):
        raise ValueError("threshold or smallest area out of range")
    mask, lesions = select_lesions(visited.probability >= threshold, rules)
    runs = request.get("edits") or []
    if not runs:
        return mask, lesions
    rows, columns = visited.map_shape
    return select_lesions(apply_edits(mask, runs, (rows, columns)), LesionRules(0))


def _cuts(predictor: SegmentPredictor) -> dict[str, float]:
    """Return the classes to choose from, each with its initial threshold."""
    schema = predictor.schema
    cuts = {schema.names[k]: 0.5 if schema.exclusive else predictor.thresholds[k] for k in schema.reported}
    return cuts if len(cuts) == 1 else {ANY: predictor.threshold, **cuts}
