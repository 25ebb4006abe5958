"""WCAG 2.2 AA of the demo in both themes: by axe-core, contrast of controls, keyboard, phone."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CONTRAST = """
selector => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = node => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const ratio = (a, b) => {
    const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  return [...document.querySelectorAll(selector)].filter(node => node.offsetParent && !node.disabled).map(node => {
    const style = getComputedStyle(node), behind = ground(node.parentElement);
    const border = ratio(parse(style.borderBottomColor), behind);
    return [node.outerHTML.slice(0, 80), Math.max(border, ratio(ground(node), behind))];
  });
}
"""


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.full((120, 160, 3), 204, np.uint8)
    pixels[20:60, 20:60] = pixels[80:100, 100:140] = 51
    Image.fromarray(pixels).save(tmp_path / "two.png")
    return tmp_path / "two.png"


@pytest.fixture
def open_page(browser: Any, demo: Any) -> Iterator[Callable[..., Any]]:
    contexts = []

    def open_page(scheme: str = "light", width: int = 1280, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.goto(demo.address)
        page.wait_for_selector(".dm-app[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def review(serve: Any, stand_in: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A demo in which masks are corrected."""
    folder = tmp_path_factory.mktemp("review")
    with serve([*stand_in, "--save", str(folder / "saved")], folder / "tmp") as demo:
        yield demo


def show(page: Any, path: Path) -> None:
    page.set_input_files("#picture input[type=file]", str(path))
    page.wait_for_selector("#measures:visible")


def test_axe_finds_what_is_wrong_on_a_page(open_page: Callable[..., Any], find_violations: Any, picture: Path) -> None:
    page = open_page()
    show(page, picture)  # buttons that are disabled may have any contrast
    page.evaluate("document.querySelector('#fit').style.color = 'var(--dm-line)'")
    page.evaluate("document.querySelector('#zoom-in').removeAttribute('aria-label')")
    page.evaluate("document.querySelector('#zoom-in').textContent = ''")
    violations = find_violations(page, [("light", 1280)])
    assert [violation.split(": ")[1] for violation in violations] == ["button-name", "color-contrast"]


