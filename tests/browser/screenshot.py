"""Takes the picture of the demo for the README.

python tests/browser/screenshot.py --adapter runs/seg --image FILE -o docs/images/demo_segment.png
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path


def take(address: str, image: Path, output: Path, scheme: str) -> None:
    """Open the page, upload the picture, wait for its outline, and save what is seen."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        size = {"width": 1280, "height": 910}
        page = browser.new_context(viewport=size, color_scheme=scheme, device_scale_factor=1.5).new_page()
        page.goto(address)
        page.wait_for_selector("#threshold")
        page.set_input_files("#picture input[type=file]", str(image))
        page.wait_for_selector("#result img")
        page.wait_for_timeout(1000)  # for the fading in
        output.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(output))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--image", required=True, type=Path)
    parser.add_argument("--examples", help="folder of pictures to offer")
    parser.add_argument("--scheme", choices=["light", "dark"], default="light")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images/demo_segment.png"))
    asked = parser.parse_args()
    command = [sys.executable, "-m", "dinomed.apps.cli", "demo", "segment", "--adapter", asked.adapter, "--no-browser"]
    command += ["--examples", asked.examples] if asked.examples else []
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        take(server.stdout.readline().strip(), asked.image, asked.output, asked.scheme)
    finally:
        server.terminate()
        server.wait()
