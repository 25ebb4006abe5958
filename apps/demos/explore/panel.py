"""Panel of what the features of a backbone hold: similarity, PCA colours, attention, matches, and a map of an index."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinomed.adapters.inference.shared import FeatureConsumer
from dinomed.adapters.retrieval.search import ImageIndex
from dinomed.apps.demos.explore.index_map import IndexMap, map_controls
from dinomed.apps.demos.explore.kept import KeptTokens
from dinomed.apps.demos.explore.tokens import PatchTokens
from dinomed.apps.demos.look import text
from dinomed.apps.demos.page import Panel
from dinomed.apps.demos.parts import Picture, message
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.errors import UsageError
from dinomed.explore.attention import last_attention, mass_mask
from dinomed.explore.live_page import encode_features
from dinomed.explore.match import MIN_SIMILARITY, match_patches
from dinomed.explore.pca import find_foreground, pca_colours
from dinomed.explore.similarity import compact_tokens
from dinomed.explore.tiles import heat_colours
from dinomed.html.drawing import data_url

MODES = ("similarity", "pca", "attention", "match")
MAX_EARLIER = 5  # earlier pictures of the visit, beside the picture


class ExplorePanel(Panel):
    """The panel of a backbone.

    A picture is shown beside up to five earlier ones of the same visit. The page keeps those pictures itself, and names
    them by the keys of their tokens, which are kept here.

    Args:
        backbone: whose features are shown.
        image_index: the index that the map shows, or None. The picture has a place on the map if the backbone of the
            index reads it as `backbone` does.
        names: whether visitors may have the paths of the images of the index.
    """

    name, title = "explore", text("title_explore")
    explanation = text("explore_explanation")
    predicts = False

    def __init__(self, backbone: FrozenBackbone, image_index: ImageIndex | None = None, *, names: bool = False) -> None:
        self.backbone, self.preprocessing = backbone, backbone.preprocessing
        consumers: list[FeatureConsumer] = [PatchTokens(backbone)]
        self.map = None if image_index is None else IndexMap(image_index, names=names)
        self.modes = MODES if self.map is None else (*MODES, "map")
        if image_index is not None and _read_alike(backbone, image_index.backbone):
            consumers.append(image_index)
        self.consumers = consumers
        self.functions = {} if self.map is None else self.map.functions
        self.kept = KeptTokens()

    def controls(self) -> str:
        options = "".join(f'<option value="{mode}">{text(f"explore_{mode}")}</option>' for mode in self.modes)
        shown = "" if self.map is None else map_controls(self.map, has_star=len(self.consumers) > 1)
        return (
            f'<div class="dm-field"><label for="explore-mode">{text("explore_mode")}</label>'
            f'<select id="explore-mode" data-setting="mode" data-asks>{options}</select></div>'
            '<label class="dm-check"><input id="explore-foreground" type="checkbox" data-setting="foreground" '
            f"data-asks> {text('explore_foreground')}</label>"
            '<input id="explore-earlier" type="hidden" data-setting="earlier" value="[]">'
            f'<div class="dm-result" id="explore"></div>{shown}'
        )

    def answer(self, picture: Picture, answers: Sequence[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        tokens: np.ndarray = answers[0]
        mode = settings.get("mode", MODES[0])
        if mode not in self.modes:
            raise ValueError("an unknown mode")
        keys, earlier = self._earlier(settings.get("earlier", "[]"), tokens)
        shown: dict[str, Any] = {
            "mode": mode, "rows": tokens.shape[0], "columns": tokens.shape[1], "earlier": keys,
            "key": self.kept.put(tokens),
        }  # fmt: skip
        if mode == "map":
            method = settings.get("method", "pca")
            star = None if self.map is None or len(answers) < 2 else self.map.star(answers[1], method)
            return {"html": "", "explore": shown | {"star": star, "method": method}}
        try:
            shown |= getattr(self, f"_{mode}")(picture, [tokens, *earlier], settings)
        except UsageError as error:  # of a family without this, or of too little foreground
            return {"html": message("busy", str(error).replace("`", "")), "explore": shown | {"mode": "none"}}
        return {"html": "", "explore": shown}

    def _earlier(self, keys: str, tokens: np.ndarray) -> tuple[list[str], list[np.ndarray]]:
        """Return the keys of earlier pictures that are still kept, at most `MAX_EARLIER`, and their tokens."""
        chosen = [str(key) for key in json.loads(keys)][:MAX_EARLIER]
        kept = {key: each for key in chosen if (each := self.kept.get(key)) is not None and each.shape == tokens.shape}
        return list(kept), list(kept.values())

    def _similarity(self, picture: Picture, images: list[np.ndarray], settings: Mapping[str, Any]) -> dict[str, Any]:
        reduced = compact_tokens(images)
        return {"components": reduced[0].shape[-1], "features": [encode_features(values) for values in reduced]}

    def _pca(self, picture: Picture, images: list[np.ndarray], settings: Mapping[str, Any]) -> dict[str, Any]:
        patches = np.stack(images)
        mask = find_foreground(patches) if settings.get("foreground") else None
        return {"maps": [data_url(colours) for colours in pca_colours(patches, mask)]}

    def _attention(self, picture: Picture, images: list[np.ndarray], settings: Mapping[str, Any]) -> dict[str, Any]:
        attention = last_attention(self.backbone, self.backbone.preprocessing.squashed(picture.pixels)[None])
        maps, shares = attention.maps()[0], attention.shares()[0]
        masks = mass_mask(maps)
        heads = [
            {
                "map": data_url(heat_colours(values, float(values.min()), float(values.max()))),
                "patches": float(share[-1]),
                "registers": float(share[1:-1].sum()),
                "mask": float(mask.mean()),
            }
            for values, share, mask in zip(maps, shares, masks, strict=True)
        ]
        return {"heads": heads, "registers": attention.num_registers}

    def _match(self, picture: Picture, images: list[np.ndarray], settings: Mapping[str, Any]) -> dict[str, Any]:
        if len(images) < 2:
            return {"matches": None}
        matches = match_patches(images[0], images[1])
        return {
            "min_similarity": MIN_SIMILARITY,
            "matches": [[*match.first, *match.second, match.similarity] for match in matches],
        }


def _read_alike(first: FrozenBackbone, second: FrozenBackbone) -> bool:
    """Return whether two backbones read a file to the same pixels."""
    a, b = first.preprocessing, second.preprocessing
    return (a.channels, a.intensity) == (b.channels, b.intensity)
