"""Map of the images of an index: points, colours, thumbnails, a selection as CSV, and the place of a picture."""

import base64
from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from importlib.util import find_spec
from threading import Lock, Thread
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from dinomed.adapters.retrieval.search import ImageIndex
from dinomed.apps.demos.look import text
from dinomed.apps.demos.retrieve import filter_values
from dinomed.datasets.tables import csv_lines
from dinomed.errors import DinomedError
from dinomed.explore.map_page import colour_columns, colour_groups, manifest_columns, to_unit
from dinomed.explore.projection import MAX_POINTS, VectorMap, fit_map
from dinomed.html.drawing import data_url

SIDE_PX = 144  # of a thumbnail
MAX_THUMBNAILS = 24  # of a request
MAX_BYTES = 32 * 2**20  # of the thumbnails that are kept, of all visitors
WAIT_S = 0.3  # for a projection, before the page is asked to come again
_FIRST = ("label", "reason", "split")  # the first that exists colours the map at the start


class _Fit(Thread):
    """Computation of a map, so that other visitors do not wait for it."""

    def __init__(self, vectors: np.ndarray, method: str) -> None:
        super().__init__(daemon=True, name=f"map by {method}")
        self.vectors, self.method = vectors, method
        self.result: VectorMap | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.result = fit_map(self.vectors, self.method)
        except Exception as error:  # reported to the visitor who waits for it
            self.error = error


