"""Batches of the demo in a real browser: several files, a ZIP, errors, order, cancel, download, two visitors."""

import csv
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.browser, pytest.mark.slow]
DONE = "text => document.querySelector('#batch-status').innerText === text"
NUMBERS = "() => [...document.querySelectorAll('#batch-list li')].map(item => Number(item.dataset.number))"
SIDES = (30, 10, 50)
WAIT_MS = 120_000  # a batch of slow pictures on a busy machine


@pytest.fixture(scope="module")
def demo(browser: Any, serve: Any, stand_in: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with serve([*stand_in, "--batch"], tmp_path_factory.mktemp("demo") / "tmp") as demo:
        yield demo


def write_square(path: Path, side: int, slow: bool = False) -> Path:
    """Write a dark square of `side` px on pale skin, 120 x 160 px; a slow one takes three seconds."""
    pixels = np.full((120, 160, 3), 204, np.uint8)
    pixels[20 : 20 + side, 30 : 30 + side] = 51
    if slow:
        pixels[0, 0] = 255, 0, 0
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Three squares and, between them, a file that is damaged; their names could be those of patients."""
    files = [write_square(tmp_path / f"DOE_{number}.png", side) for number, side in enumerate(SIDES)]
    broken = tmp_path / "DOE_broken.png"
    broken.write_bytes(files[0].read_bytes()[:60])
    return [files[0], broken, *files[1:]]


def start(page: Any, files: list[Path], total: int | None = None) -> None:
    """Start a batch and, with a total, wait for its end."""
    page.set_default_timeout(WAIT_MS)
    page.locator("#tab-batch").click()
    page.set_input_files("#batch-files", [str(path) for path in files])
    if total is not None:
        page.wait_for_function(DONE, arg=f"{total} of {total} done.")


def download(page: Any) -> zipfile.ZipFile:
    with page.expect_download() as taken:
        page.locator("#batch-download").click()
    return zipfile.ZipFile(io.BytesIO(Path(taken.value.path()).read_bytes()))


def test_from_several_files_to_a_zip_of_results(visit, pictures: list[Path], find_violations: Any) -> None:
    page = visit.page
    start(page, pictures, 4)
    assert page.evaluate(NUMBERS) == [1, 3, 4]
    assert page.locator("#batch-errors li").count() == 1
    assert page.inner_text("#batch-errors li").startswith("Image 2")
    for name, numbers in (("Largest area", [4, 1, 3]), ("Smallest area", [3, 1, 4]), ("Order of the files", [1, 3, 4])):
        page.get_by_role("button", name=name).click()
        assert page.evaluate(NUMBERS) == numbers
    page.get_by_role("button", name="Most uncertain").click()
    assert page.evaluate(NUMBERS) == [3, 1, 4]  # the smaller the lesion, the larger the share of the doubtful skin
    assert "DOE" not in page.content()
    assert find_violations(page) == []

    results = download(page)
    assert results.testzip() is None
    rows = list(csv.DictReader(io.TextIOWrapper(results.open("results.csv"), "utf-8")))
    assert [row["number"] for row in rows] == ["1", "2", "3", "4"]
    assert "name" not in rows[0]
    assert "cannot be read" in rows[1]["error"]
    for row, side in zip([rows[0], *rows[2:]], SIDES, strict=True):
        mask = np.asarray(Image.open(io.BytesIO(results.read(row["mask"]))))
        assert (mask == 255).sum() == int(row["area_px"]) == side * side
        assert Image.open(io.BytesIO(results.read(row["overlay"]))).size == (160, 120)
    about = json.loads(results.read("results.json"))
    assert "research use only" in about["purpose"]
    assert about["settings"]["segment"]["threshold"] == 0.5
    assert [image["number"] for image in about["images"]] == [1, 2, 3, 4]

    page.locator("#batch-names").check()
    assert "DOE_broken.png" in page.inner_text("#batch-errors")
    assert "DOE_2.png" in download(page).read("results.csv").decode()
    assert [url for url in visit.requests if not re.match(r"(http://127\.0\.0\.1:|data:|blob:)", url)] == []
    visit.screenshot("batch")


def test_a_picture_of_a_zip_opens_in_the_viewer(visit, demo, pictures: list[Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in pictures:
            archive.write(path, f"../{path.name}")
    start(visit.page, [tmp_path / "all.zip"], 4)
    assert visit.page.locator("#batch-list li").count() == 3
    assert visit.page.locator("#batch-errors li").count() == 1
    visit.page.locator("#batch-list button").nth(2).focus()
    visit.page.keyboard.press("Enter")
    visit.wait_for_answer()
    visit.page.locator("#tab-segment").click()
    visit.wait_for_area(SIDES[2] ** 2)
    assert not list(demo.temporary.rglob("DOE*"))


GONE = """() => {
  const slice = Blob.prototype.slice;
  Blob.prototype.slice = function (...range) {
    const part = slice.apply(this, range);
    if (/gone/.test(this.name)) part.arrayBuffer = () => Promise.reject(new DOMException("gone", "NotFoundError"));
    return part;
  };
}"""


def test_a_file_that_cannot_be_read_has_a_message_and_the_batch_goes_on(visit, tmp_path: Path) -> None:
    visit.page.evaluate(GONE)  # as a folder that was dropped, or a file that was deleted meanwhile
    files = [write_square(tmp_path / name, 10) for name in ("1.png", "gone.png", "3.png")]
    start(visit.page, files, 3)
    assert visit.page.evaluate(NUMBERS) == [1, 3]
    assert visit.page.inner_text("#batch-errors li").startswith("Image 2This file cannot be read: it is a folder")
    assert visit.page.locator("#batch-cancel").is_hidden()
    start(visit.page, files[2:], 1)


def test_a_cancelled_batch_keeps_what_is_done(visit, tmp_path: Path) -> None:
    start(visit.page, [write_square(tmp_path / f"{side}.png", side, slow=True) for side in (10, 20, 30, 40)])
    visit.page.wait_for_selector("#batch-list li")
    visit.page.locator("#batch-cancel").click()
    visit.page.wait_for_function("() => document.querySelector('#batch-status').innerText.startsWith('Cancelled: ')")
    count = visit.page.locator("#batch-list li").count()
    assert 1 <= count < 4
    assert sum(name.startswith("masks/") for name in download(visit.page).namelist()) == count
    assert visit.page.locator("#batch-files").is_enabled()


@pytest.fixture
def another_visit(browser: Any, demo: Any) -> Iterator[Callable[..., Any]]:
    contexts: list[Any] = []

    def visit() -> Any:
        contexts.append(browser.new_context(accept_downloads=True))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT_MS)
        page.goto(demo.address)
        page.wait_for_selector(".dm-app[data-ready]")
        return page

    yield visit
    for context in contexts:
        context.close()


def test_two_visitors_get_their_own_results_and_leave_no_file(demo, another_visit, tmp_path: Path) -> None:
    earlier = set(demo.temporary.rglob("batch-*"))  # the ZIP of another test, until it is swept
    pages = [another_visit(), another_visit()]
    sides = [(10, 12, 14), (40, 42, 44)]
    for page, numbers in zip(pages, sides, strict=True):
        start(page, [write_square(tmp_path / f"{side}.png", side) for side in numbers])
    for page, numbers in zip(pages, sides, strict=True):
        page.wait_for_function(DONE, arg="3 of 3 done.")
        rows = csv.DictReader(io.TextIOWrapper(download(page).open("results.csv"), "utf-8"))
        assert [int(row["area_px"]) for row in rows] == [side * side for side in numbers]
    assert set(demo.temporary.rglob("batch-*")) == earlier


def test_the_batch_fits_a_phone(visit, pictures: list[Path]) -> None:
    visit.page.set_viewport_size({"width": 390, "height": 844})
    start(visit.page, pictures, 4)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
