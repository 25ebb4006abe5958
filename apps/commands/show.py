"""`dinomed show`: pictures of what the features of a backbone hold."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from dinomed.apps.expand import expand
from dinomed.apps.options import (
    Backbone,
    Cache,
    Device,
    ImageSize,
    Json,
    MaskText,
    Mean,
    Overwrite,
    Quiet,
    Seed,
    Std,
    Weights,
)

if TYPE_CHECKING:
    from dinomed.apps.ending import Step
Picture = Annotated[Path, Option("--output", "-o", help="File to write: .png, .svg or .html.", show_default=False)]


@dataclass(frozen=True)
class Showing:
    """The options that all pictures of patches share."""

    weights: Weights = None
    image_size: ImageSize = None
    mean: Mean = None
    std: Std = None
    mask_text: MaskText = False
    overwrite: Overwrite = False
    device: Device = "auto"
    as_json: Json = False
    quiet: Quiet = False


@expand
def pca(
    images: Annotated[
        list[Path], Argument(help="1 to 8 images; or a folder or a manifest, of which up to 8 images are taken.")
    ],
    backbone: Backbone,
    out: Picture,
    showing: Showing,
    whole: Annotated[bool, Option("--whole", help="Colour all patches, without a foreground.")] = False,
    threshold: Annotated[
        float,
        Option("--threshold", help="Threshold of the foreground, in standard deviations; more gives a smaller one."),
    ] = 0.0,
    flip: Annotated[bool, Option("--flip", help="Take the other side of the first component as foreground.")] = False,
) -> None:
    """Show the principal components of patch features as colours.

    A first PCA of all patches separates the foreground; its sign is chosen so that the border of the images scores
    low. A second PCA of the foreground gives red, green and blue. Equal colours mean similar features. For research use
    only.
    """
    from dinomed.apps.api.show.patches import show_pca

    shown = show_pca(backbone, list(images), whole=whole, threshold=threshold, flip=flip, **_arguments(showing, out))
    step = _similarity_step(showing, backbone, list(images))
    share = 1.0 if shown.foreground is None else float(shown.foreground.mean())
    _report(showing, out, shown.images, {"foreground": round(share, 4)}, step)


@expand
def attention(
    image: Annotated[Path, Argument(help="An image.")],
    backbone: Backbone,
    out: Picture,
    showing: Showing,
    mass: Annotated[float, Option("--mass", help="Share of the attention that a mask holds, 0 to 1.")] = 0.6,
) -> None:
    """Show the attention of the class token in the last block, by head, and that of the registers.

    Besides the maps: the fewest patches that hold --mass of the attention. The attention is computed from the queries
    and keys of the block itself; a backbone for which this is not possible is refused. For research use only.
    """
    from dinomed.apps.api.show.patches import show_attention

    shown = show_attention(backbone, image, mass=mass, **_arguments(showing, out))
    heads = [
        {"head": number, "patches": round(float(shares[-1]), 4), "mask": round(float(mask.mean()), 4)}
        for number, (shares, mask) in enumerate(zip(shown.attention.shares()[0], shown.masks, strict=True), 1)
    ]
    values = {"heads": heads, "registers": shown.attention.num_registers}
    _report(showing, out, shown.images, values, _step("pca", showing, backbone, "pca.png", images=[image]))


@expand
def match(
    first: Annotated[Path, Argument(help="An image.")],
    second: Annotated[Path, Argument(help="Another image.")],
    backbone: Backbone,
    out: Picture,
    showing: Showing,
    min_similarity: Annotated[
        float, Option("--min-similarity", help="Smallest cosine similarity of a match, -1 to 1.")
    ] = 0.5,
    count: Annotated[int, Option("--count", help="Largest number of matches.", min=1)] = 20,
) -> None:
    """Show which patches of two images match, with numbered lines.

    Patches match if each is the nearest to the other. Of matches that are close together, only the strongest is kept. A
    match shows similar features, not the same anatomy. For research use only, not for diagnosis.
    """
    from dinomed.apps.api.show.relations import show_match

    shown = show_match(backbone, first, second, min_similarity=min_similarity, count=count, **_arguments(showing, out))
    matches = [
        {"first": [round(v, 1) for v in a], "second": [round(v, 1) for v in b], "similarity": round(each.similarity, 4)}
        for each, (a, b) in zip(shown.matches, shown.points, strict=True)
    ]
    step = _similarity_step(showing, backbone, [first, second])
    none = {} if matches else {"result": f"no match above {min_similarity:g}"}
    _report(showing, out, shown.images, {"unit": "px", "matches": matches, **none}, step)


@expand
def similarity(
    images: Annotated[
        list[Path],
        Argument(help="1 to 6 images, of which the first has the patch; or a folder or a manifest."),
    ],
    backbone: Backbone,
    out: Picture,
    showing: Showing,
    at: Annotated[
        str | None, Option("--at", help="Place X,Y of the patch in the first image, px [its middle].")
    ] = None,
) -> None:
    """Show the cosine similarity of one patch to all patches of its image and of up to five others.

    An .html page computes it live for the patch under the pointer. For research use only, not for diagnosis.
    """
    from dinomed.apps.api.show.relations import show_similarity

    shown = show_similarity(backbone, list(images), at=_parse_place(at), **_arguments(showing, out))
    highest = [round(float(values.max()), 4) for values in shown.maps]
    step = None if _is_page(out) else _similarity_step(showing, backbone, list(images), at=at)
    _report(showing, out, shown.images, {"patch": list(shown.patch), "highest": highest}, step)


def map_images(
    data: Annotated[Path, Argument(help="Manifest (.parquet or .csv), or a folder of images.")],
    backbone: Backbone,
    out: Annotated[
        Path,
        Option("--output", "-o", help="File to write: .html (interactive), .png or .svg.", show_default=False),
    ],
    color: Annotated[
        str | None,
        Option("--color", help="Column that colours the map [the first that exists of label, reason, split]."),
    ] = None,
    method: Annotated[str, Option("--method", help="tsne, umap (needs umap-learn) or pca.")] = "tsne",
    perplexity: Annotated[
        float, Option("--perplexity", help="Number of neighbours that t-SNE and UMAP consider.", min=1)
    ] = 30.0,
    predictions: Annotated[
        Path | None,
        Option("--predictions", help="predictions.csv of a classifier, for the columns predicted and error."),
    ] = None,
    star: Annotated[Path | None, Option("--star", help="One more image, whose position is marked by a star.")] = None,
    names: Annotated[
        bool,
        Option("--names", help="Write paths into the page: a selection is saved as a manifest, not as row numbers."),
    ] = False,
    limit: Annotated[
        int, Option("--limit", help="Largest number of images; of more, a random sample is shown.", min=1, max=20_000)
    ] = 20_000,
    weights: Weights = None,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    cache: Cache = None,
    mask_text: MaskText = False,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show a map of up to 20,000 images, projected by their features.

    The .html page needs no network. It shows thumbnails under the pointer, colours by any column of the manifest, and
    saves the images inside a lasso. A curated manifest is shown with its removed images and their reasons.
    For research use only, not for diagnosis.
    """
    arguments = locals()
    from dinomed.apps.api.show.maps import show_map
    from dinomed.apps.ending import MAP_OPTIONS, free_path, print_end
    from dinomed.apps.output import api_arguments, emit
    from dinomed.notice import RESEARCH_USE

    shown = show_map(**api_arguments(arguments))
    report = {
        "map": str(out), "images": len(shown.points), "method": method, "color": shown.color, "groups": shown.groups,
        "note": RESEARCH_USE,
    }  # fmt: skip
    emit(report, as_json)
    map_options = {name: arguments[name] for name in ("data", "backbone", *MAP_OPTIONS)}
    step: Step = (["index"], {**map_options, "out": free_path("runs/index")})
    if not _is_page(out):
        step = (["show", "map"], {**arguments, "out": free_path(out.with_suffix(".html")), "overwrite": False})
    print_end([out], step, as_json=as_json)


