"""Evidence of a search: the patches of the query and of a result that match.

A pair shows which patches are similar for the backbone. It does not explain why the image was found: the search uses
one vector of the whole image.
"""

from dataclasses import dataclass

import numpy as np

from dinomed.explore.match import MIN_SIMILARITY, PatchMatch, match_patches
from dinomed.explore.tiles import patch_centre

Size = tuple[int, int]


@dataclass(frozen=True)
class Evidence:
    """Matches of two images, best first.

    Attributes:
        matches: patches of the query and of the result.
        grids: rows and columns of patches of both images.
        sizes: height and width of both images, px.
    """

    matches: tuple[PatchMatch, ...]
    grids: tuple[Size, Size]
    sizes: tuple[Size, Size]

    def to_json(self) -> dict[str, object]:
        """Return the centres (x, y) of the patches, in px of the images, and the smallest similarity of a match."""
        left, right = self.grids
        boxes = [(0.0, 0.0, float(width), float(height)) for height, width in self.sizes]
        return {
            "unit": "px",
            "min_similarity": MIN_SIMILARITY,
            "pairs": [
                {
                    "query": patch_centre(match.first, left, boxes[0]),
                    "result": patch_centre(match.second, right, boxes[1]),
                    "similarity": round(match.similarity, 4),
                }
                for match in self.matches
            ],
        }


def match_images(query: np.ndarray, result: np.ndarray, sizes: tuple[Size, Size]) -> Evidence:
    """Match the patch tokens, float32 (rows, columns, C), of a query and a result; see `match_patches`."""
    grids = (query.shape[0], query.shape[1]), (result.shape[0], result.shape[1])
    return Evidence(tuple(match_patches(query, result)), grids, sizes)