def test_axe_finds_no_violation(
    open_page: Callable[..., Any], find_violations: Any, picture: Path, tmp_path: Path
) -> None:
    page = open_page()
    assert find_violations(page) == []
    show(page, picture)
    assert find_violations(page) == []
    (tmp_path / "broken").write_bytes(b"no picture")
    page.set_input_files("#picture input[type=file]", str(tmp_path / "broken"))
    page.wait_for_selector(".message.error")
    assert find_violations(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_controls_stand_out_from_their_ground(open_page: Callable[..., Any], picture: Path, scheme: str) -> None:
    """WCAG 1.4.11: 3:1 for the border of a control, or its own ground."""
    page = open_page(scheme)
    show(page, picture)
    controls = page.evaluate(CONTRAST, ".dm-app button:not([role=tab]), .dm-app select, .dm-app input[type=number]")
    assert len(controls) >= 8
    assert [(html, ratio) for html, ratio in controls if ratio < 3] == []
    chosen = page.evaluate(CONTRAST, ".dm-app [role=tab][aria-selected=true]")
    assert [(html, ratio) for html, ratio in chosen if ratio < 3] == []


def test_every_control_is_reached_by_the_keyboard_and_shows_it(open_page: Callable[..., Any], picture: Path) -> None:
    page = open_page()
    show(page, picture)
    page.evaluate("document.activeElement.blur()")
    reached, texts = [], set()
    for _ in range(40):
        page.keyboard.press("Tab")
        name, shown, outline = page.evaluate(
            "() => { const node = document.activeElement, around = node.closest('.dm-file, .dm-modes label') || node;"
            " return [node.id || node.name || node.className || node.tagName, node.textContent,"
            " getComputedStyle(around).outlineWidth]; }"
        )
        if (name, shown) in texts or name == "BODY":  # items of the list of regions differ by their texts
            break
        texts.add((name, shown))
        reached.append(name)
        if page.evaluate("document.querySelector('.dm-app').contains(document.activeElement)"):
            assert float(outline.removesuffix("px")) >= 2, name
    for name in ("dm-view", "zoom-in", "dm-stage", "compare", "tab-segment", "threshold", "largest", "download"):
        assert name in reached


@pytest.mark.parametrize(("width", "order"), [(1280, ["examples", "picture"]), (390, ["picture", "examples"])])
def test_the_keyboard_reaches_examples_and_viewer_in_the_order_in_which_they_are_seen(
    open_page: Callable[..., Any], width: int, order: list[str]
) -> None:
    page = open_page(width=width)
    assert page.locator("#examples").count() == 1
    tops = {name: page.locator(f"#{name}").bounding_box()["y"] for name in order}
    assert sorted(tops, key=lambda name: tops[name]) == order
    reached: list[str] = []
    for _ in range(20):
        page.keyboard.press("Tab")
        name = page.evaluate("() => document.activeElement.closest('#examples, #picture')?.id")
        if name and name not in reached:
            reached.append(name)
    assert reached == order


@pytest.mark.parametrize(
    ("width", "order"), [(1280, ["examples", "picture", "results"]), (390, ["picture", "results", "examples"])]
)
def test_the_order_of_the_keyboard_is_the_seen_one_while_masks_are_corrected(
    browser: Any, review: Any, width: int, order: list[str]
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.goto(review.address)
    page.wait_for_selector(".dm-app[data-ready]")
    page.locator(".dm-thumb").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".dm-app[data-state=shown]")
    assert page.evaluate("document.activeElement.className") == "dm-thumb"  # moved with its focus
    selectors = {"examples": "#examples", "picture": "#picture", "results": ".dm-inspect"}
    tops = {name: page.locator(selectors[name]).bounding_box() for name in order}
    assert sorted(tops, key=lambda name: (tops[name]["y"], tops[name]["x"])) == order
    places = page.evaluate(
        "names => names.map(name =>"
        " [...document.querySelectorAll('.dm-main > *')].findIndex(each => each.matches(name)))",
        [selectors[name] for name in order],
    )
    assert places == sorted(places)
    page.wait_for_selector("[data-tool=brush]:enabled")
    page.locator("[data-tool=brush]").focus()
    page.set_viewport_size({"width": 1670 - width, "height": 844})
    page.wait_for_timeout(200)
    assert page.evaluate("document.activeElement.dataset.tool") == "brush"
    page.close()


def test_from_an_example_to_its_mask_by_keyboard_only(open_page: Callable[..., Any]) -> None:
    page = open_page()

    def reach(selector: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"{selector} is not reached")

    reach(".dm-thumb")
    page.keyboard.press("Enter")
    page.wait_for_selector(".dm-app[data-state=shown]")
    page.evaluate("document.activeElement.blur()")
    reach("#threshold")
    for _ in range(30):  # from 0.5 to 0.2: the example has a probability of 0.36
        page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#measures:visible")
    reach("#download")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert (np.asarray(Image.open(download.value.path())) == 255).all()


def test_examples_have_names(open_page: Callable[..., Any]) -> None:
    page = open_page()
    assert page.get_by_role("button", name="Open example 1").count() == 1


@pytest.mark.parametrize("width", [390, 320, 1280])
def test_nothing_overflows_and_the_viewer_comes_first(open_page: Callable[..., Any], picture: Path, width: int) -> None:
    page = open_page(width=width)
    for _ in range(2):  # empty, and with a picture
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        show(page, picture)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    if width < 860:
        tops = [page.locator(name).bounding_box()["y"] for name in ("#picture", "#examples", ".dm-inspect")]
        assert tops == sorted(tops)


def test_two_fingers_zoom_and_one_moves(open_page: Callable[..., Any], picture: Path) -> None:
    page = open_page(width=390, has_touch=True)
    show(page, picture)
    before = page.inner_text("#status")
    box = page.locator(".dm-stage").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        numbered = [{"x": px, "y": py, "id": place} for place, (px, py) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": numbered})

    touch("touchStart", (x - 20, y), (x + 20, y))
    for reach in range(25, 80, 5):
        touch("touchMove", (x - reach, y), (x + reach, y))
    touch("touchEnd")
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.inner_text("#status") != before


def test_the_outline_of_a_step_is_drawn_without_the_server(open_page: Callable[..., Any], picture: Path) -> None:
    page = open_page()
    show(page, picture)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    for value in ("0.3", "0.6", "0.79"):
        page.locator("#threshold").fill(value)
    page.wait_for_timeout(500)
    assert requests == []
