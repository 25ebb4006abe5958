"""Results of the functions that show features, choice of their images, and writing of their pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.apps.api.inputs import DatasetLike, PathLike
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest, is_manifest
from dinomed.datasets.open import open_dataset
from dinomed.errors import UsageError
from dinomed.explore.attention import LastAttention
from dinomed.explore.match import PatchMatch
from dinomed.html.album import spaced_indices
from dinomed.html.drawing import Drawing, check_output, write_drawing
from dinomed.html.page import paragraph
from dinomed.images.in_memory import ImageSource
from dinomed.io.output_folder import claimed_file

Images = DatasetLike | ImageSource | Sequence[ImageSource]


@dataclass(frozen=True)
class ShownResult:
    """A picture with the values that it shows.

    Attributes:
        drawing: the picture; a notebook shows it.
        images: paths of the images, or ``image in memory``, in the order of their numbers in the picture.
    """

    drawing: Drawing
    images: list[str]

    def _repr_html_(self) -> str:
        return self.drawing.to_svg()


@dataclass(frozen=True)
class ShownPca(ShownResult):
    """PCA of the patches of N images.

    Attributes:
        colours: uint8 (N, rows, columns, 3).
        foreground: bool (N, rows, columns); None if all patches were taken.
    """

    colours: np.ndarray
    foreground: np.ndarray | None


@dataclass(frozen=True)
class ShownAttention(ShownResult):
    """Attention of the last block for one image.

    Attributes:
        attention: the weights of class token and registers.
        masks: bool (heads, rows, columns), the fewest patches that hold the share `mass` of each head's attention.
    """

    attention: LastAttention
    masks: np.ndarray


@dataclass(frozen=True)
class ShownMatches(ShownResult):
    """Matches of two images, best first.

    Attributes:
        matches: rows and columns of patches, and their similarity.
        points: the centres (x, y) in the first and in the second image, px, for each match.
    """

    matches: list[PatchMatch]
    points: list[tuple[tuple[float, float], tuple[float, float]]]


@dataclass(frozen=True)
class ShownSimilarity(ShownResult):
    """Similarity of a patch of the first image.

    Attributes:
        patch: its row and column.
        maps: for each image its cosine similarity to all patches, float32 (rows, columns), -1 to 1.
    """

    patch: tuple[int, int]
    maps: list[np.ndarray]


def check_out(out: PathLike | None, overwrite: bool) -> None:
    """Check the output, if there is one; see `dinomed.html.drawing.check_output`."""
    if out is not None:
        check_output(out, overwrite=overwrite)


def choose_sources(images: Any, most: int, command: str) -> list[ImageSource]:
    """Return the images of an argument; of a manifest or a folder up to `most`, evenly spaced.

    Raises:
        UsageError: none, or more than `most`.
    """
    sources = list(images) if isinstance(images, list | tuple) else [images]
    if len(sources) == 1 and isinstance(sources[0], Manifest | str | Path):
        source = sources[0]
        if isinstance(source, Manifest) or Path(source).is_dir() or is_manifest(source):
            manifest = open_dataset(source, allow_unreadable=True)
            return [manifest.path(row) for row in spaced_indices(len(manifest), most)]
    if not 1 <= len(sources) <= most:
        raise UsageError(f"show {command}: {len(sources)} images; give 1 to {most}")
    return sources


def source_names(sources: Sequence[ImageSource]) -> list[str]:
    """Return the paths of images, or ``image in memory``."""
    return [str(source) if isinstance(source, str | Path) else "image in memory" for source in sources]


def describe_features(backbone: FrozenBackbone) -> str:
    """Return a sentence on the features of a picture."""
    rows, columns = backbone.grid()
    return f"Features of backbone {backbone.name}, last block, {rows} x {columns} patches of an image."


def write_picture(drawing: Drawing, out: PathLike | None, title: str, backbone: FrozenBackbone, note: str) -> None:
    """Write a drawing to `out`, if there is one; a page has the note below the drawing."""
    if out is None:
        return
    with claimed_file(out):
        write_drawing(drawing, out, title, [paragraph(text) for text in (note, describe_features(backbone)) if text])
