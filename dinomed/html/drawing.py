"""Drawings of images, lines, dots and text, written as SVG, PNG or HTML from the same shapes."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from dinomed.errors import UsageError
from dinomed.html.page import build_page
from dinomed.io.files import replacing, write_text
from dinomed.io.output_folder import check_writable

FORMATS = (".png", ".svg", ".html")
SCALE = 2
"""Pixels of a PNG for each unit of the drawing; embedded images may have as many."""
AREA_OPACITY, DASH = 0.15, 3
TEXT, SOFT, EDGE, PAGE = "#0f172a", "#526075", "#cbd5e1", "#ffffff"
PALETTE = ("#0891b2", "#dc2626", "#94a3b8", "#d97706", "#7c3aed", "#16a34a", "#db2777", "#92400e")
"""Colours of groups; the style of a page has the same, and lighter ones for the dark theme."""
# colours that follow the theme of a page
_THEMED = {TEXT: "currentColor", SOFT: "var(--soft)", EDGE: "var(--edge)"} | {
    color: f"var(--c{k})" for k, color in enumerate(PALETTE)
}

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, width and height."""
Point: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class _Image:
    pixels: np.ndarray
    box: Box
    smooth: bool
    label: str


@dataclass(frozen=True)
class _Line:
    points: tuple[Point, ...]
    color: str
    width: float
    dashed: bool


@dataclass(frozen=True)
class _Area:
    points: tuple[Point, ...]
    color: str


@dataclass(frozen=True)
class _Dot:
    centre: Point
    radius: float
    color: str
    rim: str | None


@dataclass(frozen=True)
class _Dots:
    centres: np.ndarray
    radius: float
    color: str


@dataclass(frozen=True)
class _Bar:
    box: Box
    color: str
    label: str


@dataclass(frozen=True)
class _Frame:
    box: Box
    color: str
    width: float


@dataclass(frozen=True)
class _Text:
    place: Point
    text: str
    size: float
    color: str
    anchor: str
    bold: bool
    upright: bool


_Shape: TypeAlias = _Image | _Line | _Area | _Dot | _Dots | _Bar | _Frame | _Text


class Drawing:
    """A list of shapes on a plane of `width` by `height` units; a unit is a px of the SVG.

    Args:
        width: in units.
        height: in units.
        label: what the drawing shows, for screen readers.
    """

    def __init__(self, width: float, height: float, label: str) -> None:
        self.width, self.height, self.label = width, height, label
        self._shapes: list[_Shape] = []

    def image(self, pixels: np.ndarray, box: Box, *, smooth: bool = True, label: str = "") -> None:
        """Place an image, uint8 (H, W, 3), stretched to a box; without `smooth` its pixels stay squares."""
        self._shapes.append(_Image(pixels, box, smooth, label))

    def line(self, points: Sequence[Point], color: str, width: float = 2, *, dashed: bool = False) -> None:
        """Draw a line through points."""
        self._shapes.append(_Line(tuple(points), color, width, dashed))

    def area(self, points: Sequence[Point], color: str) -> None:
        """Fill the polygon of points, nearly transparent."""
        self._shapes.append(_Area(tuple(points), color))

    def dot(self, centre: Point, radius: float, color: str, rim: str | None = None) -> None:
        """Draw a filled circle, with a rim of one unit."""
        self._shapes.append(_Dot(centre, radius, color, rim))

    def dots(self, centres: np.ndarray, radius: float, color: str) -> None:
        """Draw many circles of one colour, with centres (n, 2); they are a little transparent."""
        self._shapes.append(_Dots(centres, radius, color))

    def bar(self, box: Box, color: str, label: str = "") -> None:
        """Fill a box; the label is shown where the pointer rests on it."""
        self._shapes.append(_Bar(box, color, label))

    def frame(self, box: Box, color: str, width: float = 2) -> None:
        """Draw the outline of a box."""
        self._shapes.append(_Frame(box, color, width))

    def text(
        self,
        place: Point,
        text: str,
        *,
        size: float = 13,
        color: str = TEXT,
        anchor: str = "start",
        bold: bool = False,
        upright: bool = False,
    ) -> None:
        """Write a line of text; `place` is on its base line, at its start, middle or end as `anchor` says.

        An `upright` line runs from the bottom to the top, as the name of a vertical axis.
        """
        self._shapes.append(_Text(place, text, size, color, anchor, bold, upright))

    def to_svg(self, *, themed: bool = False) -> str:
        """Return the SVG element. In a page, `themed` text has the colour of the page, and no background is drawn."""
        background = "" if themed else f'<rect width="100%" height="100%" fill="{PAGE}"/>'
        namespace = "" if themed else 'xmlns="http://www.w3.org/2000/svg" '  # HTML knows it, and a page has no address
        size = f'viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}"'
        return (
            f'<svg {namespace}data-generator="dinomed" {size} role="img" '
            f'aria-label="{escape(self.label)}" font-family="system-ui, sans-serif">{background}'
            + "".join(_svg(shape, themed) for shape in self._shapes)
            + "</svg>"
        )

    def to_image(self, *, transparent: bool = False) -> Image.Image:
        """Return the drawing as RGB with `SCALE` pixels a unit, or `transparent` as RGBA without a background."""
        scale = 2 * SCALE  # reduced at the end, for smooth edges
        size = round(self.width * scale), round(self.height * scale)
        canvas = Image.new("RGBA", size) if transparent else Image.new("RGB", size, PAGE)
        pen = ImageDraw.Draw(canvas, "RGBA")  # colours may be transparent
        for shape in self._shapes:
            _paint(shape, canvas, pen, scale)
        return canvas.reduce(2)

    def _repr_html_(self) -> str:
        """Show the drawing in a notebook."""
        return self.to_svg()


