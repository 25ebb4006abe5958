"""HTML page of the similarity of a patch, computed in the browser for the patch under the pointer."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from dinomed.explore.images import PatchImage
from dinomed.explore.similarity import compact_tokens, similarity_maps
from dinomed.explore.tiles import HEAT
from dinomed.html.drawing import data_url
from dinomed.html.page import build_page, data_block, paragraph

STATIC = Path(__file__).parent / "static"
_STYLE = """
.lives { display: flex; flex-wrap: wrap; gap: 12px; } .lives figure { margin: 0; flex: 0 1 300px; }
.live { position: relative; cursor: crosshair; touch-action: pan-y; }
.live:focus-visible { outline: 3px solid var(--line); }
.live img, .live canvas { display: block; width: 100%; } .live canvas { position: absolute; inset: 0; height: 100%; }
.live i { position: absolute; outline: 2px solid #fff; box-shadow: 0 0 0 3px #000; pointer-events: none; }
.live-bar { display: flex; gap: 12px; flex-wrap: wrap; align-items: center; }
"""


def build_live_page(images: Sequence[PatchImage], patch: tuple[int, int], note: str) -> str:
    """Build the page. Nothing is loaded and nothing leaves it.

    Args:
        images: the first one has the patch that is chosen at the start.
        patch: its row and column.
        note: a sentence on the features.
    """
    tokens = [image.tokens for image in images]
    reduced = compact_tokens(tokens)
    data = {
        "heat": HEAT.tolist(),
        "components": reduced[0].shape[-1],
        "patch": patch[0] * tokens[0].shape[1] + patch[1],
        "images": [
            {
                "name": image.name,
                "rows": values.shape[0],
                "columns": values.shape[1],
                "features": encode_features(values),
            }
            for image, values in zip(images, reduced, strict=True)
        ],
    }
    tiles = "".join(
        f'<figure><div class="live" tabindex="0" role="application" aria-label="{escape(image.name)}: choose a patch '
        f'with the pointer or the arrow keys"><img src="{data_url(image.shown)}" alt=""><canvas></canvas>'
        "<i hidden></i></div>"
        f"<figcaption>{escape(image.name)}</figcaption></figure>"
        for image in images
    )
    error = (
        f"The page computes similarity from reduced features: at most {_largest_error(tokens, reduced):.3f} from exact."
    )
    parts = [
        paragraph(
            "Point at a patch: the colours show its cosine similarity to all patches of all images. Click to keep it."
        ),
        '<p class="live-bar"><label>Strength of the colours <input id="live-strength" type="range" min="0" max="100" '
        'value="60"></label><output id="live-status" aria-live="polite"></output></p>',
        f'<div class="lives">{tiles}</div>',
        f'<p class="soft">{escape(note)} {error}</p>',
        data_block("features", data),
    ]
    return build_page(
        "Similarity of a patch", parts, script=read_scripts("similarity.js", "live_page.js"), style=_STYLE
    )


def encode_features(values: np.ndarray) -> str:
    """Return int8 features (rows, columns, components) in Base64, as `similarity.js` takes them."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def read_scripts(*names: str) -> str:
    """Return scripts of this folder as one."""
    return "\n".join((STATIC / name).read_text(encoding="utf-8") for name in names)


def _largest_error(tokens: Sequence[np.ndarray], reduced: Sequence[np.ndarray]) -> float:
    """Return the largest difference of similarities in a sample of 32 patches of the first image."""
    rows, columns = tokens[0].shape[:2]
    errors = [0.0]
    for place in np.unique(np.linspace(0, rows * columns - 1, 32).astype(int)):
        patch = divmod(int(place), columns)
        exact = similarity_maps(tokens, 0, patch)
        small = similarity_maps([values.astype(np.float32) for values in reduced], 0, patch)
        errors += [float(np.abs(a - b).max()) for a, b in zip(exact, small, strict=True)]
    return max(errors)
