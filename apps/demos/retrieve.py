"""Panel of the most similar cases of an index, and the HTML of the cases: picture, label and similarity.

Names are not shown, because they may identify patients.
"""

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinomed.adapters.retrieval.filters import Condition, choose_rows
from dinomed.adapters.retrieval.index import Neighbor
from dinomed.adapters.retrieval.search import ImageIndex
from dinomed.apps.demos.look import text
from dinomed.apps.demos.page import Panel
from dinomed.apps.demos.parts import Picture, inline, message
from dinomed.apps.pages.matches import draw_matches
from dinomed.datasets.manifest import KNOWN, Manifest
from dinomed.errors import DinomedError, UsageError
from dinomed.explore.map_page import may_hold_names
from dinomed.explore.match import MIN_SIMILARITY

MAX_CASES, FEW_CASES = 24, 6
ALONE_PX, PAIR_PX = 360, 300  # heights; the page shows them smaller, and enlarges one on a click
MAX_VALUES = 30  # of a column by which cases are filtered
FILTER = "filter "  # of the names of settings


class RetrievePanel(Panel):
    """The panel of an index. Pictures of the index become parts of the page; nothing of a visit is kept."""

    name, title = "retrieve", text("title_retrieve")
    explanation, reference = text("retrieve_explanation"), text("index_images")

    def __init__(self, image_index: ImageIndex) -> None:
        self.image_index, self.check = image_index, image_index.check
        self.consumers, self.preprocessing = [image_index], image_index.backbone.preprocessing
        self.most = min(MAX_CASES, len(image_index.vector_index))
        self.filters = filter_values(image_index.vector_index.manifest)

    def controls(self) -> str:
        filters = f'<span id="filters-name">{text("filters")}</span>' if self.filters else ""
        filters += "".join(
            f'<label>{html.escape(column)} <select data-setting="{FILTER}{html.escape(column, quote=True)}" data-asks>'
            f'<option value="">{text("any_value")}</option>'
            f"{''.join(f'<option>{html.escape(value)}</option>' for value in values)}</select></label>"
            for column, values in self.filters.items()
        )
        return (
            f'<div class="dm-field"><label for="count">{text("cases")}</label>'
            f'<input id="count" type="range" min="1" max="{self.most}" value="{min(FEW_CASES, self.most)}" step="1" '
            'data-setting="count" data-asks><output for="count"></output></div>'
            '<label class="dm-check"><input id="regions" type="checkbox" checked data-setting="regions" data-asks> '
            f"{text('regions')}</label>"
            '<label class="dm-check"><input id="exclude" type="checkbox" checked data-setting="exclude" data-asks> '
            f"{text('exclude')}</label>"
            f'<div class="dm-filters" role="group" aria-labelledby="filters-name">{filters}</div>'
            '<div class="dm-result" id="found" aria-live="polite"></div>'
        )

    def answer(self, picture: Picture, answers: Sequence[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        count = min(max(int(settings.get("count", FEW_CASES)), 1), self.most)
        conditions = [
            Condition(column, "=", str(settings[FILTER + column]))
            for column in self.filters
            if settings.get(FILTER + column)
        ]
        try:
            allowed = choose_rows(self.image_index.vector_index.manifest, conditions)
        except UsageError:
            return {"html": message("no-cases", text("no_filtered"))}
        exclude = bool(settings.get("exclude", True))
        neighbors, related = similar(self.image_index, answers[0], picture.sha256, count, exclude, allowed)
        regions = bool(settings.get("regions", True))
        return {"html": show_cases(self.image_index, picture, neighbors, related, regions=regions)}


def filter_values(manifest: Manifest) -> dict[str, list[str]]:
    """Return the columns by which cases are filtered, with their values: the label and columns of few values.

    Groups, splits, columns of names of files, columns in which most values occur once, and columns that name the group
    (as that of a patient does) are left out.
    """
    filters = {}
    groups = manifest.groups()
    for column in manifest.columns:
        if (column in KNOWN and column != "label") or may_hold_names(manifest, column):
            continue
        cells = [str(cell) for cell in manifest.column(column) if cell is not None]
        values = sorted(set(cells))
        few = 2 <= len(values) <= min(MAX_VALUES, len(cells) // 2)
        if few and (column == "label" or not names_groups(manifest.column(column), groups)):
            filters[column] = values
    return filters


def names_groups(values: Sequence[Any], groups: Sequence[str | None]) -> bool:
    """Return whether the values tell the groups apart: one value in each group, and another in most of them."""
    pairs = {(group, value) for group, value in zip(groups, values, strict=True) if group is not None}
    known = len({group for group, _ in pairs})
    return 0 < len(pairs) == known and len({value for _, value in pairs}) > known / 2


def similar(
    image_index: ImageIndex,
    query: np.ndarray,
    sha256: str,
    k: int,
    exclude: bool,
    allowed: np.ndarray | None = None,
) -> tuple[list[Neighbor], int]:
    """Return the `k` most similar cases, and the number of cases left out as the same image or the same group.

    Args:
        query: vector (D,), from `ImageIndex.embed_features`.
        sha256: hash of the uploaded file, by which an image of the index is recognised.
        exclude: leave out the image itself and images of its group.
        allowed: rows that may be returned, bool (N,).
    """
    related = image_index.groups.rows(sha256) if exclude else np.empty(0, np.int64)
    return image_index.vector_index.nearest(query[None], k, allowed=allowed, excluded=[related])[0], len(related)


def show_cases(
    image_index: ImageIndex, picture: Picture, neighbors: Sequence[Neighbor], related: int, *, regions: bool
) -> str:
    """Return HTML of the cases, best first; with `regions`, each beside the uploaded picture with its matches."""
    if not neighbors:
        return message("no-cases", text("no_cases"))
    cases = []
    if regions:
        for neighbor, evidence in zip(neighbors, image_index.evidence(picture.pixels, neighbors), strict=True):
            similar_image = _read(image_index, neighbor.row)
            if similar_image is None or evidence is None:
                drawn = None
            else:
                drawn = draw_matches(picture.shown, similar_image, evidence, PAIR_PX, transparent=True)
            has_no_match = evidence is not None and not evidence.matches
            cases.append(_case(image_index, neighbor, drawn, PAIR_PX, no_match=has_no_match))
    else:
        cases = [_case(image_index, neighbor, _read(image_index, neighbor.row), ALONE_PX) for neighbor in neighbors]
    hint = text("cases_hint")
    if related:
        hint = f"{text('left_out_one' if related == 1 else 'left_out_several').format(count=related)} {hint}"
    kind = "cases pairs" if regions else "cases"
    tally = _tally(image_index, neighbors)
    return f'{tally}<div class="{kind}">{"".join(cases)}</div><div class="dm-hint cases-hint">{hint}</div>'


def _tally(image_index: ImageIndex, neighbors: Sequence[Neighbor]) -> str:
    """Return HTML with the number of cases of each label, the most frequent first."""
    labels = Counter(_label(image_index, neighbor) for neighbor in neighbors)
    parts = "".join(f"<li>{html.escape(label)} <b>{count}</b></li>" for label, count in labels.most_common())
    return f'<ul class="tally" aria-label="{text("tally")}">{parts}</ul>'


def _label(image_index: ImageIndex, neighbor: Neighbor) -> str:
    label = image_index.hit(neighbor, 0).label
    return text("no_label") if label is None else str(label)


def _case(
    image_index: ImageIndex,
    neighbor: Neighbor,
    picture: np.ndarray | None,
    height_px: int,
    *,
    no_match: bool = False,
) -> str:
    label = _label(image_index, neighbor)
    shown = f'<div class="dm-hint">{text("case_missing")}</div>'
    if picture is not None:
        name = html.escape(f"{text('compare_with')} {label}", quote=True)
        drawn = inline(picture, text("case_image").format(label=label), height_px)
        shown = f'<button type="button" class="case-open" aria-label="{name}">{drawn}</button>'
    note = ""
    if no_match:
        note = f'<span class="percentile">{text("case_no_match").format(similarity=f"{MIN_SIMILARITY:g}")}</span>'
    similarity = f'<span class="similarity">{neighbor.similarity:.3f}</span>'
    return (
        f'<figure class="case">{shown}<figcaption><b>{html.escape(label)}</b> '
        f'<span class="alike">{text("case_similarity")} {similarity}</span>'
        f"{_percentile(image_index, neighbor)}{note}</figcaption></figure>"
    )


def _percentile(image_index: ImageIndex, neighbor: Neighbor) -> str:
    percentile = image_index.similarity_percentile(neighbor.similarity)
    if percentile is None:
        return ""
    return f'<span class="percentile">{text("case_percentile").format(percent=f"{percentile:.1f}")}</span>'


def _read(image_index: ImageIndex, row: int) -> np.ndarray | None:
    try:
        return image_index.read_image(row)
    except DinomedError:
        return None