def _is_page(out: Path) -> bool:
    return out.suffix.lower() == ".html"


def _step(picture: str, showing: Showing, backbone: str, out: str, **arguments: Any) -> "Step":
    """Return another picture by the same backbone."""
    from dinomed.apps.ending import MAP_OPTIONS, free_path

    backbone_options = {name: getattr(showing, name) for name in MAP_OPTIONS}
    return ["show", picture], {"backbone": backbone, **backbone_options, **arguments, "out": free_path(out)}


def _similarity_step(showing: Showing, backbone: str, images: list[Path], **arguments: Any) -> "Step":
    """Return the page that shows the similarity of the patch under the pointer."""
    from dinomed.apps.api.show.relations import MOST_SIMILARITY

    return _step("similarity", showing, backbone, "similarity.html", images=images[:MOST_SIMILARITY], **arguments)


def _arguments(showing: Showing, out: Path) -> dict[str, Any]:
    from dinomed.apps.output import api_arguments

    return {**api_arguments(vars(showing)), "out": out}


def _report(showing: Showing, out: Path, images: list[str], values: dict[str, Any], step: "Step | None" = None) -> None:
    from dinomed.apps.ending import print_end
    from dinomed.apps.output import build_table, emit
    from dinomed.notice import RESEARCH_USE

    report = {"picture": str(out), "images": images, **values, "note": RESEARCH_USE}
    rows = [("picture", str(out)), *((f"image {number}", name) for number, name in enumerate(images, 1))]
    rows += [(name, _in_words(value)) for name, value in values.items()]
    emit(report, showing.as_json, None if showing.as_json else build_table(("", ""), [*rows, ("note", RESEARCH_USE)]))
    print_end([out], step, as_json=showing.as_json)


def _in_words(value: Any) -> Any:
    """Return a value of a report for a cell of the table: lists of records as their number."""
    if isinstance(value, list):
        return len(value) if value and isinstance(value[0], dict) else ", ".join(map(str, value)) or 0
    return value


def _parse_place(text: str | None) -> tuple[float, float] | None:
    from dinomed.errors import UsageError

    if text is None:
        return None
    try:
        x, y = (float(word) for word in text.split(","))
    except ValueError:
        raise UsageError(f"--at {text}: expected two numbers, such as 120,80") from None
    return x, y
