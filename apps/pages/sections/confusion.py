"""Cases of a confusion matrix on the page of an evaluation: pictures of each error, to which its cell links."""

from collections.abc import Mapping, Sequence

import numpy as np

from dinomed.adapters.tasks.classify.evaluated import EvaluatedClasses
from dinomed.datasets.manifest import Manifest
from dinomed.html.album import Album
from dinomed.html.page import heading

CASES, MAX_CELLS = 4, 20  # of a cell; of the page, the largest first


def cell_name(true: int, predicted: int) -> str:
    """Return the name of a cell, to which a link leads."""
    return f"cell-{true}-{predicted}"


def error_cells(counts: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Return (true, predicted) of the cells of errors that have cases on the page, the largest first.

    >>> error_cells([[5, 2], [3, 7]])
    [(1, 0), (0, 1)]
    """
    cells = [(i, j) for i, row in enumerate(counts) for j, count in enumerate(row) if count and i != j]
    return sorted(cells, key=lambda cell: -counts[cell[0]][cell[1]])[:MAX_CELLS]


def build_error_cases(
    evaluated: EvaluatedClasses, counts: Sequence[Sequence[int]], collection: Manifest, album: Album
) -> list[str]:
    """Return the pictures of the errors by cell, those with the highest probability of the wrong class first.

    Args:
        evaluated: units with exclusive classes.
        counts: the confusion matrix, true class by predicted class.
        collection: the manifest that was passed to the evaluation.
        album: its limit holds for all pictures of the page.
    """
    cells = error_cells(counts)
    if not cells:
        return []
    place: Mapping[str, int] = {image: row for row, image in enumerate(collection.column("image"))}
    images = evaluated.manifest.column("image")
    wide = np.nan_to_num(evaluated.wide, nan=-1.0)
    predicted = wide.argmax(axis=1)
    parts = [heading("Errors by cell")]
    for true, wrong in cells:
        units = np.flatnonzero((evaluated.targets == true) & (predicted == wrong))
        units = units[np.argsort(-wide[units, wrong], kind="stable")][:CASES]
        name = f"{evaluated.names[true]}, predicted as {evaluated.names[wrong]}"
        figures = [
            album.picture(collection, place[images[unit]], f"{wide[unit, wrong]:.2f}", width_px=150) for unit in units
        ]
        title = heading(f"{name} ({counts[true][wrong]:,})").replace("<h2>", f'<h3 id="{cell_name(true, wrong)}">')
        parts += [title.replace("</h2>", "</h3>"), *figures]
    return parts
