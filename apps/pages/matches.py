"""Picture of two images side by side, with a numbered line for each pair of matching patches."""

import numpy as np

from dinomed.adapters.retrieval.evidence import Evidence
from dinomed.explore.match import MIN_SIMILARITY
from dinomed.explore.pictures import draw_match


def draw_matches(
    query: np.ndarray, result: np.ndarray, evidence: Evidence, tile_px: int = 320, *, transparent: bool = False
) -> np.ndarray:
    """Return the query on the left and the result on the right, uint8 (H, W, 3).

    A `transparent` picture is uint8 (H, W, 4). It has no background, and no note if there is no match: the page that
    shows it has a light or a dark theme, and writes the note itself.

    Args:
        query: uint8 (H, W, 3), of any size.
        result: uint8 (H, W, 3), of any size.
        evidence: the matches; a note says where there is none.
        tile_px: width and height into which each image is fitted; the picture has twice as many pixels.
    """
    drawing = draw_match(
        query, result, evidence.matches, evidence.grids, MIN_SIMILARITY, tile=tile_px, captions=("", ""),
        note=not transparent,
    )  # fmt: skip
    return np.asarray(drawing.to_image(transparent=transparent))
