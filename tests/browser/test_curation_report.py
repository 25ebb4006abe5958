"""The page of a curation in a real browser: it shows, it asks for nothing, no script runs, no error, light and dark."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dinomed.pretrain.curation.output.report import write_report

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("names", [False, True])
def test_the_report_opens_alone_in_light_and_dark(
    browser: Any, make_result: Callable[..., Any], tmp_path: Path, names: bool
) -> None:
    path = tmp_path / "report.html"
    write_report(make_result(tmp_path / "made"), path, names=names)
    colors = []
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme, viewport={"width": 1100, "height": 900})
        page = context.new_page()
        requests: list[str] = []
        said: list[str] = []
        page.on("request", lambda request, to=requests: to.append(request.url))
        page.on("console", lambda message, to=said: to.append(message.text))
        page.on("pageerror", lambda error, to=said: to.append(str(error)))
        page.on("dialog", lambda dialog, to=said: to.append(dialog.message))
        page.goto(path.as_uri(), wait_until="load")
        assert said == []
        assert [url for url in requests if not url.startswith("data:image/jpeg")] == [path.as_uri()]
        assert page.locator("h1").inner_text() == "Curation"
        pictures = page.locator("img")
        assert pictures.count() > 8
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert page.locator("svg path").first.bounding_box()["width"] > 50  # points are drawn, and spread
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")  # nothing runs off the side
        assert ("<script>alert(1)<_script>.png" in page.locator("body").inner_text()) is names
        colors.append(page.evaluate("getComputedStyle(document.querySelector('.key b')).color"))
        page.locator("summary").last.click()
        assert "fit_images" in page.locator("details pre").last.inner_text()
        context.close()
    assert colors[0] != colors[1]