def write_drawing(drawing: Drawing, path: str | Path, title: str, parts: Sequence[str] = ()) -> None:
    """Write a drawing in the format of the suffix of `path`: .png, .svg, or .html, a page with `parts` below it.

    Raises:
        DinomedError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() == ".png":
        mark = PngInfo()
        mark.add_text("Software", "dinomed")
        with replacing(path) as temporary:
            drawing.to_image().save(temporary, format="PNG", pnginfo=mark, optimize=True)
    elif path.suffix.lower() == ".svg":
        write_text(path, drawing.to_svg() + "\n")
    else:
        picture = (
            f'<div class="scroll" tabindex="0" role="region" aria-label="Picture">{drawing.to_svg(themed=True)}</div>'
        )
        write_text(path, build_page(title, [picture, *parts]))


def check_output(path: str | Path, *, overwrite: bool = False, formats: Sequence[str] = FORMATS) -> None:
    """Check, before the work, that a drawing or a page can be written.

    Raises:
        UsageError: the suffix is none of `formats`, the file exists without `overwrite`, or dinomed did not make it.
        DinomedError: the folder is not writable.
    """
    path = Path(path)
    if path.suffix.lower() not in formats:
        raise UsageError(f"output {path}: the name must end in {', '.join(formats[:-1])} or {formats[-1]}")
    if path.is_dir():
        raise UsageError(f"output {path} is a folder; give a file")
    if path.exists() and not overwrite:
        raise UsageError(f"output {path} exists already; add `overwrite=True` to replace it")
    if path.exists() and b"dinomed" not in path.read_bytes()[:1024]:
        raise UsageError(f"output {path} was not made by dinomed and is not overwritten; choose another name")
    check_writable(path.parent)


def data_url(pixels: np.ndarray) -> str:
    """Return an image, uint8 (H, W, 3), as the data URL of a PNG if it is small, else of a JPEG."""
    small = pixels.shape[0] * pixels.shape[1] <= 128 * 128
    stream = io.BytesIO()
    kind = "PNG" if small else "JPEG"
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, kind, **({} if small else {"quality": 90}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _svg(shape: _Shape, themed: bool) -> str:
    if isinstance(shape, _Image):
        x, y, width, height = shape.box
        limit = (round(width * SCALE), round(height * SCALE))
        pixels = (
            np.asarray(_resized(shape, limit)) if shape.smooth and shape.pixels.shape[1] > limit[0] else shape.pixels
        )
        style = "" if shape.smooth else ' style="image-rendering:pixelated"'
        return (
            f'<image x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" preserveAspectRatio="none"'
            f'{style} href="{data_url(pixels)}"><title>{escape(shape.label)}</title></image>'
        )
    color = _THEMED.get(shape.color, shape.color) if themed else shape.color
    if isinstance(shape, _Line):
        dashes = f' stroke-dasharray="{DASH} {DASH}"' if shape.dashed else ""
        return (
            f'<polyline points="{_points(shape.points)}" fill="none" stroke="{color}" '
            f'stroke-width="{shape.width:g}"{dashes}/>'
        )
    if isinstance(shape, _Area):
        return f'<polygon points="{_points(shape.points)}" fill="{color}" fill-opacity="{AREA_OPACITY}"/>'
    if isinstance(shape, _Dot):
        x, y = shape.centre
        rim = "" if shape.rim is None else f' stroke="{shape.rim}"'
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{shape.radius:g}" fill="{color}"{rim}/>'
    if isinstance(shape, _Dots):
        path = "".join(f"M{x:.0f} {y:.0f}h0" for x, y in shape.centres)  # lines of no length with round ends
        return (
            f'<path d="{path}" stroke="{color}" stroke-width="{2 * shape.radius:.1f}" stroke-linecap="round" '
            'stroke-opacity="0.65"/>'
        )
    if isinstance(shape, _Bar):
        title = f"<title>{escape(shape.label)}</title>" if shape.label else ""
        return f'<rect {_box(shape.box)} fill="{color}">{title}</rect>'
    if isinstance(shape, _Frame):
        return f'<rect {_box(shape.box)} fill="none" stroke="{color}" stroke-width="{shape.width:g}"/>'
    x, y = shape.place
    weight = ' font-weight="600"' if shape.bold else ""
    turned = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if shape.upright else ""
    return (  # as a style: the style sheet of a page has a colour and a size for text
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{shape.anchor}"{weight}{turned} '
        f'style="fill:{color};font-size:{shape.size:g}px">{escape(shape.text)}</text>'
    )


def _box(box: Box) -> str:
    return 'x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"'.format(*box)


def _points(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _dashes(points: Sequence[Point]) -> list[tuple[Point, ...]]:
    """Return the dashes of a line, each as its two ends; every straight part begins with a dash."""
    dashes = list[tuple[Point, ...]]()
    for (x0, y0), (x1, y1) in pairwise(points):
        length = float(np.hypot(x1 - x0, y1 - y0))
        for start in np.arange(0, length, 2 * DASH):
            ends = [min(at, length) / length for at in (start, start + DASH)]
            dashes.append(tuple((x0 + (x1 - x0) * at, y0 + (y1 - y0) * at) for at in ends))
    return dashes


def _resized(shape: _Image, size: tuple[int, int]) -> Image.Image:
    kind = Image.Resampling.LANCZOS if shape.smooth else Image.Resampling.NEAREST
    return Image.fromarray(np.ascontiguousarray(shape.pixels)).resize((max(size[0], 1), max(size[1], 1)), kind)


def _paint(shape: _Shape, canvas: Image.Image, pen: ImageDraw.ImageDraw, scale: int) -> None:
    if isinstance(shape, _Image):
        column, row, columns, rows = (round(value * scale) for value in shape.box)
        canvas.paste(_resized(shape, (columns, rows)), (column, row))
    elif isinstance(shape, _Line):
        for part in _dashes(shape.points) if shape.dashed else [shape.points]:
            points = [(x * scale, y * scale) for x, y in part]
            pen.line(points, fill=shape.color[:7], width=max(1, round(shape.width * scale)), joint="curve")
    elif isinstance(shape, _Area):
        color = (*ImageColor.getrgb(shape.color)[:3], round(255 * AREA_OPACITY))
        pen.polygon([(x * scale, y * scale) for x, y in shape.points], fill=color)
    elif isinstance(shape, _Dot):
        x, y = (value * scale for value in shape.centre)
        r = shape.radius * scale
        pen.ellipse((x - r, y - r, x + r, y + r), fill=shape.color, outline=shape.rim, width=scale)
    elif isinstance(shape, _Dots):
        r = shape.radius * scale
        for x, y in shape.centres * scale:
            pen.ellipse((x - r, y - r, x + r, y + r), fill=shape.color)
    elif isinstance(shape, _Bar):
        x, y, width, height = (value * scale for value in shape.box)
        pen.rectangle((x, y, x + width, y + height), fill=shape.color)
    elif isinstance(shape, _Frame):
        x, y, width, height = (value * scale for value in shape.box)
        line = max(1, round(shape.width * scale))
        grow = line / 2  # SVG centres a line on the edge
        box = (x - grow, y - grow, x + width + grow, y + height + grow)
        pen.rectangle(box, outline=shape.color, width=line)
    else:
        _write(shape, canvas, pen, scale)


def _write(shape: _Text, canvas: Image.Image, pen: ImageDraw.ImageDraw, scale: int) -> None:
    font, anchor = ImageFont.load_default(size=shape.size * scale), {"start": "ls", "middle": "ms", "end": "rs"}
    x, y, bold = shape.place[0] * scale, shape.place[1] * scale, scale / 4 if shape.bold else 0
    if not shape.upright:
        pen.text((x, y), shape.text, shape.color, font, anchor[shape.anchor], stroke_width=bold)
        return
    wide, high = canvas.size  # written on a plane that is turned to the left afterwards
    turned = Image.new("L", (high, wide))
    plane = ImageDraw.Draw(turned)
    plane.text((high - y, x), shape.text, fill=255, font=font, anchor=anchor[shape.anchor], stroke_width=bold)
    canvas.paste(ImageColor.getrgb(shape.color), (0, 0), turned.transpose(Image.Transpose.ROTATE_90))
