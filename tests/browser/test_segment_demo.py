"""The segmentation demo as a person uses it, in a real browser."""

import io
import re
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.browser, pytest.mark.slow]
LINE = (0, 229, 255)  # as in static/viewer.js
STATUS_IS = "text => document.querySelector('#status').innerText === text"


def draw_spot() -> np.ndarray:
    """A dark disc (probability 0.8) in a grayer ring (0.6) on pale skin (0.2), uint8 (240, 320, 3)."""
    rows, columns = np.mgrid[:240, :320]
    distance = np.hypot(rows - 120, columns - 160)
    gray = np.where(distance < 40, 51, np.where(distance < 70, 102, 204)).astype(np.uint8)
    return np.repeat(gray[..., None], 3, -1)


@pytest.fixture
def spot(tmp_path: Path) -> Path:
    path = tmp_path / "spot on skin.png"
    Image.fromarray(draw_spot()).save(path)
    return path


WIDE, NARROW = int((draw_spot()[..., 0] <= 102).sum()), int((draw_spot()[..., 0] <= 51).sum())


def painted(visit) -> np.ndarray:
    """What the browser shows in the viewer: uint8 (H, W, 3)."""
    visit.wait_until_drawn()
    return np.asarray(Image.open(io.BytesIO(visit.page.locator("#canvas").screenshot())).convert("RGB"))


def is_line(picture: np.ndarray) -> np.ndarray:
    return (np.abs(picture.astype(int) - LINE) < 60).all(-1)


def model_calls(demo) -> int:
    return (demo.temporary.parent / "stderr.txt").read_text().count("model called")


def test_from_upload_to_mask(visit, demo, spot: Path) -> None:
    assert "For research use only, not for diagnosis." in visit.text("research")
    assert visit.page.locator("#download").is_disabled()
    visit.upload(spot)
    visit.wait_for_area(WIDE)  # threshold 0.5
    assert visit.text("area-percent") == f"{100 * WIDE / (240 * 320):.2f}"
    assert "confidence" not in visit.page.inner_text("body").lower()  # that of a mask rises with the threshold

    calls = model_calls(demo)
    visit.set_threshold(0.7)
    visit.wait_for_area(NARROW)
    assert model_calls(demo) == calls  # moved without another pass of the model
    name, mask = visit.download()
    assert name == "mask_1.png"
    assert mask.shape == (240, 320)
    assert ((mask == 255) == (draw_spot()[..., 0] <= 51)).all()

    outside = [url for url in visit.requests if not re.match(r"(http://127\.0\.0\.1:|data:|blob:)", url)]
    assert outside == []


