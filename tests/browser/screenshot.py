"""Takes pictures of the demo for the pages of docs.

python tests/browser/screenshot.py runs/seg PICTURE docs/images/demo_segment.webp
python tests/browser/screenshot.py runs/seg PICTURE docs/images/demo_similar.webp --classify runs/cls \\
    --index runs/idx --tab Similar
python tests/browser/screenshot.py runs/seg PICTURE docs/images/demo_batch.webp --tab Batch --batch FOLDER
python tests/browser/screenshot.py runs/seg PICTURE docs/images/demo_correct.webp --brush 0.4,0.5 --brush 0.5,0.4
"""

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

READY = {"Classify": "#probabilities", "Similar": "#found .cases", "Explore": ".ex-tile"}
"""What a tab shows when it is complete."""


def take(address: str, options: argparse.Namespace) -> None:
    """Open the page, upload the picture, wait for its outline and the tab, and save what is seen."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        size = {"width": options.width, "height": 900}
        page = browser.new_context(
            viewport=size, color_scheme=options.scheme, device_scale_factor=options.scale
        ).new_page()
        page.goto(address)
        page.wait_for_selector(".dm-app[data-ready]")
        if options.tab:
            page.get_by_role("tab", name=options.tab, exact=True).first.click()
        for picture in filter(None, (options.before, options.image)):
            page.set_input_files("#picture input[type=file]", str(picture))
            page.wait_for_selector(".dm-app[data-state=shown]")
            page.wait_for_selector(READY.get(options.tab, ".dm-app[data-state=shown]"))
        if options.mode:
            page.locator("#explore-mode").select_option(options.mode)
            page.wait_for_selector("#explore .ex-map")
        if options.batch:
            pictures = sorted(options.batch.iterdir())
            page.set_input_files("#batch-files", [str(path) for path in pictures])
            done = f"{len(pictures)} of {len(pictures)} done."
            page.wait_for_function("done => document.querySelector('#batch-status').innerText === done", arg=done)
        if options.brush:
            draw_stroke(page, [tuple(map(float, place.split(","))) for place in options.brush])
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_timeout(1500)  # for the last frame
        options.output.parent.mkdir(parents=True, exist_ok=True)
        taken = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    taken.save(options.output, quality=82, method=6)


def draw_stroke(page: Any, places: list[tuple[float, float]]) -> None:
    """Draw a stroke of the brush through places of the viewer, as shares of its width and height."""
    page.locator("[data-tool=brush]").click()
    page.locator("#brush-size").fill("44")
    page.locator(".dm-stage").scroll_into_view_if_needed()
    box = page.locator(".dm-stage").bounding_box()
    for number, (x, y) in enumerate(places):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=8)
        if not number:
            page.mouse.down()
    page.mouse.up()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", help="folder that `dinomed train segment` wrote")
    parser.add_argument("image", type=Path, help="the picture to outline; a synthetic one, if others will see it")
    parser.add_argument("output", type=Path, help="WebP to write")
    parser.add_argument("--examples", help="folder of pictures to offer")
    parser.add_argument("--classify", help="folder of a classifier, for `demo all`")
    parser.add_argument("--index", help="folder of an index, for `demo all`")
    parser.add_argument("--tab", help="tab to open: Classify, Similar, Batch or Explore")
    parser.add_argument("--before", help="a picture that is opened first, for Explore")
    parser.add_argument("--mode", choices=["pca", "attention"], help="what Explore shows")
    parser.add_argument("--batch", type=Path, help="folder of pictures that the tab Batch shows")
    parser.add_argument("--brush", action="append", help="X,Y: a place of a stroke of the brush, 0 to 1 of the viewer")
    parser.add_argument("--scheme", choices=["light", "dark"], default="light")
    parser.add_argument("--width", type=int, default=1280, help="of the window, px")
    parser.add_argument("--scale", type=float, default=1.0, help="pixels of the screen for each px of the page")
    options = parser.parse_args()
    whole = bool(options.classify or options.index or options.batch)
    command = [sys.executable, "-m", "dinomed", "demo", "all" if whole else "segment", "--no-browser"]
    command += ["--segment" if whole else "--adapter", options.adapter]
    command += ["--classify", options.classify] if options.classify else []
    command += ["--index", options.index] if options.index else []
    command += ["--examples", options.examples] if options.examples else []
    saved = tempfile.TemporaryDirectory()
    command += ["--save", str(Path(saved.name) / "corrections")] if options.brush else []
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        address = server.stdout.readline().strip()
        if not address:
            sys.exit("the demo did not start")  # it has said why
        take(address, options)
    finally:
        server.terminate()
        server.wait()
        saved.cleanup()
