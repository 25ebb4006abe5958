"""Maps of many images: a projection of their features to a plane, as an interactive page or a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.apps.api.backbones import BackboneLike, extract_features, load_backbone
from dinomed.apps.api.inputs import DatasetLike, PathLike, cache_folder, text_mask
from dinomed.apps.api.show.results import check_out
from dinomed.datasets.manifest import Manifest, is_manifest, read_manifest
from dinomed.datasets.open import open_dataset
from dinomed.datasets.tables import read_csv
from dinomed.errors import UsageError, did_you_mean
from dinomed.explore.map_page import build_map_page, colour_columns, colour_groups
from dinomed.explore.projection import MAX_POINTS, check_method, project_to_plane
from dinomed.features.extract import check_usable, extract_usable
from dinomed.html.drawing import PALETTE, SOFT, Drawing, write_drawing
from dinomed.html.plots import draw_points
from dinomed.images.in_memory import ImageSource
from dinomed.io.files import write_text
from dinomed.io.output_folder import claimed_file
from dinomed.log import logger

LIMIT = MAX_POINTS
_FIRST = ("label", "reason", "split", "error")  # the first that exists colours the map, if no column is chosen


@dataclass(frozen=True)
class ShownMap:
    """A map of N images.

    Attributes:
        drawing: the map as a picture; a notebook shows it.
        points: float32 (N, 2).
        manifest: the N images, those without features left out.
        color: column that colours the drawing, or None.
        groups: number of images of each colour, by its name.
        star: the position (2,) of the image `star`, or None.
    """

    drawing: Drawing
    points: np.ndarray
    manifest: Manifest
    color: str | None
    groups: dict[str, int]
    star: np.ndarray | None

    def _repr_html_(self) -> str:
        return self.drawing.to_svg()


def show_map(
    backbone: BackboneLike,
    data: DatasetLike,
    *,
    out: PathLike | None = None,
    color: str | None = None,
    method: str = "tsne",
    perplexity: float = 30.0,
    predictions: PathLike | None = None,
    star: ImageSource | None = None,
    names: bool = False,
    limit: int = LIMIT,
    weights: PathLike | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    cache: PathLike | None = None,
    mask_text: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    device: str = "auto",
) -> ShownMap:
    """Show a map of up to 20,000 images: their class tokens, projected to a plane by t-SNE, UMAP or PCA.

    The .html page shows thumbnails under the pointer, colours by any column, and saves the images inside a lasso. A
    curated manifest is shown with its removed images. The command is ``dinomed show map``.

    Args:
        backbone: a loaded backbone, or what `dinomed.load_backbone` takes.
        data: a manifest, or the path of a manifest or a folder.
        out: file to write: .html for the interactive page, .png or .svg for a picture; None writes nothing.
        color: column that colours the map, such as label, split, group, reason, predicted or error; the page can show
            the others too. None for the first that exists of label, reason, split; else the first column.
        method: tsne, umap (needs the package umap-learn) or pca.
        perplexity: number of neighbours that t-SNE and UMAP consider.
        predictions: predictions.csv of ``dinomed predict`` with a classifier, which gives the columns predicted and
            error.
        star: one more image, whose position is marked by a star.
        names: write paths, names of groups and the manifest into the page, so that a selection is saved as a manifest.
            Otherwise it is saved as row numbers and groups are numbered, because names may identify patients.
        limit: largest number of images; if there are more, a random sample is shown.
        weights: file with the weights of a backbone that is given by name.
        image_size: side of the square to which images are resized, px.
        mean: mean of each channel in 0 to 1, for weights that name none; see `load_backbone`.
        std: standard deviation of each channel.
        cache: folder of cached features; None for NAME.features beside the manifest or folder.
        mask_text: mask burned-in text that the detector finds in the thumbnails of the page; it misses text.
        seed: of the sample and of the projection.
        overwrite: replace an earlier map in `out`.
        device: device of a backbone that is given by name or path.

    Returns:
        The points, the manifest of the images and the drawing.

    Raises:
        UsageError: an unknown column or method, no images, `out` exists, or `mask_text` without a page.
        DinomedError: an image cannot be read.

    Example:
        >>> shown = dinomed.show_map("runs/ssl", "lesions.parquet", out="map.html", method="pca")
        >>> shown.points.shape, shown.color, sorted(shown.groups)
        ((60, 2), 'label', ['irregular', 'regular', 'vascular'])
    """
    check_out(out, overwrite)
    has_thumbnails = out is not None and Path(out).suffix.lower() == ".html"
    mask = text_mask(mask_text, has_thumbnails, "give an `out` that ends with .html, or leave it out")
    check_method(method)
    if not 1 <= limit <= LIMIT:
        raise UsageError(f"`limit={limit}` is out of range; give 1 to {LIMIT}")
    every = _open(data)
    rows = np.arange(len(every))
    if len(every) > limit:
        rows = np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))
        logger.info(f"the map shows a random sample of {limit:,} of {len(every):,} images")
    manifest = every.take(rows.tolist())
    columns = colour_columns(manifest, names=names) | _errors(manifest, predictions)
    if color is not None and color not in columns:
        raise UsageError(f"`color={color!r}`: the images have no such column{did_you_mean(color, columns)}")
    frozen = load_backbone(backbone, weights=weights, device=device, image_size=image_size, mean=mean, std=std)
    features, kept = extract_usable(frozen, manifest, cache=cache_folder(every, cache))
    check_usable(kept)
    vectors = features.cls
    manifest, columns, rows = _without(features.failed, kept, columns, rows)
    if star is not None:
        vectors = np.vstack([vectors, extract_features(frozen, [star]).cls])
    points = project_to_plane(vectors, method, perplexity=perplexity, seed=seed)
    points, place = (points, None) if star is None else (points[:-1], points[-1])
    chosen = color or next((name for name in _FIRST if name in columns), next(iter(columns), None))
    colours, groups = colour_groups(columns[chosen]) if chosen else (["images"], np.zeros(len(points), int))
    drawing = _draw(points, colours, groups, place, chosen)
    note = (
        f"Class tokens of backbone {frozen.name}, {method}"
        f"{'' if method == 'pca' else f' with perplexity {perplexity:g}'}, seed {seed}. "
        "Distances between distant groups and the sizes of groups have no meaning with t-SNE and UMAP."
    )
    if out is not None:
        with claimed_file(out):
            if has_thumbnails:
                page = build_map_page(
                    points,
                    manifest,
                    columns,
                    chosen=chosen,
                    rows=rows.tolist(),
                    note=note,
                    names=names,
                    star=place,
                    mask=mask,
                )
                write_text(out, page)
            else:
                write_drawing(drawing, out, "Map of images")
    counts = {name: int((groups == number).sum()) for number, name in enumerate(colours)}
    return ShownMap(drawing, points, manifest, chosen, counts, place)


def _open(data: DatasetLike) -> Manifest:
    """Open images; a curated manifest is read with its removed images."""
    if not isinstance(data, Manifest) and Path(data).is_file() and is_manifest(data):
        return read_manifest(data)
    return open_dataset(data, allow_unreadable=True)


def _errors(manifest: Manifest, predictions: PathLike | None) -> dict[str, list[Any]]:
    """Return the columns predicted and error (wrong, correct) from a table of predictions.

    Raises:
        UsageError: the table has no column image or predicted, or no image of the manifest.
    """
    if predictions is None:
        return {}
    names, lines = read_csv(Path(predictions))
    for name in ("image", "predicted"):
        if name not in names:
            raise UsageError(
                f"`predictions={predictions}` has no column {name!r}; give predictions.csv of a classifier"
            )
    table = {line[names.index("image")]: line[names.index("predicted")] for line in lines}
    predicted = [table.get(image) for image in manifest.column("image")]
    if not any(predicted):
        raise UsageError(
            f"`predictions={predictions}` holds none of the images; its paths must be those of the manifest"
        )
    labels: Sequence[Any] = manifest.column("label") if manifest.has("label") else [None] * len(manifest)
    errors = [
        None if answer is None or label is None else "correct" if answer == str(label) else "wrong"
        for answer, label in zip(predicted, labels, strict=True)
    ]
    return {"predicted": predicted, "error": errors}


def _without(
    failed: Mapping[int, str], kept: Manifest, columns: dict[str, list[Any]], rows: np.ndarray
) -> tuple[Manifest, dict[str, list[Any]], np.ndarray]:
    """Leave out the images that have no features, with a warning."""
    if failed:
        reason = next(iter(failed.values()))
        logger.warning(f"{len(failed)} images cannot be used and are left out of the map (the first: {reason})")
    stay = [row for row in range(len(rows)) if row not in failed]
    return kept, {name: [values[row] for row in stay] for name, values in columns.items()}, rows[stay]


def _draw(
    points: np.ndarray, names: Sequence[str], groups: np.ndarray, star: np.ndarray | None, color: str | None
) -> Drawing:
    """Draw the points with a legend."""
    every = points if star is None else np.vstack([points, star])
    low, high = every.min(axis=0), every.max(axis=0)
    margin = 0.03 * (high - low) + 1e-6
    low, high = low - margin, high + margin
    parts = {name: points[groups == number] for number, name in enumerate(names)}
    drawing = draw_points(parts, f"Map of {len(points):,} images", box=(*low.tolist(), *high.tolist()), width=760)
    plane_height = drawing.height
    drawing.height += 30 + 18 * len(names)
    if star is not None:
        x, y = (star - low) / (high - low)
        centre = (4 + x * (drawing.width - 8), plane_height - 4 - y * (plane_height - 8))
        drawing.dot(centre, 8, "#000000")
        drawing.dot(centre, 6, "#facc15")
    drawing.text((10, plane_height + 20), f"Colour: {color or 'none'}", bold=True)
    for number, (name, part) in enumerate(parts.items()):
        y = plane_height + 40 + 18 * number
        drawing.dot((16, y - 4), 5, PALETTE[number % len(PALETTE)])
        drawing.text((28, y), f"{name} ({len(part):,})", size=12, color=SOFT)
    return drawing
