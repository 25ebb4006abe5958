"""Pictures of what features hold: PCA, attention, matches and similarity, as drawings."""

from collections.abc import Sequence
from colorsys import hsv_to_rgb
from typing import Protocol

import numpy as np

from dinomed.explore.attention import LastAttention, mass_mask
from dinomed.explore.match import PatchMatch
from dinomed.explore.tiles import Section, Tile, blend, darken, draw_sections, heat_colours, patch_box, patch_centre
from dinomed.html.drawing import SOFT, Drawing

MARK = "#ffffff"
_HUES = (0.5, 0.13, 0.86, 0.32, 0.05, 0.6, 0.2, 0.75)  # cyan first: it differs from skin and mucosa


class Shown(Protocol):
    """The part of `dinomed.explore.images.PatchImage` that pictures need."""

    @property
    def name(self) -> str: ...
    @property
    def shown(self) -> np.ndarray: ...


def draw_pca(images: Sequence[Shown], colours: np.ndarray, foreground: np.ndarray | None = None) -> Drawing:
    """Draw images, their foreground, and the colours of their patches.

    Args:
        images: N images.
        colours: uint8 (N, rows, columns, 3), from `pca_colours`.
        foreground: bool (N, rows, columns), from `find_foreground`, or None.
    """
    sections = [Section("Images", [Tile(image.shown, image.name) for image in images])]
    if foreground is not None:
        kept = [Tile(darken(image.shown, mask)) for image, mask in zip(images, foreground, strict=True)]
        sections.append(Section("Foreground: first component of all patches", kept))
    title = "Three components of " + ("all patches" if foreground is None else "the foreground")
    tiles = [
        Tile(map_colours, shape=image.shown.shape[:2], smooth=False)
        for image, map_colours in zip(images, colours, strict=True)
    ]
    sections.append(Section(f"{title}: red, green, blue", tiles))
    return draw_sections(sections, "PCA of patch features")[0]


def draw_attention(image: Shown, attention: LastAttention, mass: float = 0.6) -> Drawing:
    """Draw the attention of the class token by head, the masks that hold a share of it, and that of the registers.

    Args:
        image: the image.
        attention: of this image alone (B is 1).
        mass: share of the attention that a mask holds.
    """
    maps, shares = attention.maps()[0], attention.shares()[0]
    mean = maps.mean(axis=0)
    heads = [Tile(_attended(image, mean), f"mean of {len(maps)} heads")]
    heads += [
        Tile(_attended(image, head), f"head {number}: {share[-1]:.0%} to patches")
        for number, (head, share) in enumerate(zip(maps, shares, strict=True), 1)
    ]
    masks = [Tile(darken(image.shown, mass_mask(head, mass))) for head in (mean, *maps)]
    sections = [
        Section("Image", [Tile(image.shown, image.name)]),
        Section("Attention of the class token in the last block", heads),
        Section(f"Fewest patches that hold {mass:.0%} of it", masks),
    ]
    if attention.num_registers:
        tiles = [
            Tile(
                _attended(image, attention.maps(register)[0].mean(axis=0)),
                f"register {register}: receives {shares[:, register].mean():.1%}",
            )
            for register in range(1, attention.num_registers + 1)
        ]
        sections.append(Section("Attention of the registers, mean of the heads", tiles))
    return draw_sections(sections, "Attention of the last block", columns=5)[0]


def draw_match(
    first: np.ndarray,
    second: np.ndarray,
    matches: Sequence[PatchMatch],
    grids: tuple[tuple[int, ...], tuple[int, ...]],
    min_similarity: float,
    *,
    tile: float = 380,
    captions: tuple[str, str] = ("image 1", "image 2"),
    note: bool = True,
) -> Drawing:
    """Draw two images beside each other, with a numbered line for each match.

    Args:
        first: uint8 (H, W, 3), of any size.
        second: uint8 (H, W, 3), of any size.
        matches: from `match_patches`, best first.
        grids: (rows, columns) of the patches of each image.
        min_similarity: for the note.
        tile: width and height into which each image is fitted.
        captions: of the images.
        note: write above the images that there is no match, if there is none.
    """
    title = "" if matches or not note else f"No match above {min_similarity:g}"
    pair = [Tile(image, caption) for image, caption in zip((first, second), captions, strict=True)]
    drawing, ((left, right),) = draw_sections([Section(title, pair)], f"{len(matches)} matches", tile=tile)
    numbered = list(enumerate(matches, 1))[::-1]  # the best is drawn last, on top
    for number, match in numbered:
        ends = patch_centre(match.first, grids[0], left), patch_centre(match.second, grids[1], right)
        drawing.line(ends, "#00000088", 2.6)
        drawing.line(ends, match_colour(number), 1.3)
    for number, match in numbered:
        for patch, grid, box in ((match.first, grids[0], left), (match.second, grids[1], right)):
            x, y = patch_centre(patch, grid, box)
            drawing.dot((x, y), 8, match_colour(number), rim="#000000")
            drawing.text((x, y + 4), str(number), size=11, color="#000000", anchor="middle", bold=True)
    return drawing


def draw_similarity(images: Sequence[Shown], maps: Sequence[np.ndarray], image: int, patch: tuple[int, int]) -> Drawing:
    """Draw the similarity of one patch, which is framed, to all patches of the images.

    Args:
        images: the images.
        maps: from `similarity_maps`.
        image: index of the image that has the patch.
        patch: its row and column.
    """
    low, high = min(float(each.min()) for each in maps), max(float(each.max()) for each in maps)
    tiles = [
        Tile(blend(each.shown, heat_colours(values, low, high)), f"{each.name}: highest {values.max():.2f}")
        for each, values in zip(images, maps, strict=True)
    ]
    plain = [Tile(each.shown, each.name) for each in images]
    sections = [Section("Images", plain), Section("Cosine similarity to the framed patch", tiles)]
    drawing, boxes = draw_sections(sections, "Similarity of a patch")
    for row in boxes:
        x, y, width, height = patch_box(patch, maps[image].shape, row[image])
        drawing.frame((x - 1.5, y - 1.5, width + 3, height + 3), "#000000", 4)
        drawing.frame((x - 1.5, y - 1.5, width + 3, height + 3), MARK, 2)
    return _with_bar(drawing, low, high)


def match_colour(number: int) -> str:
    """Return the colour of a match, by its number from 1."""
    hue, value = _HUES[(number - 1) % len(_HUES)], 1.0
    return "#" + "".join(f"{round(255 * part):02x}" for part in hsv_to_rgb(hue, 0.75, value))


def _attended(image: Shown, values: np.ndarray) -> np.ndarray:
    return blend(image.shown, heat_colours(values, float(values.min()), float(values.max())), 0.65)


def _with_bar(drawing: Drawing, low: float, high: float) -> Drawing:
    """Add a colour bar with its two ends below a drawing."""
    y = drawing.height
    drawing.height += 34
    bar = heat_colours(np.linspace(0, 1, 128)[None])
    drawing.text((14, y + 12), f"{low:.2f}", size=12, color=SOFT)
    drawing.image(bar, (56, y + 2, 160, 12), label="colour bar")
    drawing.text((224, y + 12), f"{high:.2f}", size=12, color=SOFT)
    return drawing
