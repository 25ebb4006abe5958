import re
from html.parser import HTMLParser

import numpy as np

from dinomed.html.page import build_bar_table, build_page, build_table, code, figure, folded, heading, paragraph
from dinomed.html.plots import curve, scatter

NASTY = "<script>alert(1)</script>\"'&"


class Reader(HTMLParser):
    """Collects tags and what attributes point to; notices tags that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_self_contained_and_escapes_everything() -> None:
    page = build_page(
        NASTY,
        [
            heading(NASTY), paragraph(NASTY), code(NASTY), folded(NASTY, NASTY),
            build_table([NASTY], [[NASTY], [0.5]], best=1),
            figure(np.zeros((600, 800, 3), np.uint8), NASTY), curve([(1, 2.0), (2, 1.0)], NASTY, {NASTY: 1.5}),
        ],
    )  # fmt: skip
    reader = Reader()
    reader.feed(page.split(">", 1)[1])  # after the doctype
    assert reader.open == []
    assert "script" not in reader.tags
    assert "link" not in reader.tags
    assert all(source.startswith("data:image/") for source in reader.sources)
    assert "For research use only, not for diagnosis." in page
    assert "http://" not in page
    assert "https://" not in page


def test_table_shows_numbers_and_gaps() -> None:
    table = build_table(["method", "Dice"], [["Otsu", 0.67], ["none", None], ["nan", float("nan")], ["[x]", 1200]])
    for text in ("0.670", "–", "1,200", "[x]"):
        assert f">{text}<" in table


def test_curve_leaves_out_what_is_not_finite() -> None:
    drawn = curve([(0, 1.0), (1, float("nan")), (2, 0.5)], "loss")
    assert len(drawn.split('points="')[1].split('"')[0].split()) == 2
    assert "nan" not in drawn
    assert curve([(0, 1.0)], "a point is no curve") == ""


def test_curve_falls_to_the_right_when_the_loss_does() -> None:
    drawn = curve([(0, 1.0), (10, 0.0)], "loss")
    first, last = (tuple(map(float, p.split(","))) for p in drawn.split('points="')[1].split('"')[0].split())
    assert first[0] < last[0]
    assert first[1] < last[1]  # SVG counts downwards


def test_flat_curve_has_a_height() -> None:
    assert "polyline" in curve([(0, 1.0), (1, 1.0)], "flat")


def test_the_later_groups_of_a_map_are_drawn_on_top_and_keep_their_colours() -> None:
    drawn = scatter({"kept": np.zeros((3, 2)), "removed": np.zeros((2, 2))}, "map", box=(-1, -1, 1, 1))
    assert drawn.index('stroke="var(--c0)"') < drawn.index('stroke="var(--c1)"')
    assert "removed (2)" in drawn


def test_every_table_scrolls_in_a_box_that_the_keyboard_reaches() -> None:
    for table in (build_table(["a"], [[1]]), build_bar_table("a", ("b", "c"), [("x", 1, 2)])):
        assert re.fullmatch(r'<div class="scroll" tabindex="0" role="region" aria-label="[^"]+"><table>.*</div>', table)
