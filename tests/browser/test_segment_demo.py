"""The segmentation demo as a person uses it, in a real browser."""

import io
import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinomed.apps.pages.overlay import LINE

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def spot(tmp_path: Path) -> Path:
    """A dark disc (probability 0.8) in a grayer ring (0.6) on pale skin (0.2), 320 x 240 px."""
    rows, columns = np.mgrid[:240, :320]
    distance = np.hypot(rows - 120, columns - 160)
    gray = np.where(distance < 40, 51, np.where(distance < 70, 102, 204)).astype(np.uint8)
    path = tmp_path / "spot on skin.png"
    Image.fromarray(np.repeat(gray[..., None], 3, -1)).save(path)
    return path


def shown(visit) -> np.ndarray:
    """The pixels of the result picture, as the server sent them: uint8 (H, W, 3)."""
    url = visit.page.locator("#result img").get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(visit.page.request.get(url).body())).convert("RGB"))


def area(visit) -> int:
    return int(visit.text("area-px").replace(",", ""))


def wait_for_area(visit, expected: int) -> None:
    visit.page.wait_for_function(
        "n => document.querySelector('#area-px')?.innerText.replaceAll(',', '') === String(n)", arg=expected
    )


def test_from_upload_to_mask(visit, demo, spot: Path, tmp_path: Path) -> None:
    assert "For research use only, not for diagnosis." in visit.text("research")
    visit.upload(spot)
    visit.page.wait_for_selector("#result img")

    pixels = np.asarray(Image.open(spot))[..., 0]
    wide, narrow = int((pixels <= 102).sum()), int((pixels <= 51).sum())
    wait_for_area(visit, wide)  # threshold 0.5
    assert visit.text("area-percent") == f"{100 * wide / pixels.size:.1f}"
    assert 60 < int(visit.text("confidence")) < 80

    # The line runs where the mask ends, and only there. JPEG: a tolerance of 60 in colour.
    def is_line(picture: np.ndarray) -> np.ndarray:
        return (np.abs(picture.astype(int) - LINE) < 60).all(-1)

    picture = shown(visit)
    assert picture.shape == (240, 320, 3)
    assert is_line(picture)[120, 160 + 68]
    assert not is_line(picture)[120, 160 + 38]
    assert not is_line(picture)[20, 20]

    calls = model_calls(demo)
    visit.set_threshold(0.7)
    wait_for_area(visit, narrow)
    visit.page.wait_for_timeout(300)
    picture = shown(visit)
    assert is_line(picture)[120, 160 + 38]
    assert not is_line(picture)[120, 160 + 68]
    assert model_calls(demo) == calls  # moved without another pass of the model

    with visit.page.expect_download() as download:
        visit.page.locator("#download").click()
    assert download.value.suggested_filename == "mask_1.png"
    mask = np.asarray(Image.open(download.value.path()))
    assert mask.shape == (240, 320)
    assert set(np.unique(mask)) == {0, 255}
    assert (mask == 255).sum() == narrow

    outside = [url for url in visit.requests if not re.match(r"(http://127\.0\.0\.1:|data:|blob:)", url)]
    assert outside == []


