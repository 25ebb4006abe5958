"""The contact sheet of `dinomed predict` in a real browser: sorting by pointer and keyboard, a narrow screen."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dinomed.apps import cli

pytestmark = [pytest.mark.browser, pytest.mark.slow]
VALUES = "key => [...document.querySelectorAll('.sheet li')].map(item => Number(item.dataset[key]))"


@pytest.fixture(scope="module")
def sheet(user_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predictions")
    cli.invoke(["predict", str(user_folder / "seg"), str(user_folder / "derm.parquet"), "-o", str(out), "--quiet"])
    return out / "index.html"


@pytest.fixture
def page(browser: Any, sheet: Path) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 920})
    page = context.new_page()
    page.goto(sheet.as_uri())
    yield page
    context.close()


def test_buttons_sort_the_images(page: Any) -> None:
    numbers = page.evaluate(VALUES, "number")
    assert numbers == list(range(1, len(numbers) + 1))
    for key, name in (("area", "Largest area"), ("uncertainty", "Most uncertain")):
        page.get_by_role("button", name=name).click()
        values = page.evaluate(VALUES, key)
        assert values == sorted(values, reverse=True)
        assert page.locator("[aria-pressed=true]").inner_text() == name
    page.get_by_role("button", name="Smallest area").focus()
    page.keyboard.press("Enter")
    values = page.evaluate(VALUES, "area")
    assert values == sorted(values)


def test_the_sheet_fits_a_narrow_screen(page: Any) -> None:
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if folder := os.environ.get("DINOMED_TEST_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / f"sheet_{width}.png")
