"""A headless Chromium of the system, and a demo served by a process of its own."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, driven by Playwright; set DINOMED_TEST_CHROMIUM to its path if it is not on PATH."""
    path = os.environ.get("DINOMED_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium fonts-dejavu-core")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield chromium
        chromium.close()


WCAG = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa")
LOOKS = (("light", 1280), ("light", 390), ("dark", 390), ("dark", 1280))


@pytest.fixture(scope="session")
def find_violations() -> Callable[..., list[str]]:
    """Return the violations of WCAG 2.2 AA that axe-core finds on a page in both themes, also on a phone."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    options = {"runOnly": {"type": "tag", "values": list(WCAG)}, "resultTypes": ["violations"]}

    def find_violations(page: Any, looks: Sequence[tuple[str, int]] = LOOKS) -> list[str]:
        violations = []
        for scheme, width in looks:
            page.set_viewport_size({"width": width, "height": 844})
            page.emulate_media(color_scheme=scheme)
            page.wait_for_function(
                "scheme => !document.querySelector('.dm-app')"
                " || document.body.classList.contains('dark') === (scheme === 'dark')",
                arg=scheme,
            )
            page.wait_for_function(  # an earlier result is pale until the new one is there
                "() => ![...document.querySelectorAll('[aria-busy=true]')].some(part => part.offsetParent)"
            )
            for each in axe.run(page, options=options).response["violations"]:
                violations += [f"{scheme} {width}: {each['id']}: {node['html'][:160]}" for node in each["nodes"]]
        page.set_viewport_size({"width": 1280, "height": 920})
        page.emulate_media(color_scheme="light")
        return violations

    return find_violations


@dataclass
class Visit:
    """One page, and every address it asked for."""

    page: Any
    requests: list[str]

    def text(self, elem_id: str) -> str:
        return self.page.inner_text(f"#{elem_id}")

    def wait_until_drawn(self) -> None:
        """Wait for two frames of the screen: the viewer draws what has changed in the first."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def status(self) -> str:
        """Size and zoom of the picture, as the viewer drew them last."""
        self.wait_until_drawn()
        return self.text("status")

    def message(self, kind: str) -> str:
        """The text of a message, see `dinomed.apps.demos.parts.message`."""
        return self.page.inner_text(f".message.{kind}:visible")

    def upload(self, path: Path) -> None:
        """Open a file with the button; the previous picture is gone at once."""
        self.page.set_input_files("#picture input[type=file]", str(path))

    def wait_for_answer(self) -> None:
        self.page.wait_for_selector(".dm-app[data-state=shown]")

    def wait_for_area(self, expected: int) -> None:
        """Wait for an exact area, and for the diameters, which are drawn after it; an estimate does not count."""
        self.page.wait_for_function(
            "n => !document.querySelector('#measures').hidden && !document.querySelector('.dm-estimated') && "
            "document.querySelector('#shape:not([hidden])[aria-busy=false]') && "
            "document.querySelector('#area-px').textContent.replaceAll(',', '') === String(n)",
            arg=expected,
        )

    def set_threshold(self, value: float) -> None:
        self.page.locator("#threshold-number").fill(str(value))

    def keep_everything(self) -> None:
        """Leave no region out, however small."""
        self.page.locator("#min-share").select_option("0.0")

    def download(self) -> tuple[str, np.ndarray]:
        """The suggested name and the pixels of the mask."""
        with self.page.expect_download() as download:
            self.page.locator("#download").click()
        return download.value.suggested_filename, np.asarray(Image.open(download.value.path()))

    def screenshot(self, name: str) -> None:
        """Save what is seen at 390 and at 1280 px, if DINOMED_TEST_SCREENSHOTS names a folder."""
        folder = os.environ.get("DINOMED_TEST_SCREENSHOTS")
        for width in (390, 1280) if folder else ():
            self.page.set_viewport_size({"width": width, "height": 920})
            self.page.wait_for_timeout(200)  # for the last frame
            self.page.screenshot(path=Path(str(folder)) / f"{name}_{width}.png", full_page=True)


@pytest.fixture
def visit(browser: Any, demo: "Demo") -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": 1280, "height": 920}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(30_000)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(demo.address)
    page.wait_for_selector(".dm-app[data-ready]")
    yield Visit(page, requests)
    context.close()


@dataclass
class Demo:
    address: str
    process: subprocess.Popen[str]
    temporary: Path


@contextlib.contextmanager
def serving(command: list[str], temporary: Path) -> Iterator[Demo]:
    """Start `command`, which prints the address it serves at; stop it with SIGTERM."""
    temporary.mkdir(exist_ok=True)
    errors = (temporary.parent / "stderr.txt").open("w+")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=errors, text=True,
        env={**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        errors.seek(0)
        assert address.startswith("http://127.0.0.1:"), errors.read()
        yield Demo(address, process, temporary)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(90)  # a busy machine takes half a minute to end Python
        finally:
            process.kill()  # only what did not end by itself
            errors.close()


Serve = Callable[[list[str], Path], contextlib.AbstractContextManager[Demo]]


@pytest.fixture(scope="session")
def serve() -> Serve:
    return serving


@pytest.fixture(scope="session")
def stand_in() -> list[str]:
    """A command that serves the demo over a stand-in for the adapter: dark is lesion, so a test knows the mask."""
    return [sys.executable, str(Path(__file__).with_name("dark_is_lesion.py"))]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of corrections, of a demo with the options ``--save``."""
    return tmp_path_factory.mktemp("corrections") / "saved"


@pytest.fixture(scope="module")
def demo_options() -> list[str]:
    """Further options of the demo of a module."""
    return []


@pytest.fixture(scope="session")
def plain_demo(browser: Any, stand_in: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The demo without options, which all modules share: its start takes seconds of the processor."""
    with serving(stand_in, tmp_path_factory.mktemp("demo") / "tmp") as demo:
        yield demo


@pytest.fixture(scope="module")
def demo(
    browser: Any,
    stand_in: list[str],
    demo_options: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Demo]:
    if not demo_options:
        yield request.getfixturevalue("plain_demo")
        return
    with serving([*stand_in, *demo_options], tmp_path_factory.mktemp("demo") / "tmp") as demo:
        yield demo