def test_the_line_is_seen_on_the_page(visit, spot: Path) -> None:
    """Not only in the file that was sent: in what the browser paints."""
    assert visit.page.locator("#research").is_visible()
    visit.upload(spot)
    wait_for_area(visit, int((np.asarray(Image.open(spot))[..., 0] <= 102).sum()))
    visit.page.wait_for_timeout(1000)  # for the fading in
    painted = np.asarray(Image.open(io.BytesIO(visit.page.locator("#result img").screenshot())).convert("RGB"))
    cyan = (np.abs(painted.astype(int) - LINE) < 60).all(-1)
    rows, columns = np.nonzero(cyan)
    height, width = cyan.shape  # the picture fills the frame in one direction and is centred in the other
    scale = min(height / 240, width / 320)
    for bounds, centre in ((rows, height / 2), (columns, width / 2)):
        assert bounds.min() == pytest.approx(centre - 70 * scale, abs=4)
        assert bounds.max() == pytest.approx(centre + 70 * scale, abs=4)
    assert not cyan[height // 2, width // 2]


def test_a_higher_threshold_never_outlines_more(visit, tmp_path: Path) -> None:
    ramp = np.repeat(np.linspace(0, 255, 200).astype(np.uint8)[None, :], 120, axis=0)
    path = tmp_path / "ramp.png"
    Image.fromarray(np.repeat(ramp[..., None], 3, -1)).save(path)
    probability = (1 - np.asarray(Image.open(path)).mean(axis=-1) / 255).astype(np.float32)
    visit.upload(path)
    visit.page.wait_for_selector("#area-px")
    before = np.ones_like(probability, bool)
    for threshold in (0.1, 0.35, 0.6, 0.9):
        visit.set_threshold(threshold)
        expected = probability >= threshold
        wait_for_area(visit, int(expected.sum()))
        visit.page.wait_for_timeout(300)  # for the button, which is told after the numbers
        with visit.page.expect_download() as download:
            visit.page.locator("#download").click()
        mask = np.asarray(Image.open(download.value.path())) == 255
        assert (mask == expected).all()
        assert not (mask & ~before).any()
        assert mask.sum() < before.sum()
        assert float(visit.text("confidence")) == pytest.approx(100 * probability[expected].mean(), abs=0.51)
        before = mask


def test_an_upload_over_the_limit_shows_an_error_and_the_next_one_works(visit, spot: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    large.write_bytes(spot.read_bytes() + bytes(65 * 2**20))
    visit.page.set_input_files("#picture input[type=file]", str(large))
    toast = visit.page.locator(".toast-body, .toast-wrap").first
    toast.wait_for()
    assert "size" in toast.inner_text().lower()
    visit.upload(spot)
    visit.page.wait_for_selector("#area-px")


def model_calls(demo) -> int:
    return (demo.temporary.parent / "stderr.txt").read_text().count("model called")


def test_a_picture_without_a_lesion_shows_a_message(visit, spot: Path) -> None:
    visit.set_threshold(0.95)
    visit.upload(spot)
    visit.page.wait_for_selector(".no-lesion")
    assert "0.80" in visit.message("no-lesion")  # the highest probability in the picture


def test_unreadable_uploads_show_an_error_and_the_next_one_works(visit, spot: Path, tmp_path: Path) -> None:
    garbage, empty, cut = tmp_path / "garbage.jpg", tmp_path / "empty.png", tmp_path / "cut.png"
    garbage.write_bytes(b"<html>not a picture</html>" * 50)
    empty.write_bytes(b"")
    cut.write_bytes(spot.read_bytes()[:400])
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)  # 400 megapixels in 50 kB
    for path in (garbage, empty, cut, bomb):
        visit.upload(path)
        visit.page.wait_for_selector(".error")
        message = visit.message("error")
        assert message.startswith("This file cannot be read as a picture")
        assert str(tmp_path) not in message
        assert "/tmp" not in message
    visit.upload(spot)
    visit.page.wait_for_selector("#area-px")


def test_an_example_is_one_click(visit) -> None:
    visit.page.locator("#examples button, .gallery-item").first.click()
    visit.page.wait_for_selector(".no-lesion")  # the stand-in example is pale all over


@pytest.mark.parametrize("path", ["/etc/passwd", "http://127.0.0.1:9/picture.png", "../../../../etc/passwd"])
def test_only_uploads_are_read(demo, visit, path: str) -> None:
    """Asked for by hand, without the page: a file of the server, or an address to fetch from."""
    config = json.load(urllib.request.urlopen(f"{demo.address}/config"))
    index = next(d["id"] for d in config["dependencies"] if d["targets"][0][1] == "change")
    payload = {"path": path, "meta": {"_type": "gradio.FileData"}}
    body = {"data": [payload, 0.5, "Filled", None, 0, "lesion", "lesion"], "fn_index": index, "session_hash": "byhand"}
    status, answer = ask(f"{demo.address}/gradio_api/queue/join", body)
    if status == 200:  # accepted into the queue; what became of it?
        status, answer = ask(f"{demo.address}/gradio_api/queue/data?session_hash=byhand")
        assert '"success":false' in answer.replace(" ", "")
    else:
        assert status in (403, 404, 422)
    assert "root:" not in answer


def ask(url: str, body: dict | None = None) -> tuple[int, str]:
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_sigterm_ends_cleanly_and_leaves_nothing(serve, stand_in: list[str], tmp_path: Path) -> None:
    with serve(stand_in, tmp_path / "tmp") as demo:
        assert urllib.request.urlopen(demo.address, timeout=10).status == 200
    assert demo.process.returncode == 143
    assert list(demo.temporary.glob("dinomed-demo-*")) == []
    assert "Traceback" not in (tmp_path / "stderr.txt").read_text()
