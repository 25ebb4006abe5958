"""Correction of masks in a real browser: what is drawn, saved, and learnt from."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinomed.adapters.inference.loader import load_adapter
from dinomed.apps import cli
from dinomed.apps.demos.corrections import MANIFEST_FILE
from dinomed.datasets.manifest import read_manifest
from dinomed.images.read import read_image, read_mask

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.long]
SIDE = 96


@pytest.fixture(scope="module")
def demo_options(saved: Path) -> list[str]:
    return ["--save", str(saved)]


def draw(folder: Path, number: int) -> tuple[Path, tuple[int, int, int, int]]:
    """Pale skin with a dark disc, which the model marks, and a blue square, which it misses; the box of the square."""
    rng = np.random.default_rng(number)
    pixels = np.full((SIDE, SIDE, 3), (230, 190, 175), np.uint8)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    dark, blue = rng.integers(20, 76), rng.integers(4, 60)
    pixels[np.hypot(rows - dark, columns - 20) < 12] = (40, 30, 30)
    left, top = int(rng.integers(44, 60)), int(blue)
    pixels[top : top + 32, left : left + 32] = (120, 150, 255)
    path = folder / f"case {number}.png"
    Image.fromarray(pixels).save(path)
    return path, (left, top, left + 32, top + 32)


def on_page(visit: Any, x: float, y: float) -> tuple[float, float]:
    """The place of a point of the picture on the page."""
    box = visit.page.locator(".dm-stage").bounding_box()
    scale = min(box["width"] / SIDE, box["height"] / SIDE)
    left, top = box["x"] + (box["width"] - SIDE * scale) / 2, box["y"] + (box["height"] - SIDE * scale) / 2
    return left + x * scale, top + y * scale


STAGE_IS_STILL = """([x, y]) => new Promise((done) => {
  const stage = document.querySelector(".dm-stage"), place = () => JSON.stringify(stage.getBoundingClientRect());
  const before = place(), last = () => done(place() === before && stage.contains(document.elementFromPoint(x, y)));
  requestAnimationFrame(() => requestAnimationFrame(last));
})"""
"""Whether the viewer stays in place for two frames, under a point: a scrolled page may still move on a busy machine."""


def drag(visit: Any, *points: tuple[float, float]) -> None:
    visit.page.locator(".dm-stage").scroll_into_view_if_needed()
    assert any(visit.page.evaluate(STAGE_IS_STILL, on_page(visit, *points[0])) for _ in range(300)), "it moves"
    visit.page.mouse.move(*on_page(visit, *points[0]))
    visit.page.mouse.down()
    for point in points[1:]:
        visit.page.mouse.move(*on_page(visit, *point), steps=4)
    visit.page.mouse.up()


def cover(visit: Any, box: tuple[int, int, int, int]) -> None:
    """Brush over a box of 32 pixels in rows."""
    left, top, right, _ = box
    points = [
        (x, top + y) for row, y in enumerate((4, 12, 20, 28)) for x in ((left + 4, right - 4)[:: 1 - 2 * (row % 2)])
    ]
    drag(visit, *points)


def area(visit: Any) -> int:
    visit.wait_until_drawn()
    return int(visit.text("area-px").replace(",", "") or 0)


def shown(visit: Any, path: Path) -> int:
    visit.upload(path)
    visit.wait_for_answer()
    visit.page.wait_for_selector("#measures:visible")
    return area(visit)


def test_brush_eraser_fill_and_undo_change_the_mask_that_is_downloaded_and_saved(
    visit: Any, saved: Path, tmp_path: Path
) -> None:
    path, box = draw(tmp_path, 1)
    before = shown(visit, path)
    _, plain = visit.download()
    corrected, accepted = (
        visit.page.locator("[data-decision=corrected]"),
        visit.page.locator("[data-decision=accepted]"),
    )
    assert (corrected.is_disabled(), accepted.is_disabled()) == (True, False)
    visit.page.locator("[data-tool=brush]").click()
    visit.page.locator("#brush-size").fill("48")
    cover(visit, box)
    brushed = area(visit)
    assert brushed > before + 500
    assert (corrected.is_disabled(), accepted.is_disabled()) == (False, True)
    _, mask = visit.download()
    added = (mask == 255) & (plain == 0)
    rows, columns = np.nonzero(added)
    assert added.sum() == brushed - before
    assert box[0] - 5 <= columns.min() <= columns.max() < box[2] + 5  # the radius of the brush is 4 pixels
    assert box[1] - 5 <= rows.min() <= rows.max() < box[3] + 5
    assert ((mask == 255) | ~(plain == 255)).all()  # nothing else changed
    visit.screenshot("correct")

    visit.page.locator("[data-tool=eraser]").click()
    drag(visit, (box[0] + 16, box[1] + 2), (box[0] + 16, box[1] + 30))
    erased = area(visit)
    assert erased < brushed - 60
    visit.page.locator("#undo").click()
    assert area(visit) == brushed
    visit.page.locator("[data-tool=fill]").click()
    drag(visit, (box[0] + 16, box[1] + 12))  # clears the region
    assert area(visit) == before
    visit.page.locator("#undo").click()
    assert area(visit) == brushed

    visit.page.locator("#reviewer").fill("R. Viewer")
    corrected.click()
    visit.page.wait_for_function("() => document.querySelector('#saved').textContent.includes('Saved')")
    manifest = read_manifest(saved / MANIFEST_FILE)
    row = manifest.column("reviewer").index("R. Viewer")
    assert manifest.column("decision")[row] == "corrected"
    assert (read_mask(saved / manifest.column("mask")[row]) == (mask == 255)).all()
    assert (read_image(manifest.path(row)) == read_image(path)).all()
    visit.page.locator("[data-decision=rejected]").click()
    visit.page.wait_for_function("() => document.querySelector('#saved').textContent.includes('reject')")
    assert read_manifest(saved / MANIFEST_FILE).column("mask")[row] is None


def test_nothing_moves_under_the_pointer_after_an_edit(visit: Any, tmp_path: Path) -> None:
    """A click on Undo was lost: the diameters, hidden while they are measured, came back between press and release."""
    path, box = draw(tmp_path, 4)
    shown(visit, path)
    visit.page.locator("[data-tool=brush]").click()
    cover(visit, box)
    places = """() => new Promise(done => {
        const undo = document.querySelector('#undo'), seen = new Set(), end = Date.now() + 800;
        undo.click();
        const look = () => {
            seen.add(Math.round(undo.getBoundingClientRect().top));
            Date.now() < end ? requestAnimationFrame(look) : done([...seen]);
        };
        look();
    })"""
    assert len(visit.page.evaluate(places)) == 1
    assert visit.page.locator("#shape").get_attribute("aria-busy") == "false"


def test_an_exact_area_that_comes_after_a_further_edit_is_dropped(visit: Any, tmp_path: Path) -> None:
    pixels = np.full((1500, 2200, 3), 204, np.uint8)  # larger than its map: exact areas are asked of the server
    pixels[301:902, 503:1404] = 51
    Image.fromarray(pixels).save(tmp_path / "large.png")
    visit.upload(tmp_path / "large.png")
    visit.wait_for_area(601 * 901)
    held: list[Any] = []
    visit.page.route("**/component_server/**", lambda route: route.continue_() if held else held.append(route))
    visit.page.locator("[data-tool=brush]").click()
    box = visit.page.locator(".dm-stage").bounding_box()
    visit.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 0.9 * box["height"])
    deadline = time.monotonic() + 60
    while not held and time.monotonic() < deadline:  # for the exact area of the brushed mask
        visit.page.wait_for_timeout(50)
    visit.page.locator("#undo").click()
    visit.page.evaluate("""() => {
        window.exact = [];
        const look = () => document.querySelector('.dm-estimated')
            || window.exact.push(document.querySelector('#area-px').textContent);
        new MutationObserver(look).observe(document.querySelector('#measures'),
            {subtree: true, childList: true, attributes: true, characterData: true});
    }""")
    held[0].continue_()
    held[0].request.response().finished()
    area(visit)  # after the page has taken it
    visit.wait_for_area(601 * 901)
    assert set(visit.page.evaluate("window.exact")) == {f"{601 * 901:,}"}


def test_edits_of_a_picture_are_gone_when_another_one_is_opened(visit: Any, tmp_path: Path) -> None:
    first, box = draw(tmp_path, 2)
    before = shown(visit, first)
    visit.page.locator("[data-tool=brush]").click()
    cover(visit, box)
    assert area(visit) > before
    shown(visit, draw(tmp_path, 3)[0])
    assert visit.page.locator("[data-decision=corrected]").is_disabled()
    assert shown(visit, first) == before


def squares_of(folder: Path, gray: int, side: int) -> Path:
    """A square of `side` pixels whose probability is ``1 - gray / 255``: the nearer to 0.5, the more uncertain."""
    pixels = np.full((SIDE, SIDE, 3), 250, np.uint8)
    pixels[10 : 10 + side, 10 : 10 + side] = gray
    Image.fromarray(pixels).save(folder / f"gray {gray}.png")
    return folder / f"gray {gray}.png"


def test_the_next_case_is_the_most_uncertain_one_without_a_decision(visit: Any, tmp_path: Path) -> None:
    page = visit.page
    paths = [
        squares_of(tmp_path, gray, side) for gray, side in ((20, 20), (60, 24), (120, 28), (90, 32))
    ]  # sides tell them apart; the order of uncertainty is 120, 90, 60
    page.set_input_files("#picture input[type=file]", [str(path) for path in paths])
    visit.wait_for_area(20 * 20)
    page.wait_for_function("() => document.querySelector('#next-rule').textContent.includes('3 of 3 measured')")
    assert page.inner_text("#next-case") == "Next case (3 left)"

    def decide() -> None:
        page.locator("[data-decision=accepted]").click()
        page.wait_for_function("() => document.querySelector('#saved').textContent.includes('Saved')")

    decide()
    page.locator("#next-case").click()
    visit.wait_for_area(28 * 28)
    page.locator("#next-case").click()  # without a decision: it comes last
    visit.wait_for_area(32 * 32)
    assert page.inner_text("#next-case") == "Next case (2 left)"
    decide()
    page.locator("#next-case").click()
    visit.wait_for_area(24 * 24)
    decide()
    page.locator("#next-case").click()
    visit.wait_for_area(28 * 28)
    decide()
    assert page.inner_text("#next-case") == "Next case"
    assert page.locator("#next-rule").is_hidden()

    page.set_input_files("#picture input[type=file]", [str(path) for path in (paths[0], paths[1], paths[2])])
    visit.wait_for_area(20 * 20)
    page.wait_for_function("() => document.querySelector('#next-case').textContent === 'Next case'")  # judged before


def blue_squares(path: Path) -> np.ndarray:
    """Two blue squares on pale skin, of the colour that the model misses, on the grid of patches; and a dark one."""
    pixels = np.full((SIDE, SIDE, 3), (230, 190, 175), np.uint8)
    pixels[16:48, 48:80] = pixels[64:80, 64:80] = (120, 150, 255)
    pixels[64:88, 8:32] = (40, 30, 30)
    Image.fromarray(pixels).save(path)
    return pixels


def test_a_click_adds_or_removes_connected_patches_that_are_similar(visit: Any, tmp_path: Path) -> None:
    page, pixels = visit.page, blue_squares(tmp_path / "squares.png")
    blue, dark = (pixels == (120, 150, 255)).all(-1), (pixels == (40, 30, 30)).all(-1)
    upper = blue & (np.arange(SIDE)[:, None] < 56)
    before = shown(visit, tmp_path / "squares.png")
    assert before == dark.sum()
    page.locator("#grow-similarity").fill("0.7")
    page.locator("[data-tool=grow]").click()
    drag(visit, (60, 30))
    grown = area(visit)
    _, mask = visit.download()
    added = (mask == 255) & ~dark
    assert (added & upper).sum() / (added | upper).sum() > 0.85  # between the centres of patches of 8 px
    assert not (added & blue & ~upper).any()  # as similar, but not connected
    page.locator("#grow-similarity").fill("0.3")  # the skin has 0.39
    wide = area(visit)
    assert wide > grown + 2000
    page.locator("#grow-similarity").fill("0.7")
    assert area(visit) == grown
    page.locator("#undo").click()
    assert area(visit) == before
    page.locator("#grow-similarity").fill("0.3")
    assert area(visit) == before  # that click was undone
    page.locator("[data-tool=brush]").click()
    drag(visit, (64, 64), (80, 80))
    stroke = area(visit)
    assert stroke > before
    page.locator("#grow-similarity").fill("0.7")
    assert area(visit) == stroke
    page.locator("#undo").click()
    page.locator("[data-tool=shrink]").click()
    drag(visit, (20, 76))
    assert 0 < area(visit) < before / 2
    page.locator("#grow-similarity").fill("0")  # the skin has -0.95: the middle to it is the border of the square
    assert 0 < area(visit) < before / 10  # at corners three of four patches are skin
    page.locator("#undo").click()
    assert area(visit) == before
    page.locator("#grow-similarity").fill("0.7")

    page.locator(".dm-stage").focus()
    page.keyboard.press("x")
    page.keyboard.press("g")
    assert page.locator("[data-tool=grow]").get_attribute("aria-pressed") == "true"
    for key in ("ArrowRight", "ArrowUp", "ArrowUp", "Enter"):  # from the middle of the picture
        page.keyboard.press(key)
    assert area(visit) == grown


def test_a_tap_adds_similar_patches(browser: Any, demo: Any, tmp_path: Path) -> None:
    blue_squares(tmp_path / "squares.png")
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    try:
        page = context.new_page()
        page.goto(demo.address)
        page.wait_for_selector(".dm-app[data-ready]")
        page.set_input_files("#picture input[type=file]", str(tmp_path / "squares.png"))
        page.wait_for_selector("#measures:visible")
        places = [page.locator(name) for name in ("#picture", ".dm-state", ".dm-correct", "#threshold")]
        assert (tops := [place.bounding_box()["y"] for place in places]) == sorted(tops)  # tools below the viewer
        before = page.inner_text("#area-px")
        page.locator("[data-tool=grow]").tap()
        page.locator(".dm-stage").scroll_into_view_if_needed()
        page.touchscreen.tap(*on_page(SimpleNamespace(page=page), SIDE / 2 + 16, SIDE / 2 - 16))
        page.wait_for_function("text => document.querySelector('#area-px').textContent !== text", arg=before)
        assert int(page.inner_text("#area-px").replace(",", "")) > int(before.replace(",", "")) + 800
    finally:
        context.close()


def test_ten_pictures_are_corrected_in_the_browser_and_the_next_segmenter_marks_what_was_missed(
    visit: Any, saved: Path, tmp_path: Path, tiny_backbone: Path
) -> None:
    cases = [draw(tmp_path, number) for number in range(10, 20)]
    for path, box in cases:
        shown(visit, path)
        visit.page.locator("[data-tool=brush]").click()
        visit.page.locator("#brush-size").fill("48")
        cover(visit, box)
        visit.page.locator("[data-decision=corrected]").click()
        visit.page.wait_for_function("() => document.querySelector('#saved').textContent.includes('Saved')")
    data = saved / MANIFEST_FILE
    corrected = read_manifest(data)
    assert corrected.column("decision").count("corrected") == 10
    command = [
        "train",
        "segment",
        "-b",
        str(tiny_backbone),
        "--data",
        str(data),
        "-o",
        str(tmp_path / "seg"),
        "--quiet",
    ]
    settings = ["image_size=96", "augment.preset=none", "fit.epochs=1", "fit.min_steps=150", "fit.learning_rate=0.02"]
    cli.invoke([*command, *(word for setting in settings for word in ("--set", setting))])
    path, (left, top, right, bottom) = draw(tmp_path, 99)  # that nobody has corrected
    image = read_image(path)
    before = 1 - image[top:bottom, left:right].mean() / 255  # what the model of the page says
    after = load_adapter(tmp_path / "seg").probability(image)[top:bottom, left:right].mean()  # type: ignore[attr-defined]
    assert before < 0.5 < after
