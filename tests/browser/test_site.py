"""The documentation site in a browser: its search works, and nothing is asked of another address."""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.long]


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """The address of the site, served by this process."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_browser_searches_the_site_and_asks_no_other_address(address: str, browser: Any) -> None:
    page = browser.new_page()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"{address}/index.html")
    page.locator("input[name=query]").first.fill("layer_decay")
    page.wait_for_selector("a.md-search-result__link")
    page.goto(f"{address}/reference/settings/pretrain.html")
    page.wait_for_selector("text=optimizer.layer_decay")
    page.close()
    assert any("search_index" in url for url in requests)
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []
