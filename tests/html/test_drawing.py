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
from dinomed.html.drawing import SCALE, Drawing, check_output, write_drawing


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
