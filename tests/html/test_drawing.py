"""Drawings: the same shapes as SVG, PNG and page, and files that are not replaced."""

import base64
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from dinomed.errors import UsageError
from dinomed.html.drawing import PALETTE, SCALE, Drawing, check_output, write_drawing


@pytest.fixture
def drawing() -> Drawing:
    drawing = Drawing(120, 60, "a < b")
    drawing.image(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8), (10, 10, 40, 20), smooth=False, label="two")
    drawing.line([(60, 20), (100, 20)], "#00ff00", 4)
    drawing.dot((80, 45), 6, "#ff00ff")
    drawing.frame((5, 5, 50, 30), "#000000", 2)
    drawing.text((10, 55), "1 < 2", bold=True)
    return drawing


def test_the_png_has_the_shapes_at_their_places(drawing: Drawing, tmp_path: Path) -> None:
    write_drawing(drawing, tmp_path / "a.png", "A drawing")
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    assert pixels.shape == (60 * SCALE, 120 * SCALE, 3)
    colours = {(20, 20): (255, 0, 0), (40, 20): (0, 0, 255), (80, 20): (0, 255, 0), (80, 45): (255, 0, 255)}
    for (x, y), colour in colours.items():
        assert tuple(pixels[y * SCALE, x * SCALE]) == colour
    assert tuple(pixels[20 * SCALE, 5 * SCALE]) == (0, 0, 0)
    assert tuple(pixels[2, 2]) == (255, 255, 255)


def test_the_svg_is_well_formed_and_has_the_same_shapes(drawing: Drawing, tmp_path: Path) -> None:
    write_drawing(drawing, tmp_path / "a.svg", "A drawing")
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    tags = [element.tag.rpartition("}")[2] for element in root.iter()]
    assert tags == ["svg", "rect", "image", "title", "polyline", "circle", "rect", "text"]
    image = root[1]
    data = image.attrib["href"].partition("base64,")[2]
    assert np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    assert (image.attrib["x"], image.attrib["width"]) == ("10.0", "40.0")
    assert root[-1].text == "1 < 2"


def test_an_area_is_nearly_transparent_and_a_dashed_line_has_gaps_in_svg_and_png() -> None:
    drawing = Drawing(60, 40, "band")
    drawing.area([(10, 20), (50, 20), (50, 38), (10, 38)], "#ff0000")
    drawing.line([(0, 10), (60, 10)], "#0000ff", 2, dashed=True)
    pixels = np.asarray(drawing.to_image())
    assert tuple(pixels[30 * SCALE, 30 * SCALE]) == (255, 217, 217)  # 255 * (1 - 0.15)
    row = pixels[10 * SCALE]
    assert tuple(row[1 * SCALE]) == (0, 0, 255)  # a dash of 3, a gap of 3
    assert tuple(row[int(4.5 * SCALE)]) == (255, 255, 255)
    svg, themed = drawing.to_svg(), drawing.to_svg(themed=True)
    assert 'fill="#ff0000" fill-opacity="0.15"' in svg
    assert svg.count('stroke-dasharray="3 3"') == 1
    assert themed.count("polygon") == 1


def test_an_upright_text_runs_from_the_bottom_to_the_top_around_its_middle() -> None:
    boxes = {}
    for upright in (False, True):
        drawing = Drawing(60, 100, "axis")
        drawing.text((30, 50), "name", anchor="middle", color="#ff0000", upright=upright)
        ink = np.argwhere(np.asarray(drawing.to_image())[..., 1] < 128) / SCALE
        boxes[upright] = *ink.min(axis=0), *ink.max(axis=0)  # top, left, bottom, right
    (top, left, bottom, right), (high, first, low, last) = boxes[False], boxes[True]
    assert (low - high, last - first) == pytest.approx((right - left, bottom - top), abs=1)  # px of smooth edges
    assert (high + low) / 2 == pytest.approx(50, abs=1)
    assert last <= 33  # above its base line, which is on the right; "name" has no letter below it
    svg = drawing.to_svg()
    assert 'transform="rotate(-90 30.0 50.0)"' in svg


def test_a_bar_fills_its_box_and_says_what_it_counts() -> None:
    drawing = Drawing(60, 40, "bars")
    drawing.bar((10, 10, 20, 15), "#ff0000", "2 < 3")
    pixels = np.asarray(drawing.to_image())
    assert tuple(pixels[17 * SCALE, 20 * SCALE]) == (255, 0, 0)
    assert tuple(pixels[28 * SCALE, 20 * SCALE]) == (255, 255, 255)
    assert (
        '<rect x="10.0" y="10.0" width="20.0" height="15.0" fill="#ff0000"><title>2 &lt; 3</title>' in drawing.to_svg()
    )


def test_colours_of_groups_follow_the_theme_of_a_page() -> None:
    drawing = Drawing(60, 40, "lines")
    drawing.line([(0, 10), (60, 10)], PALETTE[1])
    drawing.area([(0, 0), (9, 0), (9, 9)], PALETTE[1])
    drawing.dot((20, 20), 3, PALETTE[1])
    assert drawing.to_svg(themed=True).count("var(--c1)") == 3
    assert "var(" not in drawing.to_svg()


def test_the_page_holds_the_drawing_and_loads_nothing(drawing: Drawing, tmp_path: Path) -> None:
    write_drawing(drawing, tmp_path / "a.html", "A drawing", ["<p>a note</p>"])
    page = (tmp_path / "a.html").read_text()
    assert "<p>a note</p>" in page
    assert "<polyline" in page
    assert "script-src" not in page
    assert "http:" not in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)


def test_only_an_earlier_picture_is_replaced(drawing: Drawing, tmp_path: Path) -> None:
    for name in ("a.png", "a.svg", "a.html"):
        write_drawing(drawing, tmp_path / name, "A drawing")
        with pytest.raises(UsageError, match="exists already; add `overwrite=True`"):
            check_output(tmp_path / name)
        check_output(tmp_path / name, overwrite=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")
    with pytest.raises(UsageError, match="was not made by dinomed"):
        check_output(tmp_path / "photo.png", overwrite=True)
    with pytest.raises(UsageError, match=r"must end in \.png, \.svg or \.html"):
        check_output(tmp_path / "a.jpg")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        check_output(tmp_path / "folder.png")
