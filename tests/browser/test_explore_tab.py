"""The tab Explore in the browser: similarity under the pointer, earlier pictures, and each mode."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dinomed.apps import cli
from dinomed.datasets.manifest import read_manifest

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def demo(
    browser: Any, serve: Any, lesion_manifest: Path, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("explore")
    cli.invoke(
        ["index", str(lesion_manifest), "-b", str(tiny_backbone), "-o", str(folder / "index"), "--quiet", "--json"]
    )
    command = [
        sys.executable, "-m", "dinomed.apps.cli", "demo", "retrieve", "--index", str(folder / "index"), "--no-browser",
        "--device", "cpu",
    ]  # fmt: skip
    with serve(command, folder / "tmp") as demo:
        yield demo


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
    place = page.evaluate("pointOf(7)")
    page.mouse.move(box["x"] + place[0], box["y"] + place[1])
    page.wait_for_selector("#tip:visible")
    assert page.locator("#tip canvas").count() == 1
    context.close()
    assert errors == []
