"""Matching regions of two images, from mutual nearest patch tokens.

Patch tokens of a self-supervised ViT correspond between images of similar objects (Oquab et al. 2023, section 7.5,
"patch matching"; Amir et al. 2021, "Deep ViT features as dense visual descriptors", section 4: "best buddies"). A pair
shows which patches are similar for the backbone. It does not explain why the image was found: the search uses one
vector of the whole image.
"""

from dataclasses import dataclass

import numpy as np

MAX_PAIRS = 20
MAX_REGIONS = 5
_MAX_SHIFT = 2  # patches by which the matches of neighbouring patches may shift


@dataclass(frozen=True)
class Grid:
    """Patch tokens of an image, float32 (rows, columns, C), and the (height, width) of the image, px."""

    tokens: np.ndarray
    size: tuple[int, int]

    def centre(self, patch: int) -> tuple[float, float]:
        """Return the centre (x, y) of a patch, px of the image."""
        left, top, right, bottom = self.box([patch])
        return (left + right) / 2, (top + bottom) / 2

    def box(self, patches: list[int]) -> tuple[float, float, float, float]:
        """Return the bounding box (left, top, right, bottom) of patches, px of the image."""
        rows, columns = self.tokens.shape[:2]
        y, x = np.divmod(np.array(patches), columns)
        width, height = self.size[1] / columns, self.size[0] / rows
        corners = (x.min() * width, y.min() * height, (x.max() + 1) * width, (y.max() + 1) * height)
        return tuple(round(float(value), 1) for value in corners)  # type: ignore[return-value]


@dataclass(frozen=True)
class Pair:
    """Index of a patch of the query and of the result (row by row), and their cosine similarity (-1 to 1)."""

    query: int
    result: int
    similarity: float


@dataclass(frozen=True)
class Region:
    """Pairs that are neighbours in both images."""

    pairs: tuple[Pair, ...]

    @property
    def similarity(self) -> float:
        """Mean similarity of the pairs."""
        return float(np.mean([pair.similarity for pair in self.pairs]))


@dataclass(frozen=True)
class Evidence:
    """Matches of two images.

    `pairs` are all mutual nearest patches, best first. `regions` consist of the better half of the pairs and are sorted
    by the sum of similarities, largest first.
    """

    query: Grid
    result: Grid
    pairs: tuple[Pair, ...]
    regions: tuple[Region, ...]

    def to_json(self) -> dict[str, object]:
        """Return boxes (left, top, right, bottom) and points (x, y), in px of the images."""
        return {
            "unit": "px",
            "regions": [
                {
                    "query_box": self.query.box([pair.query for pair in region.pairs]),
                    "result_box": self.result.box([pair.result for pair in region.pairs]),
                    "similarity": round(region.similarity, 4),
                    "patches": len(region.pairs),
                }
                for region in self.regions[:MAX_REGIONS]
            ],
            "pairs": [
                {
                    "query": self.query.centre(pair.query),
                    "result": self.result.centre(pair.result),
                    "similarity": round(pair.similarity, 4),
                }
                for pair in self.pairs[:MAX_PAIRS]
            ],
        }


def match(query: Grid, result: Grid) -> Evidence:
    """Match patches that are mutual nearest neighbours by cosine similarity.

    The mean over both images is subtracted first: a component that all patches share does not distinguish them.
    """
    left, right = (grid.tokens.reshape(-1, grid.tokens.shape[-1]).astype(np.float32) for grid in (query, result))
    middle = np.concatenate([left, right]).mean(axis=0)
    left, right = _unit(left - middle), _unit(right - middle)
    similarity = left @ right.T
    forth, back = similarity.argmax(axis=1), similarity.argmax(axis=0)
    mutual = np.flatnonzero(back[forth] == np.arange(len(forth)))
    pairs = [Pair(int(i), int(forth[i]), float(similarity[i, forth[i]])) for i in mutual]
    pairs = sorted((pair for pair in pairs if pair.similarity > 0), key=lambda pair: (-pair.similarity, pair.query))
    strong = pairs[: (len(pairs) + 1) // 2]
    regions = [Region(tuple(group)) for group in _group_neighbours(strong, query, result)]
    regions.sort(key=lambda region: -sum(pair.similarity for pair in region.pairs))
    return Evidence(query, result, tuple(pairs), tuple(regions))


def _group_neighbours(pairs: list[Pair], query: Grid, result: Grid) -> list[list[Pair]]:
    """Group pairs whose query patches touch and whose matches are shifted by at most `_MAX_SHIFT` patches."""
    query_places = {divmod(pair.query, query.tokens.shape[1]): pair for pair in pairs}
    result_places = {pair.query: divmod(pair.result, result.tokens.shape[1]) for pair in pairs}
    groups, remaining = [], set(query_places)
    while remaining:
        start = min(remaining)
        remaining.remove(start)
        group, todo = [], [start]
        while todo:
            row, column = todo.pop()
            group.append(query_places[row, column])
            y, x = result_places[query_places[row, column].query]
            for next_row in (row - 1, row, row + 1):
                for next_column in (column - 1, column, column + 1):
                    if (next_row, next_column) in remaining:
                        v, u = result_places[query_places[next_row, next_column].query]
                        if max(abs(v - y), abs(u - x)) <= _MAX_SHIFT:
                            remaining.remove((next_row, next_column))
                            todo.append((next_row, next_column))
        groups.append(sorted(group, key=lambda pair: -pair.similarity))
    return groups


def _unit(tokens: np.ndarray) -> np.ndarray:
    return tokens / np.maximum(np.linalg.norm(tokens, axis=1, keepdims=True), 1e-12)
