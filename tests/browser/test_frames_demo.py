"""Files of several frames in a real browser: every result is that of the frame that is chosen."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage, generate_uid

from dinomed.apps.demos.corrections import MANIFEST_FILE
from dinomed.datasets.manifest import read_manifest
from dinomed.images.read import read_image, read_mask

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.long]
FRAMES = np.full((4, 120, 160), 204, np.uint8)  # pale skin (probability 0.2)
for number in range(4):
    FRAMES[number, 30 : 50 + 10 * number, 40:100] = 51  # a dark lesion (0.8), which grows
AREAS = [60 * (20 + 10 * number) for number in range(4)]
STATE = "text => document.querySelector('#frame-state').textContent === text"


@pytest.fixture(scope="module")
def demo_options(saved: Path) -> list[str]:
    return ["--save", str(saved)]


@pytest.fixture
def cine(tmp_path: Path) -> Path:
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = UltrasoundMultiFrameImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.NumberOfFrames, data.Rows, data.Columns = FRAMES.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.FrameTime = 40
    data.PixelData = FRAMES.tobytes()
    data.save_as(tmp_path / "cine.dcm", enforce_file_format=True)
    return tmp_path / "cine.dcm"


def test_the_slider_chooses_the_frame_of_every_result(visit: Any, cine: Path, tmp_path: Path) -> None:
    page = visit.page
    assert page.locator("#frames").is_hidden()
    visit.upload(cine)
    visit.wait_for_area(AREAS[0])
    page.wait_for_function(STATE, arg="Frame 1 of 4, at 0.00 s")
    assert page.locator("#frame-before").is_disabled()
    page.locator("#zoom-in").click()
    page.locator("#frame").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#measures").is_hidden()  # at once, without the result of the frame before
    assert page.locator("#download").is_disabled()
    visit.wait_for_area(AREAS[2])
    page.wait_for_function(STATE, arg="Frame 3 of 4, at 0.08 s")
    assert page.locator("#frame").get_attribute("aria-valuetext") == "Frame 3 of 4, at 0.08 s"
    assert "Frame 3 of 4" in (page.locator("#canvas").get_attribute("aria-label") or "")
    name, mask = visit.download()
    assert name == "mask_1_frame_3.png"
    assert ((mask == 255) == (FRAMES[2] == 51)).all()
    page.locator("#frame-after").click()
    visit.wait_for_area(AREAS[3])
    assert page.locator("#frame-after").is_disabled()
    page.locator(".dm-stage").focus()
    page.keyboard.press(",")
    visit.wait_for_area(AREAS[2])
    page.keyboard.press("0")
    fitted = visit.status()
    page.keyboard.press("+")
    page.wait_for_function("text => document.querySelector('#status').innerText !== text", arg=fitted)
    zoomed = visit.status()
    page.keyboard.press(".")
    visit.wait_for_area(AREAS[3])
    page.wait_for_function("text => document.querySelector('#status').innerText === text", arg=zoomed)

    Image.fromarray(FRAMES[0]).convert("RGB").save(tmp_path / "photo.png")
    visit.upload(tmp_path / "photo.png")
    visit.wait_for_area(AREAS[0])
    assert page.locator("#frames").is_hidden()
    assert visit.download()[0] == "mask_2.png"


def test_axe_finds_no_violation_beside_frames_and_tools_of_correction(
    visit: Any, cine: Path, find_violations: Any
) -> None:
    visit.upload(cine)
    visit.wait_for_area(AREAS[0])
    visit.page.locator("[data-tool=brush]").click()
    visit.page.locator("#set-scale").click()
    assert find_violations(visit.page) == []


def test_a_chosen_tool_looks_chosen_under_the_pointer_too(visit: Any, cine: Path) -> None:
    visit.upload(cine)
    visit.wait_for_area(AREAS[0])
    brush = visit.page.locator("[data-tool=brush]")
    colours = "node => { const { color, backgroundColor } = getComputedStyle(node); return [color, backgroundColor]; }"
    brush.click()
    visit.page.wait_for_timeout(300)  # for transitions
    under = brush.evaluate(colours)
    visit.page.mouse.move(1, 1)
    visit.page.wait_for_timeout(300)
    assert brush.evaluate(colours) == under


def test_the_viewer_stays_in_sight_while_a_tool_far_down_is_used(visit: Any, tmp_path: Path) -> None:
    visit.page.set_viewport_size({"width": 1280, "height": 844})
    Image.fromarray(FRAMES[0]).save(tmp_path / "photo.png")
    visit.upload(tmp_path / "photo.png")
    visit.wait_for_area(AREAS[0])
    visit.page.evaluate("scrollTo(0, document.body.scrollHeight)")
    brush = visit.page.locator("[data-tool=brush]")
    brush.click()
    visit.wait_until_drawn()
    stage, tool = visit.page.locator(".dm-stage").bounding_box(), brush.bounding_box()
    assert stage["y"] >= 0
    assert stage["y"] + stage["height"] <= 844
    assert 0 <= tool["y"] <= 844 - tool["height"]


def test_an_answer_for_a_frame_that_was_left_is_dropped(visit: Any, cine: Path) -> None:
    page, held = visit.page, []

    def hold(route: Any) -> None:
        if '"frame":1' in (route.request.post_data or "").replace(" ", "") and not held:
            held.append(route)
        else:
            route.continue_()

    visit.upload(cine)
    visit.wait_for_area(AREAS[0])
    page.route("**/component_server/**", hold)
    page.locator("#frame").fill("2")
    for _ in range(600):
        if held:
            break
        page.wait_for_timeout(50)
    page.locator("#frame").fill("4")
    visit.wait_for_area(AREAS[3])
    held[0].continue_()
    held[0].request.response().finished()
    page.evaluate("() => new Promise(done => setTimeout(done, 50))")
    visit.wait_for_area(AREAS[3])
    assert visit.text("frame-state") == "Frame 4 of 4, at 0.12 s"


HOLD_SECOND_IMAGE = """() => {
  const decode = HTMLImageElement.prototype.decode;
  let images = 0;
  HTMLImageElement.prototype.decode = function () {
    return ++images === 2 ? new Promise(done => { window.release = done; }) : decode.call(this);
  };
  document.querySelector(".dm-app").insertAdjacentHTML("beforeend", `<section id="panel-later">
    <p class="dm-unlike"></p><p class="dm-show-anyway"></p><p class="dm-body"></p><p class="dm-result"></p></section>`);
}"""


def test_the_rest_of_an_answer_is_dropped_when_its_frame_is_left_while_the_map_is_decoded(
    visit: Any, cine: Path
) -> None:
    page, seen = visit.page, []

    def add_panel(route: Any) -> None:
        if '"look"' in (route.request.post_data or "") and not seen:
            seen.append(response := route.fetch())
            answer = response.json()
            answer["panels"]["later"] = {"html": "of the first frame"}
            route.fulfill(response=response, json=answer)
        else:
            route.continue_()

    page.evaluate(HOLD_SECOND_IMAGE)
    page.route("**/component_server/**", add_panel)
    visit.upload(cine)
    page.wait_for_function("() => window.release")
    page.locator("#frame").fill("2")
    visit.wait_for_area(AREAS[1])
    page.evaluate("() => { window.release(); return new Promise(done => setTimeout(done, 50)); }")
    assert page.locator("#panel-later .dm-result").inner_text() == ""


def test_corrections_of_a_frame_stay_while_others_are_looked_at_and_are_saved_with_its_number(
    visit: Any, cine: Path, saved: Path
) -> None:
    page = visit.page
    visit.upload(cine)
    visit.wait_for_area(AREAS[0])
    page.locator("#frame").fill("2")
    visit.wait_for_area(AREAS[1])
    page.locator("[data-tool=fill]").click()
    box = page.locator(".dm-stage").bounding_box()
    scale = min(box["width"] / 160, box["height"] / 120)
    left, top = box["x"] + (box["width"] - 160 * scale) / 2, box["y"] + (box["height"] - 120 * scale) / 2
    page.mouse.click(left + 70 * scale, top + 40 * scale)  # clears the region
    page.wait_for_selector("#measures", state="hidden")
    page.locator("#frame").fill("3")
    visit.wait_for_area(AREAS[2])
    page.locator("[data-decision=accepted]").click()
    page.wait_for_function("() => document.querySelector('#saved').textContent.includes('accepted')")
    page.locator("#frame").fill("2")
    page.wait_for_selector("[data-decision=corrected]:enabled")
    assert page.locator("#measures").is_hidden()
    page.locator("#undo").click()
    visit.wait_for_area(AREAS[1])
    page.locator("[data-decision=accepted]").click()
    page.wait_for_function("() => document.querySelector('#saved').textContent.includes(': 2.')")
    manifest = read_manifest(saved / MANIFEST_FILE)
    assert sorted(manifest.column("frame")) == ["1", "2"]
    assert len(set(manifest.column("group"))) == 1
    for row, frame in enumerate(manifest.column("frame")):
        assert (read_image(manifest.path(row), channels=1)[..., 0] == FRAMES[int(frame)]).all()
        assert (read_mask(saved / manifest.column("mask")[row]) == (FRAMES[int(frame)] == 51)).all()


def test_corrections_stay_when_the_server_does_not_answer_for_another_setting(visit: Any, cine: Path) -> None:
    page = visit.page
    visit.upload(cine)
    visit.wait_for_area(AREAS[0])
    page.locator("[data-tool=brush]").click()
    page.locator(".dm-stage").click()
    page.wait_for_selector("[data-decision=corrected]:enabled")
    visit.wait_until_drawn()
    corrected = visit.text("area-px")
    page.route("**/component_server/**", lambda route: route.abort())
    page.evaluate("document.querySelector('#which').dispatchEvent(new Event('change'))")  # hidden: it has one class
    page.wait_for_selector("#panel-segment .message.error:visible")
    assert "The results are those of the earlier setting" in visit.message("error")
    assert page.locator(".dm-app").get_attribute("data-state") == "shown"
    assert page.locator("[data-decision=corrected]").is_enabled()
    assert visit.text("area-px") == corrected
    page.unroute("**/component_server/**")
    page.locator("[data-decision=corrected]").click()
    page.wait_for_function("() => document.querySelector('#saved').textContent.includes('corrected')")
