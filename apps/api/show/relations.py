"""Pictures of relations between images: matches and similarity."""

from collections.abc import Sequence
from pathlib import Path

from dinomed.apps.api.backbones import BackboneLike, load_backbone
from dinomed.apps.api.inputs import PathLike, text_mask
from dinomed.apps.api.show.results import (
    Images,
    ShownMatches,
    ShownSimilarity,
    check_out,
    choose_sources,
    describe_features,
    source_names,
    write_picture,
)
from dinomed.errors import UsageError
from dinomed.explore.images import embed_images
from dinomed.explore.live_page import build_live_page
from dinomed.explore.match import COUNT, MIN_SIMILARITY, match_patches
from dinomed.explore.pictures import draw_match, draw_similarity
from dinomed.explore.similarity import similarity_maps
from dinomed.explore.tiles import patch_centre
from dinomed.images.in_memory import ImageSource
from dinomed.io.files import write_text
from dinomed.io.output_folder import claimed_file

MOST_SIMILARITY = 6


def show_match(
    backbone: BackboneLike,
    first: ImageSource,
    second: ImageSource,
    *,
    out: PathLike | None = None,
    min_similarity: float = MIN_SIMILARITY,
    count: int = COUNT,
    weights: PathLike | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    mask_text: bool = False,
    overwrite: bool = False,
    device: str = "auto",
) -> ShownMatches:
    """Show which patches of two images match (DINOv2, figure 10).

    Patches match if each is the nearest to the other by cosine similarity, after the mean over both images was
    subtracted. Of matches that are close together, only the strongest is kept. The command is ``dinomed show match``.

    Args:
        backbone: a loaded backbone, or what `dinomed.load_backbone` takes.
        first: a path, a PIL image, an array or a tensor.
        second: the other image.
        out: file to write, .png, .svg or .html; None writes nothing.
        min_similarity: smallest cosine similarity of a match, -1 to 1.
        count: largest number of matches.
        weights: file with the weights of a backbone that is given by name.
        image_size: side of the square to which images are resized, px. A larger one gives more patches.
        mean: mean of each channel in 0 to 1, for weights that name none; see `load_backbone`.
        std: standard deviation of each channel.
        mask_text: mask burned-in text that the detector finds in the picture; it misses text.
        overwrite: replace an earlier picture in `out`.
        device: device of a backbone that is given by name or path.

    Returns:
        The matches, their points in px, and the drawing.

    Raises:
        UsageError: an option is out of range, or `out` exists.
        DinomedError: an image cannot be read.

    Example:
        >>> image = "lesions/images/SYN_00000_a.jpg"
        >>> shown = dinomed.show_match("runs/ssl", image, image)
        >>> shown.matches[0].first == shown.matches[0].second, round(shown.matches[0].similarity, 3)
        (True, 1.0)
    """
    if not -1 <= min_similarity <= 1:
        raise UsageError(f"`min_similarity={min_similarity:g}` is out of range; give -1 to 1")
    if count < 1:
        raise UsageError(f"`count={count}` is out of range; give at least 1")
    check_out(out, overwrite)
    masker = text_mask(mask_text, True, "")
    sources = [*choose_sources(first, 1, "match"), *choose_sources(second, 1, "match")]
    frozen = load_backbone(backbone, weights=weights, device=device, image_size=image_size, mean=mean, std=std)
    left, right = embed_images(frozen, sources, masker)
    matches = match_patches(left.tokens, right.tokens, min_similarity=min_similarity, count=count)
    grids = left.tokens.shape[:2], right.tokens.shape[:2]
    drawing = draw_match(left.shown, right.shown, matches, grids, min_similarity)
    note = "A match shows which patches are similar for the backbone, not that they are the same anatomy."
    write_picture(drawing, out, "Matching patches", frozen, note)
    boxes = [(0.0, 0.0, float(image.size[1]), float(image.size[0])) for image in (left, right)]
    points = [
        (patch_centre(match.first, grids[0], boxes[0]), patch_centre(match.second, grids[1], boxes[1]))
        for match in matches
    ]
    return ShownMatches(drawing, source_names(sources), matches, points)


def show_similarity(
    backbone: BackboneLike,
    images: Images,
    *,
    at: tuple[float, float] | None = None,
    out: PathLike | None = None,
    weights: PathLike | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    mask_text: bool = False,
    overwrite: bool = False,
    device: str = "auto",
) -> ShownSimilarity:
    """Show the cosine similarity of one patch to all patches of its image and of up to five others.

    The .html page computes it live for the patch under the pointer. The command is ``dinomed show similarity``.

    Args:
        backbone: a loaded backbone, or what `dinomed.load_backbone` takes.
        images: 1 to 6 images (paths, PIL images, arrays, tensors), of which the first has the patch; or a manifest or
            a folder, of which up to 6 images are taken, evenly spaced.
        at: place (x, y) of the patch in the first image, px from the upper left corner; None for its middle.
        out: file to write, .png, .svg or .html; None writes nothing.
        weights: file with the weights of a backbone that is given by name.
        image_size: side of the square to which images are resized, px. A larger one gives more patches.
        mean: mean of each channel in 0 to 1, for weights that name none; see `load_backbone`.
        std: standard deviation of each channel.
        mask_text: mask burned-in text that the detector finds in the picture; it misses text.
        overwrite: replace an earlier picture in `out`.
        device: device of a backbone that is given by name or path.

    Returns:
        The patch, the similarity maps and the drawing.

    Raises:
        UsageError: too many images, `at` lies outside of the first image, or `out` exists.
        DinomedError: an image cannot be read.

    Example:
        >>> shown = dinomed.show_similarity("runs/ssl", "lesions/images", at=(24, 18), out="similarity.html")
        >>> len(shown.maps), shown.patch, round(float(shown.maps[0][shown.patch]), 3)
        (6, (2, 2), 1.0)
    """
    check_out(out, overwrite)
    masker = text_mask(mask_text, True, "")
    sources = choose_sources(images, MOST_SIMILARITY, "similarity")
    frozen = load_backbone(backbone, weights=weights, device=device, image_size=image_size, mean=mean, std=std)
    embedded = embed_images(frozen, sources, masker)
    height, width = embedded[0].size
    x, y = (width / 2, height / 2) if at is None else at
    if not (0 <= x < width and 0 <= y < height):
        raise UsageError(f"`at={x:g},{y:g}` lies outside of the first image of {width} x {height} px")
    patch = embedded[0].patch_at(x, y)
    tokens = [image.tokens for image in embedded]
    maps = similarity_maps(tokens, 0, patch)
    drawing = draw_similarity(embedded, maps, 0, patch)
    if out is not None and Path(out).suffix.lower() == ".html":
        with claimed_file(out):
            write_text(out, build_live_page(embedded, patch, describe_features(frozen)))
    else:
        write_picture(drawing, out, "Similarity of a patch", frozen, "")
    return ShownSimilarity(drawing, source_names(sources), patch, maps)
