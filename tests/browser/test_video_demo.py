"""Videos in a real browser: the slider chooses the frame of every result; damaged files have one clear line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinomed.apps.demos.corrections import MANIFEST_FILE
from dinomed.datasets.manifest import read_manifest
from dinomed.images.read import read_mask
from dinomed.video.write import writing_video

pytestmark = [pytest.mark.browser, pytest.mark.slow]
FRAMES = np.full((40, 120, 160), 204, np.uint8)  # pale mucosa (probability 0.2)
for number in range(40):
    FRAMES[number, 30 : 50 + number, 40:100] = 51  # a dark polyp (0.8), which grows
AREAS = [60 * (20 + number) for number in range(40)]
STATE = "text => document.querySelector('#frame-state').textContent === text"


@pytest.fixture(scope="module")
def demo_options(saved: Path) -> list[str]:
    return ["--save", str(saved)]


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """A video of exact gray values, under the name of a patient."""
    with writing_video(tmp_path / "DOE_1957.avi", FRAMES.shape[1:], 25, lossless=True) as append:
        for frame in FRAMES:
            append(frame)
    return tmp_path / "DOE_1957.avi"


def test_the_slider_chooses_the_frame_of_a_video(visit: Any, demo: Any, video: Path, saved: Path) -> None:
    page = visit.page
    visit.upload(video)
    visit.wait_for_area(AREAS[0])
    page.wait_for_function(STATE, arg="Frame 1 of 40, at 0.00 s")
    assert page.locator("#windowing").is_hidden()
    page.locator("#frame").fill("31")
    visit.wait_for_area(AREAS[30])
    page.wait_for_function(STATE, arg="Frame 31 of 40, at 1.20 s")
    page.locator("#frame-before").click()  # backwards
    visit.wait_for_area(AREAS[29])
    name, mask = visit.download()
    assert name == "mask_1_frame_30.png"
    assert ((mask == 255) == (FRAMES[29] == 51)).all()
    page.locator("[data-decision=accepted]").click()
    page.wait_for_function("() => document.querySelector('#saved').textContent.includes('accepted')")
    manifest = read_manifest(saved / MANIFEST_FILE)
    assert manifest.column("frame") == ["29"]
    assert (read_mask(saved / manifest.column("mask")[0]) == (FRAMES[29] == 51)).all()
    assert page.locator("#video-problem").is_hidden()
    assert not list(demo.temporary.rglob("DOE*"))


def test_a_video_that_is_cut_off_says_so_and_shows_its_frames(visit: Any, video: Path) -> None:
    page, data = visit.page, video.read_bytes()
    video.write_bytes(data[: len(data) * 6 // 10])
    visit.upload(video)
    visit.wait_for_area(AREAS[0])
    page.wait_for_selector("#video-problem:visible")
    assert visit.text("video-problem").startswith(
        "Check this video file: cut off or damaged: its header announces 40 frames (1.6 s)"
    )
    page.locator("#frame-after").click()
    visit.wait_for_area(AREAS[1])

    video.write_bytes(data[:600])
    visit.upload(video)
    page.wait_for_selector(".message.error:visible")
    assert visit.message("error").startswith("This file cannot be read as a video: ")
    assert page.locator("#frames").is_hidden()
    assert page.locator("#video-problem").is_hidden()