def test_the_outline_lies_at_the_border_of_the_mask(visit, spot: Path) -> None:
    visit.upload(spot)
    for threshold, area, radius in ((0.5, WIDE, 70), (0.7, NARROW, 40)):
        visit.set_threshold(threshold)
        visit.wait_for_area(area)
        line = is_line(painted(visit))
        height, width = line.shape  # the picture fills the viewer in one direction and is centred in the other
        scale = min(height / 240, width / 320)
        for positions, centre in zip(np.nonzero(line), (height / 2, width / 2), strict=True):
            assert positions.min() == pytest.approx(centre - radius * scale, abs=4)  # a line of 2 px, antialiased
            assert positions.max() == pytest.approx(centre + radius * scale, abs=4)
        assert not line[height // 2, width // 2]


def test_views_wipe_and_compare_change_what_is_painted(visit, spot: Path) -> None:
    visit.upload(spot)
    visit.wait_for_area(WIDE)
    outlined = painted(visit)
    visit.page.locator("#compare").hover()
    visit.page.mouse.down()
    plain = painted(visit)
    assert not is_line(plain).any()
    visit.page.mouse.up()
    assert (painted(visit) == outlined).all()
    visit.page.locator("#wipe").fill("50")
    columns = np.nonzero(is_line(painted(visit)))[1]
    assert columns.max() < outlined.shape[1] / 2 + 3
    visit.page.locator("#wipe").fill("100")
    visit.page.get_by_label("Heat map").check(force=True)
    visit.page.wait_for_selector(".dm-scale:visible")
    heat = painted(visit)
    assert not is_line(heat).any()
    assert (heat != plain).any()
    visit.page.locator("#opacity").fill("0")
    assert (
        np.abs(painted(visit).astype(int) - plain)[:, : plain.shape[1] - 110].max() <= 1
    )  # but for the colour bar and its name


def test_an_empty_viewer_opens_a_file_by_a_click_and_does_not_zoom(visit, spot: Path) -> None:
    zooms = [visit.page.locator(f"#{name}") for name in ("zoom-out", "fit", "zoom-in")]
    assert all(zoom.is_disabled() for zoom in zooms)
    with visit.page.expect_file_chooser() as chooser:
        visit.page.locator(".dm-empty").click()
    chooser.value.set_files(spot)
    visit.wait_for_area(WIDE)
    assert all(zoom.is_enabled() for zoom in zooms)


def test_a_download_can_be_tried_again_after_the_server_was_lost(visit, spot: Path) -> None:
    visit.upload(spot)
    visit.wait_for_area(WIDE)
    visit.page.route("**/component_server**", lambda route: route.abort())
    visit.page.locator("#download").click()
    visit.page.wait_for_selector("#panel-segment .message.error")
    visit.page.unroute("**/component_server**")
    assert visit.download()[1].shape == (240, 320)


def test_zoom_and_pan_by_wheel_and_keyboard(visit, spot: Path) -> None:
    visit.upload(spot)
    visit.wait_for_area(WIDE)
    before = visit.status()
    fitted = is_line(painted(visit)).nonzero()[1]
    visit.page.locator(".dm-stage").focus()
    visit.page.keyboard.press("+")
    zoomed = is_line(painted(visit)).nonzero()[1]
    assert np.ptp(zoomed) == pytest.approx(1.25 * np.ptp(fitted), rel=0.03)
    visit.page.keyboard.press("+")
    visit.page.keyboard.press("ArrowRight")
    visit.page.keyboard.press("0")
    visit.page.wait_for_function(STATUS_IS, arg=before)
    visit.page.locator(".dm-stage").hover()
    visit.page.mouse.wheel(0, -300)  # returns before the page has seen it
    visit.page.wait_for_function(STATUS_IS.replace("===", "!=="), arg=before)
    visit.page.locator("#fit").click()
    visit.page.wait_for_function(STATUS_IS, arg=before)


def test_nothing_of_the_previous_picture_is_left_while_the_next_one_is_computed(
    visit, tmp_path: Path, spot: Path
) -> None:
    slow = draw_spot()
    slow[100:140, 20:60] = 30  # another area than that of the spot
    slow[0, :2] = (255, 0, 0)  # eight seconds: a busy machine takes some for the next upload
    Image.fromarray(slow).save(tmp_path / "slow.png")
    slow_area = int(((255 - slow.astype(int).mean(-1)) / 255 >= 0.5).sum())
    visit.upload(spot)
    visit.wait_for_area(WIDE)
    visit.page.evaluate("""() => {
        window.seen = [];
        const look = () => window.seen.push([document.querySelector('#area-px').textContent,
            document.querySelector('#download').disabled, document.querySelector('#measures').hidden]);
        new MutationObserver(look).observe(document.querySelector('.dm-app'),
            {subtree: true, childList: true, attributes: true, characterData: true});
    }""")
    visit.upload(tmp_path / "slow.png")
    assert visit.page.locator("#download").is_disabled()
    assert visit.page.locator("#measures").is_hidden()
    assert not is_line(painted(visit)).any()
    visit.page.wait_for_timeout(700)  # the slow picture is computed now
    visit.upload(spot)  # a third picture, before the answer to the second
    assert visit.page.locator("#download").is_disabled()
    visit.wait_for_area(WIDE)
    visit.page.wait_for_timeout(500)
    areas = {area for area, _, hidden in visit.page.evaluate("window.seen") if area and not hidden}
    assert f"{slow_area:,}" not in areas
    assert areas == {f"{WIDE:,}"}


def test_an_answer_for_another_picture_is_dropped(visit, spot: Path) -> None:
    """The server is made to give the answer of another picture."""
    visit.page.route("**/component_server/**", answer_for_another)
    with visit.page.expect_response(lambda response: "component_server" in response.url):
        visit.upload(spot)
    visit.page.wait_for_timeout(500)  # for what the page would do with it
    assert visit.page.locator(".dm-app").get_attribute("data-state") == "busy"
    assert visit.page.locator("#download").is_disabled()


def answer_for_another(route: Any) -> None:
    response = route.fetch()
    route.fulfill(response=response, json={**response.json(), "id": "of another picture"})


def test_regions_are_listed_and_small_ones_left_out(visit, tmp_path: Path) -> None:
    pixels = np.full((200, 400, 3), 204, np.uint8)
    for top, left, side in ((40, 40, 60), (40, 200, 20), (150, 300, 3)):
        pixels[top : top + side, left : left + side] = 51
    Image.fromarray(pixels).save(tmp_path / "three.png")
    visit.upload(tmp_path / "three.png")
    visit.wait_for_area(3600 + 400)
    first = visit.page.locator("#lesions li").all_inner_texts()[0]
    assert first.split() == ["Region", "1", "3,600", "px²", "·", "4.50%"]
    visit.keep_everything()
    visit.wait_for_area(3600 + 400 + 9)
    assert visit.page.locator("#lesions li").count() == 3
    visit.page.locator("#largest").check()
    visit.wait_for_area(3600)
    _, mask = visit.download()
    assert (mask == 255).sum() == 3600
    before = visit.status()
    visit.page.locator("#lesions button").first.click()
    visit.page.wait_for_function(STATUS_IS.replace("===", "!=="), arg=before)  # zoomed to the region


def test_the_black_frame_of_an_instrument_is_no_lesion(visit, tmp_path: Path) -> None:
    pixels = draw_spot()
    rows, columns = np.mgrid[:240, :320]
    pixels[np.hypot(rows - 120, columns - 160) > 150] = 0
    Image.fromarray(pixels).save(tmp_path / "framed.png")
    visit.upload(tmp_path / "framed.png")
    visit.wait_for_area(WIDE)
    assert visit.text("lesion-count") == "1"


def test_a_higher_threshold_never_outlines_more(visit, tmp_path: Path) -> None:
    ramp = np.repeat(np.linspace(40, 255, 200).astype(np.uint8)[None, :], 120, axis=0)
    path = tmp_path / "ramp.png"
    Image.fromarray(np.repeat(ramp[..., None], 3, -1)).save(path)
    probability = (1 - np.asarray(Image.open(path)).mean(axis=-1) / 255).astype(np.float32)
    visit.upload(path)
    visit.wait_for_answer()
    before = np.ones_like(probability, bool)
    for threshold in (0.1, 0.35, 0.6, 0.8):
        visit.set_threshold(threshold)
        expected = probability >= threshold
        visit.wait_for_area(int(expected.sum()))
        _, mask = visit.download()
        assert ((mask == 255) == expected).all()
        assert not ((mask == 255) & ~before).any()
        assert expected.sum() < before.sum()
        before = expected


def test_the_mask_of_a_large_picture_is_exact(visit, tmp_path: Path) -> None:
    pixels = np.full((1500, 2200, 3), 204, np.uint8)
    pixels[301:902, 503:1404] = 51  # at no multiple of the step of the map
    Image.fromarray(pixels).save(tmp_path / "large.png")
    visit.upload(tmp_path / "large.png")
    visit.wait_for_area(601 * 901)
    _, mask = visit.download()
    assert mask.shape == (1500, 2200)
    assert ((mask == 255) == (pixels[..., 0] == 51)).all()


def test_a_threshold_that_is_no_number_leaves_the_last_one(visit, demo, spot: Path) -> None:
    visit.upload(spot)
    visit.wait_for_area(WIDE)
    for nothing in ("", "7", "-1"):
        visit.page.locator("#threshold-number").fill(nothing)
        visit.wait_for_area(WIDE)
    visit.page.locator("#threshold").focus()
    assert visit.page.locator("#threshold-number").input_value() == "0.5"
    assert "Traceback" not in (demo.temporary.parent / "stderr.txt").read_text()


def test_an_upload_over_the_limit_shows_an_error_and_the_next_one_works(visit, spot: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    large.write_bytes(spot.read_bytes() + bytes(65 * 2**20))
    visit.page.set_input_files("#picture input[type=file]", str(large))
    visit.page.wait_for_selector(".message.error")
    assert "size" in visit.message("error").lower()
    visit.upload(spot)
    visit.wait_for_area(WIDE)


def test_a_picture_without_a_lesion_shows_a_message(visit, spot: Path) -> None:
    visit.set_threshold(0.95)
    visit.upload(spot)
    visit.page.wait_for_selector(".no-lesion")
    assert "0.80" in visit.message("no-lesion")  # the highest probability in the picture
    assert visit.page.locator("#download").is_disabled()


def test_unreadable_uploads_show_one_line_and_the_next_one_works(visit, spot: Path, tmp_path: Path) -> None:
    garbage, empty, cut = tmp_path / "garbage.jpg", tmp_path / "empty.png", tmp_path / "cut.png"
    garbage.write_bytes(b"<html>not a picture</html>" * 50)
    empty.write_bytes(b"")
    cut.write_bytes(spot.read_bytes()[:400])
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)  # 400 megapixels in 50 kB
    for path in (garbage, empty, cut, bomb):
        visit.upload(path)
        visit.page.wait_for_selector(".message.error")
        message = visit.message("error")
        assert message.startswith("This file cannot be read as a picture")
        assert str(tmp_path) not in message
        assert "/tmp" not in message
        whole = "[...document.querySelectorAll('img[src]')].every(image => image.complete && image.naturalWidth > 0)"
        assert visit.page.evaluate(whole)
    visit.upload(spot)
    visit.wait_for_area(WIDE)


def test_an_example_is_one_click(visit) -> None:
    visit.page.locator("#examples button").first.click()
    visit.page.wait_for_selector(".no-lesion")  # the stand-in example is pale all over


def test_the_page_works_under_its_content_security_policy(browser, demo, spot: Path) -> None:
    page = browser.new_page()
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    response = page.goto(demo.address)
    assert "connect-src 'self'" in response.headers["content-security-policy"]
    page.wait_for_selector(".dm-app[data-ready]")
    page.set_input_files("#picture input[type=file]", str(spot))
    page.wait_for_selector("#measures:visible")
    page.close()
    assert [line for line in errors if "fonts.g" not in line] == []


def test_sigterm_ends_cleanly_and_leaves_nothing(serve, stand_in: list[str], tmp_path: Path) -> None:
    with serve(stand_in, tmp_path / "tmp") as demo:
        assert urllib.request.urlopen(demo.address, timeout=10).status == 200
    assert demo.process.returncode == 143
    assert list(demo.temporary.glob("dinomed-demo-*")) == []
    assert "Traceback" not in (tmp_path / "stderr.txt").read_text()
