"""Window and level of DICOM and 16-bit images in a real browser: what is painted, shown and computed."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.long]
SIDE = 200
HU = np.zeros((SIDE, SIDE), np.int16)  # dark gray in the first window: the stand-in model marks it
HU[:, : SIDE // 2] = -50
HU[60:100, 120:180] = 300
CHOSEN = "state => document.querySelector('#window-state').textContent === state"
FIRST, LUNG = "Centre 40, width 400 HU", "Centre -600, width 1500 HU"


def write_ct(path: Path) -> Path:
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.Rows = data.Columns = SIDE
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.WindowCenter, data.WindowWidth = [40, -600], [400, 1500]
    data.WindowCenterWidthExplanation = ["SOFT TISSUE", "<b>LUNG"]
    data.PixelData = (HU + 1024).astype(np.uint16).tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


def gray_at(visit: Any, row: int, column: int) -> int:
    """The level that is painted at a pixel of the picture, without overlays."""
    visit.wait_until_drawn()
    picture = np.asarray(Image.open(io.BytesIO(visit.page.locator("#canvas").screenshot())).convert("RGB"))
    height, width = picture.shape[:2]
    scale = min(height, width) / SIDE
    top, left = (height - SIDE * scale) / 2, (width - SIDE * scale) / 2
    pixel = picture[int(top + (row + 0.5) * scale), int(left + (column + 0.5) * scale)]
    assert np.ptp(pixel.astype(int)) <= 2  # gray
    return int(pixel[0])


def level(value: float, center: float, width: float) -> float:
    """DICOM PS3.3, C.11.2.1.2.1."""
    return 255 * min(max((value - (center - 0.5)) / (width - 1) + 0.5, 0), 1)


@pytest.fixture
def ct(visit: Any, tmp_path: Path) -> Any:
    visit.upload(write_ct(tmp_path / "ct.dcm"))
    visit.wait_for_answer()
    visit.page.get_by_label("Image only").check(force=True)
    visit.page.wait_for_function(CHOSEN, arg=FIRST)
    return visit


def test_dragging_presets_numbers_and_keys_change_the_picture_and_no_result(ct: Any) -> None:
    page = ct.page
    assert gray_at(ct, 150, 150) == pytest.approx(level(0, 40, 400), abs=2)
    assert gray_at(ct, 150, 50) == pytest.approx(level(-50, 40, 400), abs=2)
    assert page.locator("#window-preset option").all_inner_texts() == [
        "SOFT TISSUE (40 / 400)",
        "<b>LUNG (-600 / 1500)",
        "Own window",
    ]
    assert "It changes the display only" in ct.text("window-hint")
    ct.wait_for_area(int((HU <= 0).sum()))
    _, mask = ct.download()
    ct.requests.clear()

    page.locator("#window-preset").select_option("1")
    page.wait_for_function(CHOSEN, arg=LUNG)
    assert gray_at(ct, 150, 50) == pytest.approx(level(-50, -600, 1500), abs=2)

    page.locator("#window-center").fill("200")
    page.locator("#window-width").fill("1000")
    page.wait_for_function(CHOSEN, arg="Centre 200, width 1000 HU")
    assert gray_at(ct, 80, 150) == pytest.approx(level(300, 200, 1000), abs=2)
    assert page.locator("#window-preset").input_value() == "own"

    box = page.locator(".dm-stage").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    before = ct.status()
    page.mouse.move(x, y)
    page.mouse.down(button="right")
    page.mouse.move(x, y + 40, steps=3)  # 40 of 200 px: the centre moves by a fifth of the width
    page.mouse.up(button="right")
    page.wait_for_function(CHOSEN, arg="Centre 400, width 1000 HU")
    assert gray_at(ct, 80, 150) == pytest.approx(level(300, 400, 1000), abs=2)
    page.mouse.move(x + 90, y - 90)  # the button is up: nothing follows
    assert ct.text("window-state") == "Centre 400, width 1000 HU"

    page.locator("#window-tool").click()
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 200, y, steps=3)
    page.mouse.up()
    page.wait_for_function(CHOSEN, arg="Centre 400, width 2718.28 HU")  # by the factor e
    page.locator("#window-tool").click()
    assert page.locator("#window-tool").get_attribute("aria-pressed") == "false"

    page.locator(".dm-stage").focus()
    page.keyboard.press("Shift+ArrowDown")
    page.wait_for_function(CHOSEN, arg="Centre 535.914, width 2718.28 HU")
    page.keyboard.press("w")
    assert page.locator("#window-tool").get_attribute("aria-pressed") == "true"
    page.locator("#window-reset").click()
    page.wait_for_function(CHOSEN, arg=FIRST)
    assert gray_at(ct, 150, 150) == pytest.approx(level(0, 40, 400), abs=2)
    assert ct.status() == before  # neither moved nor zoomed
    assert ct.requests == []  # nothing was asked of the server
    _, after = ct.download()
    assert (after == mask).all()


def test_axe_finds_no_violation_beside_the_window(ct: Any, find_violations: Any) -> None:
    ct.page.locator("#window-tool").click()
    assert find_violations(ct.page) == []


def test_the_window_of_a_picture_is_gone_with_it_and_8_bit_colour_has_none(ct: Any, tmp_path: Path) -> None:
    page = ct.page
    page.locator("#window-preset").select_option("1")
    page.locator("#window-tool").click()
    deep = np.full((SIDE, SIDE), 3000, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    ct.upload(tmp_path / "deep.png")
    page.wait_for_function(CHOSEN, arg="Centre 2047.5, width 4095 (values of the file)")
    page.locator("#window-center").fill("12345")
    page.locator("#window-width").fill("65535")
    page.locator("#window-width").blur()
    page.wait_for_function(CHOSEN, arg="Centre 12345, width 65535 (values of the file)")
    assert [page.locator(name).input_value() for name in ("#window-center", "#window-width")] == ["12345", "65535"]
    page.locator("#window-reset").click()
    page.wait_for_function(CHOSEN, arg="Centre 2047.5, width 4095 (values of the file)")
    assert gray_at(ct, 100, 100) == pytest.approx(255 * 3000 / 4095, abs=2)
    Image.new("RGB", (64, 48), (180, 170, 160)).save(tmp_path / "photo.png")
    held: list[Any] = []
    page.route("**/component_server/**", lambda route: held.append(route))
    ct.upload(tmp_path / "photo.png")
    page.wait_for_selector(".dm-app[data-state=busy]")
    assert page.locator("#windowing").is_hidden()  # before anything is known of the next picture
    for _ in range(600):
        if held:
            break
        page.wait_for_timeout(50)
    held[0].continue_()
    ct.wait_for_answer()
    assert page.locator("#windowing").is_hidden()


def test_values_that_arrive_after_another_picture_was_opened_are_dropped(visit: Any, tmp_path: Path) -> None:
    page, held = visit.page, []

    def hold(route: Any) -> None:
        if '"values"' in (route.request.post_data or ""):
            held.append(route)
        else:
            route.continue_()

    page.route("**/component_server/**", hold)
    visit.upload(write_ct(tmp_path / "ct.dcm"))
    visit.wait_for_answer()
    for _ in range(600):
        if held:
            break
        page.wait_for_timeout(50)
    Image.new("RGB", (64, 48), (180, 170, 160)).save(tmp_path / "photo.png")
    visit.upload(tmp_path / "photo.png")
    page.wait_for_selector(".dm-app[data-state=busy]", state="attached")
    visit.wait_for_answer()
    held[0].continue_()
    held[0].request.response().finished()
    page.evaluate("() => new Promise(done => setTimeout(done, 50))")
    assert page.locator("#windowing").is_hidden()
    assert visit.status().startswith("64 × 48 px")
