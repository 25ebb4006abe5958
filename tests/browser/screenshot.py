"""Takes the picture of the demo for the README.

python tests/browser/screenshot.py runs/seg PICTURE docs/images/demo_segment.png
"""

import argparse
import io
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image


def take(address: str, options: argparse.Namespace) -> None:
    """Open the page, upload the picture, wait for its outline, and save what is seen."""
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
        page.set_input_files("#picture input[type=file]", str(options.image))
        page.wait_for_selector(".dm-app[data-state=shown]")
        page.wait_for_timeout(500)  # for the last frame
        options.output.parent.mkdir(parents=True, exist_ok=True)
        taken = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    # 256 colours: a third of the bytes, and no difference that is seen.
    taken.quantize(256, method=Image.Quantize.MEDIANCUT).save(options.output, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", help="folder that `dinomed train segment` wrote")
    parser.add_argument("image", type=Path, help="the picture to outline; a synthetic one, if others will see it")
    parser.add_argument("output", type=Path, help="PNG to write")
    parser.add_argument("--examples", help="folder of pictures to offer")
    parser.add_argument("--scheme", choices=["light", "dark"], default="light")
    parser.add_argument("--width", type=int, default=1280, help="of the window, px")
    parser.add_argument("--scale", type=float, default=1.0, help="pixels of the screen for each px of the page")
    options = parser.parse_args()
    command = [
        sys.executable,
        "-m",
        "dinomed.apps.cli",
        "demo",
        "segment",
        "--adapter",
        options.adapter,
        "--no-browser",
    ]
    command += ["--examples", options.examples] if options.examples else []
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
