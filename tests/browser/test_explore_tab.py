"""The tab Explore in the browser: similarity under the pointer, earlier pictures, and each mode."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dinomed.apps import cli
from dinomed.datasets.manifest import read_manifest

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def demo(
    browser: Any, serve: Any, lesion_manifest: Path, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("explore")
    cli.invoke(
        ["index", str(lesion_manifest), "-b", str(tiny_backbone), "-o", str(folder / "index"), "--quiet", "--json"]
    )
    command = [
        sys.executable, "-m", "dinomed", "demo", "retrieve", "--index", str(folder / "index"), "--no-browser",
        "--device", "cpu",
    ]  # fmt: skip
    with serve(command, folder / "tmp") as demo:
        yield demo


def reach_point(page: Any, canvas: Any, x: float, y: float) -> None:
    """Move the cross of a map by the arrow keys to a place, px."""
    box = canvas.bounding_box()
    away = [x - box["width"] / 2, y - box["height"] / 2]
    canvas.focus()
    for distance, keys in zip(away, (("ArrowLeft", "ArrowRight"), ("ArrowUp", "ArrowDown")), strict=True):
        key = keys[distance > 0]
        for pressed, times in ((key, int(abs(distance) / 14)), (f"Shift+{key}", int(abs(distance) % 14 / 2))):
            for _ in range(times):
                page.keyboard.press(pressed)
    if not page.locator("#map-tip, #tip").first.is_visible():
        page.keyboard.press("Shift+ArrowRight")  # a cross that no key has moved is not there


def test_every_mode_shows_the_picture_and_earlier_ones(visit, demo, lesion_manifest: Path) -> None:
    manifest, page = read_manifest(lesion_manifest), visit.page
    page.get_by_role("tab", name="Explore", exact=True).click()
    for row, count in ((0, 1), (3, 2)):
        visit.upload(manifest.path(row))
        visit.wait_for_answer()
        page.wait_for_function(f"document.querySelectorAll('.ex-tile').length === {count}")
    tile = page.locator(".ex-tile").first
    before = tile.get_attribute("data-highest")
    assert float(before) == pytest.approx(1, abs=0.01)  # of the patch itself
    other = page.locator(".ex-tile").nth(1)
    other_before = other.get_attribute("data-highest")
    box = page.locator(".dm-stage").bounding_box()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.2 * box["height"])  # in the large picture
    page.wait_for_function(
        "value => document.querySelectorAll('.ex-tile')[1].dataset.highest !== value", arg=other_before
    )
    other.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("!document.querySelectorAll('.ex-tile > i')[1].hidden")
    for mode, selector in (("pca", ".ex-map"), ("attention", ".ex-map"), ("match", ".ex-match")):
        page.locator("#explore-mode").select_option(mode)
        page.wait_for_selector(f"#explore {selector}")
    assert "match" in page.inner_text("#explore-hint").lower()
    assert all(url.startswith((demo.address, "data:", "blob:")) for url in visit.requests)


def test_the_map_of_the_index_shows_selects_and_saves_its_images(
    visit, demo, lesion_manifest: Path, tmp_path: Path
) -> None:
    import dinomed

    manifest, page = read_manifest(lesion_manifest), visit.page
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.get_by_role("tab", name="Explore", exact=True).click()
    page.locator("#explore-mode").select_option("map")
    page.wait_for_selector("#map[data-ready=pca] #map-canvas[data-painted='60']")
    assert sorted(page.locator("#map-legend label").all_inner_texts()) == sorted(
        f"{label} ({manifest.column('label').count(label)})" for label in set(manifest.column("label"))
    )
    canvas = page.locator("#map-canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    for x, y in ((2, 2), (box["width"] - 2, 2), (box["width"] - 2, box["height"] - 2), (2, box["height"] - 2)):
        page.mouse.move(box["x"] + x, box["y"] + y)
    page.mouse.up()
    page.wait_for_function("document.querySelector('#map-status').textContent.startsWith('60 of 60')")
    page.wait_for_function("document.querySelectorAll('#map-grid img').length === 24")
    page.locator("#map-more").click()
    page.wait_for_function("document.querySelectorAll('#map-grid img').length === 48")
    with page.expect_download() as download:
        page.locator("#map-save").click()
    selection = dinomed.open_dataset(Path(download.value.path()).rename(tmp_path / "selection.csv"))
    assert (selection.column("image"), selection.columns) == (manifest.column("image"), manifest.columns)

    # without a pointer: Space sets two corners, and the thumbnail is that of the point at the cross
    canvas.focus()
    for key in ("Escape", "-", "-"):
        page.keyboard.press(key)
    page.wait_for_function("document.querySelector('#map-status').textContent.startsWith('0 of 60')")
    left, up = int(box["width"] / 2 / 14), int(box["height"] / 2 / 14)
    for key, times in (("ArrowLeft", left), ("ArrowUp", up), (" ", 1), ("ArrowRight", 2 * left), ("ArrowDown", 2 * up)):
        for _ in range(times):
            page.keyboard.press(key)
    page.keyboard.press(" ")
    page.wait_for_function("document.querySelector('#map-status').textContent.startsWith('60 of 60')")
    page.locator("#map-clear").click()
    page.locator("#map-legend input").first.click()  # hides the most frequent label
    page.locator("#map-all").click()
    most = max(manifest.column("label").count(label) for label in set(manifest.column("label")))
    page.wait_for_function(
        "text => document.querySelector('#map-status').textContent.startsWith(text)", arg=f"{60 - most} of 60"
    )

    # a picture of the index lies at its own point; after a change of the projection it is placed again
    visit.upload(manifest.path(3))
    page.wait_for_selector("#map[data-star='1']")
    page.locator("#map-method").select_option("tsne")
    page.wait_for_selector("#map[data-ready=tsne][data-star='1']")
    content = page.content()
    for name in (*manifest.column("image"), *manifest.column("group")):
        assert Path(name).stem not in content
    visit.screenshot("explore_map")
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("document.documentElement.scrollWidth <= 390")
    assert all(url.startswith((demo.address, "data:", "blob:")) for url in visit.requests)
    assert errors == []


def test_the_image_under_the_pointer_and_its_star_are_shown_on_the_map(visit, lesion_manifest: Path) -> None:
    page = visit.page
    page.get_by_role("tab", name="Explore", exact=True).click()
    page.locator("#explore-mode").select_option("map")
    page.wait_for_selector("#map[data-ready=pca] #map-canvas[data-painted='60']")
    canvas = page.locator("#map-canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    visit.upload(read_manifest(lesion_manifest).path(3))
    page.wait_for_selector("#map[data-star='1']")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    yellow = page.wait_for_function(
        """() => {
          const canvas = document.querySelector("#map-canvas"), ratio = canvas.width / canvas.clientWidth;
          const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data, places = [];
          for (let at = 0; at < pixels.length; at += 4) {
            if (pixels[at] === 250 && pixels[at + 1] === 204 && pixels[at + 2] === 21) places.push(at / 4);
          }
          const mean = (of) => places.reduce((sum, at) => sum + of(at), 0) / places.length / ratio;
          return places.length > 20 && [mean((at) => at % canvas.width), mean((at) => Math.floor(at / canvas.width))];
        }"""
    ).json_value()
    page.mouse.move(box["x"] + yellow[0], box["y"] + yellow[1])
    page.wait_for_selector("#map-tip:visible img")
    values = [line for line in page.inner_text("#map-tip").splitlines() if line]
    assert any(line.startswith("label: ") for line in values)
    page.mouse.down()
    page.mouse.move(box["x"] + yellow[0] + 2, box["y"] + yellow[1] + 2)  # as a finger slips
    page.mouse.up()
    written = f"1 of 60 images selected. {'; '.join(values)}"
    page.wait_for_function("text => document.querySelector('#map-status').textContent === text", arg=written)
    page.wait_for_function("document.querySelectorAll('#map-grid img').length === 1")
    page.locator("#map-clear").click()
    reach_point(page, canvas, *yellow)
    values = [line for line in page.inner_text("#map-tip").splitlines() if line]
    page.keyboard.press("Enter")
    written = f"1 of 60 images selected. {'; '.join(values)}"
    page.wait_for_function("text => document.querySelector('#map-status').textContent === text", arg=written)
    visit.upload(read_manifest(lesion_manifest).path(0))
    page.wait_for_selector("#map[data-star='2']")


def test_the_pages_of_similarity_and_map_work_in_the_browser(
    browser: Any, lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    import dinomed

    manifest = read_manifest(lesion_manifest)
    images = [manifest.path(row) for row in (0, 3)]
    dinomed.show_similarity(tiny_backbone, images, out=tmp_path / "similarity.html", device="cpu")
    dinomed.show_map(
        tiny_backbone, lesion_manifest, out=tmp_path / "map.html", names=True, method="pca", cache=tmp_path / "cache",
        device="cpu",
    )  # fmt: skip
    context = browser.new_context(viewport={"width": 1200, "height": 900}, accept_downloads=True)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "similarity.html").as_uri())
    status = page.inner_text("#live-status")
    box = page.locator(".live").nth(1).bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.wait_for_function("text => document.querySelector('#live-status').textContent !== text", arg=status)
    assert "image 2, row 1, column 1" in page.inner_text("#live-status")

    page.goto((tmp_path / "map.html").as_uri())
    page.wait_for_selector("body[data-ready]")
    box = page.locator("#plane").bounding_box()
    corners = [(2, 2), (box["width"] - 2, 2), (box["width"] - 2, box["height"] - 2), (2, box["height"] - 2)]
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    for x, y in corners:
        page.mouse.move(box["x"] + x, box["y"] + y)
    page.mouse.up()
    page.wait_for_function("document.querySelector('#chosen').textContent.startsWith('60 of 60')")
    with page.expect_download() as download:
        page.locator("#save").click()
    selection = dinomed.open_dataset(Path(download.value.path()).rename(tmp_path / "selection.csv"))
    assert selection.column("image") == manifest.column("image")
    assert selection.column("label") == manifest.column("label")
    place = page.evaluate("plane.pointOf(7)")
    page.mouse.move(box["x"] + place[0], box["y"] + place[1])
    page.wait_for_selector("#tip:visible")
    assert page.locator("#tip canvas").count() == 1
    values = [line for line in page.inner_text("#tip").splitlines() if line]
    page.locator("#plane").click(position={"x": place[0], "y": place[1]})
    written = f"1 of 60 images selected. {'; '.join(values)}"
    page.wait_for_function("text => document.querySelector('#chosen').textContent === text", arg=written)
    context.close()
    assert errors == []
