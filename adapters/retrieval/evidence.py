"""What in two images is alike: patches that are each other's nearest, and the regions that they form.

Patch tokens of a self-supervised ViT correspond between images of alike things (Oquab et al. 2023, section 7.5,
"patch matching"; Amir et al. 2021, "Deep ViT features as dense visual descriptors", section 4: "best buddies"). A pair
says which patches the backbone holds to be alike, not why the images were found: that is one vector of the whole image.
"""

from dataclasses import dataclass

import numpy as np

MAX_PAIRS = 20
MAX_REGIONS = 5
_STEP = 2  # patches that neighbours may move against each other between the images


@dataclass(frozen=True)
class Grid:
    """Patch tokens of an image, float32 (rows, columns, C), and its own (height, width), px."""

    tokens: np.ndarray
    size: tuple[int, int]

    def centre(self, patch: int) -> tuple[float, float]:
        """(x, y) of the middle of a patch, px of the image itself."""
        left, top, right, bottom = self.box([patch])
        return (left + right) / 2, (top + bottom) / 2

    def box(self, patches: list[int]) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) around some patches, px of the image itself."""
        rows, columns = self.tokens.shape[:2]
        y, x = np.divmod(np.array(patches), columns)
        width, height = self.size[1] / columns, self.size[0] / rows
        corners = (x.min() * width, y.min() * height, (x.max() + 1) * width, (y.max() + 1) * height)
        return tuple(round(float(value), 1) for value in corners)  # type: ignore[return-value]


@dataclass(frozen=True)
class Pair:
    """A patch of the query and one of the result (counted along the rows), and their similarity (-1 to 1)."""

    query: int
    result: int
    similarity: float


@dataclass(frozen=True)
class Region:
    """Pairs that lie together in both images."""

    pairs: tuple[Pair, ...]

    @property
    def similarity(self) -> float:
        return float(np.mean([pair.similarity for pair in self.pairs]))


@dataclass(frozen=True)
class Evidence:
    """`pairs`: all mutual nearest patches, best first. `regions`: those formed of pairs above the median, largest
    first (the sum of their similarities)."""

    query: Grid
    result: Grid
    pairs: tuple[Pair, ...]
    regions: tuple[Region, ...]

    def to_json(self) -> dict[str, object]:
        """Boxes are (left, top, right, bottom), points (x, y), in px of the images themselves."""
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
    """Mutual nearest patches by cosine similarity, after the mean over both images is taken away: what all patches
    share says nothing of which belong together."""
    left, right = (grid.tokens.reshape(-1, grid.tokens.shape[-1]).astype(np.float32) for grid in (query, result))
    middle = np.concatenate([left, right]).mean(axis=0)
    left, right = _unit(left - middle), _unit(right - middle)
    similarity = left @ right.T
    forth, back = similarity.argmax(axis=1), similarity.argmax(axis=0)
    mutual = np.flatnonzero(back[forth] == np.arange(len(forth)))
    pairs = [Pair(int(i), int(forth[i]), float(similarity[i, forth[i]])) for i in mutual]
    pairs = sorted((pair for pair in pairs if pair.similarity > 0), key=lambda pair: (-pair.similarity, pair.query))
    strong = pairs[: (len(pairs) + 1) // 2]
    regions = [Region(tuple(group)) for group in _together(strong, query, result)]
    regions.sort(key=lambda region: -sum(pair.similarity for pair in region.pairs))
    return Evidence(query, result, tuple(pairs), tuple(regions))


def _together(pairs: list[Pair], query: Grid, result: Grid) -> list[list[Pair]]:
    """Groups of pairs whose patches touch in the query, and whose matches lie within `_STEP` of where they would."""
    here = {divmod(pair.query, query.tokens.shape[1]): pair for pair in pairs}
    there = {pair.query: divmod(pair.result, result.tokens.shape[1]) for pair in pairs}
    groups, left = [], set(here)
    while left:
        start = min(left)
        left.remove(start)
        group, todo = [], [start]
        while todo:
            row, column = todo.pop()
            group.append(here[row, column])
            y, x = there[here[row, column].query]
            for next_row in (row - 1, row, row + 1):
                for next_column in (column - 1, column, column + 1):
                    if (next_row, next_column) in left:
                        v, u = there[here[next_row, next_column].query]
                        if max(abs(v - y), abs(u - x)) <= _STEP:
                            left.remove((next_row, next_column))
                            todo.append((next_row, next_column))
        groups.append(sorted(group, key=lambda pair: -pair.similarity))
    return groups


def _unit(tokens: np.ndarray) -> np.ndarray:
    return tokens / np.maximum(np.linalg.norm(tokens, axis=1, keepdims=True), 1e-12)