class IndexMap:
    """The map of an index of at most `limit` images; of a larger one, of a random sample.

    A request names images by their places on the map. Paths are in none of the answers but the CSV, and there only with
    `names`.

    Args:
        image_index: the index.
        names: whether visitors may have the manifest of the images; otherwise they get the rows.
        limit: most points.
        max_bytes: of the thumbnails that are kept.
    """

    def __init__(
        self, image_index: ImageIndex, *, names: bool = False, limit: int = MAX_POINTS, max_bytes: int = MAX_BYTES
    ) -> None:
        self.image_index, self.names, self.max_bytes = image_index, names, max_bytes
        total = len(image_index)
        rows = np.arange(total)
        if total > limit:
            rows = np.sort(np.random.default_rng(0).choice(total, limit, replace=False))
        self.rows = rows
        self.methods = ["pca", "tsne", *(["umap"] if find_spec("umap") is not None else [])]
        self._fits: dict[str, _Fit] = {}
        self._thumbnails: OrderedDict[int, str] = OrderedDict()
        self._lock = Lock()

    @property
    def functions(self) -> dict[str, Any]:
        """Functions for the script of the page, by name."""
        return {"map_points": self.points, "map_thumbnails": self.thumbnails, "map_save": self.save}

    def points(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the points and columns of {"method"}, or {"computing"} while they are computed."""
        fitted = self._fit(str(request["method"]))
        if fitted is None:
            return {"computing": True}
        shown = (to_unit(fitted.points) * 65535).round().astype("<u2")
        groups = self._groups
        return {
            "points": base64.b64encode(shown.tobytes()).decode(),
            "rows": base64.b64encode(self.rows.astype("<u4").tobytes()).decode(),
            "total": len(self.image_index),
            "chosen": next((name for name in _FIRST if name in groups), next(iter(groups), None)),
            "columns": {
                name: {"names": names, "groups": base64.b64encode(numbers.astype(np.uint8).tobytes()).decode()}
                for name, (names, numbers) in groups.items()
            },
        }

    @cached_property
    def _groups(self) -> dict[str, tuple[list[str], np.ndarray]]:
        """Names and numbers of the groups by each column; values of columns with many values may be names."""
        manifest = self.image_index.vector_index.manifest.take(self.rows.tolist())
        columns = colour_columns(manifest)
        shown = {"label", "split", "group", *filter_values(manifest)}
        return {name: colour_groups(values) for name, values in columns.items() if name in shown}

    def thumbnails(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the data URLs of the images at {"places"}, at most `MAX_THUMBNAILS`; None where a file is missing."""
        places = self._places(request, MAX_THUMBNAILS)
        return {"thumbnails": [self._thumbnail(int(self.rows[place])) for place in places]}

    def save(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the images at {"places"} as CSV: a manifest, or the column `row` of the index."""
        rows = self.rows[self._places(request, len(self.rows))].tolist()
        manifest = self.image_index.vector_index.manifest.take(rows)
        table = manifest_columns(manifest) if self.names else {"row": rows}
        lines = csv_lines(list(table), zip(*table.values(), strict=True))
        return {"csv": "".join(lines), "name": "selection.csv" if self.names else "selection_rows.csv"}

    def star(self, vector: np.ndarray, method: str) -> list[float] | None:
        """Return the place of a picture, by its vector (D,), in 0 to 1 of the map; None while there is no map."""
        fitted = self._fit(method)
        if fitted is None:
            return None
        place: list[float] = to_unit(fitted.place(vector)[None], fitted.points)[0].tolist()
        return place

    def _places(self, request: Mapping[str, Any], most: int) -> list[int]:
        places = list(request["places"])
        if len(places) > most or not all(type(place) is int and 0 <= place < len(self.rows) for place in places):
            raise ValueError("places that the map does not have")
        return places

    def _fit(self, method: str) -> VectorMap | None:
        """Return a map, or None while it is computed.

        Raises:
            ValueError: an unknown method.
        """
        if method not in self.methods:
            raise ValueError("an unknown method")
        with self._lock:
            fit = self._fits.get(method)
            if fit is None:
                vectors = self.image_index.vector_index.vectors
                fit = _Fit(vectors if len(self.rows) == len(vectors) else vectors[self.rows], method)
                self._fits[method] = fit
                fit.start()
        fit.join(WAIT_S)
        if fit.error is not None:
            with self._lock:
                self._fits.pop(method, None)  # the next request tries again
            raise fit.error
        return fit.result

    def _thumbnail(self, row: int) -> str | None:
        with self._lock:
            if row in self._thumbnails:
                self._thumbnails.move_to_end(row)
                return self._thumbnails[row]
        try:
            image = Image.fromarray(self.image_index.read_image(row))
        except DinomedError:
            return None
        drawn = data_url(np.asarray(ImageOps.fit(image, (SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)))
        with self._lock:
            self._thumbnails[row] = drawn
            while len(self._thumbnails) > 1 and sum(map(len, self._thumbnails.values())) > self.max_bytes:
                self._thumbnails.popitem(last=False)
        return drawn


def map_controls(index_map: IndexMap, *, has_star: bool) -> str:
    """Return the HTML of a map; the script fills it when it is first shown.

    Args:
        has_star: the place of a picture is shown.
    """
    methods = "".join(f'<option value="{method}">{text(f"map_{method}")}</option>' for method in index_map.methods)
    label = text("map_label").format(count=f"{len(index_map.rows):,}")
    save = text("map_save" if index_map.names else "map_save_rows")
    return (
        '<div id="map" hidden><div class="dm-bar">'
        f'<label>{text("map_method")} <select id="map-method" data-setting="method">{methods}</select></label>'
        f'<label>{text("map_colour")} <select id="map-column"></select></label></div>'
        '<div class="map-plane"><canvas id="map-canvas" tabindex="0" role="application" '
        f'aria-label="{label}" aria-describedby="map-help"></canvas>'
        '<div class="map-tip" id="map-tip" hidden></div></div>'
        f'<ul class="map-legend" id="map-legend" aria-label="{text("map_legend")}"></ul>'
        f'<div class="dm-bar"><button type="button" id="map-move" aria-pressed="false">{text("map_move")}</button>'
        f'<button type="button" id="map-fit">{text("fit")}</button>'
        f'<button type="button" id="map-all">{text("map_all")}</button>'
        f'<button type="button" id="map-clear" disabled>{text("map_clear")}</button></div>'
        f'<p class="dm-hint" id="map-help">{text("map_help")}</p>'
        f'<p class="dm-hint" id="map-star">{text("map_star" if has_star else "map_no_star")}</p>'
        '<p id="map-status" role="status"></p>'
        f'<div class="map-grid" id="map-grid" tabindex="0" role="group" aria-label="{text("map_grid")}"></div>'
        f'<div class="dm-bar"><button type="button" id="map-more" hidden>{text("map_more")}</button>'
        f'<button type="button" id="map-save" class="dm-primary" disabled>{save}</button></div></div>'
    )
