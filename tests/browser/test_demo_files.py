"""Files of other kinds than photographs in the demo, in a real browser: DICOM, TIFF, files without a suffix."""

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PIXELS = np.full((240, 320, 3), 204, np.uint8)  # pale skin (probability 0.2)
PIXELS[80:160, 100:220] = 51  # a dark lesion (0.8)
AREA = 80 * 120


def write_dicom(
    path: Path, pixels: np.ndarray, spacing: list[float] | None = None, regions: list[pydicom.Dataset] | None = None
) -> None:
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.PatientName, data.Modality = "DOE^JANE", "OT"
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    if spacing is not None:
        data.PixelSpacing = spacing
    if regions is not None:
        data.SequenceOfUltrasoundRegions = regions
    data.PixelData = pixels.tobytes()
    data.save_as(path, enforce_file_format=True)


def test_dicom_tiff_and_files_without_a_suffix_are_opened(visit, tmp_path: Path) -> None:
    assert visit.page.locator("#picture input[type=file]").get_attribute("accept") is None
    write_dicom(tmp_path / "scan.dcm", PIXELS)
    tifffile.imwrite(tmp_path / "scan.tif", PIXELS)
    shutil.copy(tmp_path / "scan.dcm", tmp_path / "IM000001")
    for name in ("scan.dcm", "scan.tif", "IM000001"):
        visit.upload(tmp_path / name)
        visit.wait_for_area(AREA)
        assert visit.page.locator(".message.error").count() == 0
    assert "DOE" not in visit.page.content()


def region(left: int, right: int, mm: float) -> pydicom.Dataset:
    """An ultrasound region of some columns, with square pixels."""
    item = pydicom.Dataset()
    item.RegionSpatialFormat, item.PhysicalUnitsXDirection, item.PhysicalUnitsYDirection = 1, 3, 3
    item.RegionLocationMinX0, item.RegionLocationMaxX1 = left, right
    item.RegionLocationMinY0, item.RegionLocationMaxY1 = 0, len(PIXELS) - 1
    item.PhysicalDeltaX = item.PhysicalDeltaY = mm / 10  # cm
    return item


def test_an_ultrasound_has_millimetres_where_the_outline_is_in_regions_of_one_scale(visit, tmp_path: Path) -> None:
    card = visit.page.locator("#area-mm-card")
    write_dicom(tmp_path / "inside.dcm", PIXELS, regions=[region(50, 250, 0.1), region(251, 319, 0.3)])
    visit.upload(tmp_path / "inside.dcm")
    visit.wait_for_area(AREA)
    card.wait_for(state="visible")
    assert visit.text("area-mm") == f"{AREA * 0.01:.1f}"
    visit.page.locator("#diameter", has_text="mm").wait_for()
    assert visit.page.locator("#set-scale").is_hidden()
    write_dicom(tmp_path / "outside.dcm", PIXELS, regions=[region(0, 150, 0.1)])  # the lesion is wider
    visit.upload(tmp_path / "outside.dcm")
    visit.wait_for_area(AREA)
    visit.page.wait_for_timeout(1500)  # the answer about the spacing
    assert card.is_hidden()
    visit.page.locator("#diameter", has_text="px").wait_for()
    assert visit.page.locator("#set-scale").is_visible()


def test_the_pixel_spacing_of_a_dicom_gives_square_millimetres_and_no_other_file_does(visit, tmp_path: Path) -> None:
    write_dicom(tmp_path / "scan.dcm", PIXELS, [0.2, 0.1])
    visit.upload(tmp_path / "scan.dcm")
    visit.wait_for_area(AREA)
    assert visit.text("area-mm") == f"{AREA * 0.02:.0f}"
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    visit.upload(tmp_path / "photo.png")
    visit.wait_for_area(AREA)
    assert visit.page.locator("#area-mm-card").is_hidden()


def test_a_scale_is_set_by_two_clicks_and_the_length_that_is_typed_after_them(visit, tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    visit.upload(tmp_path / "photo.png")
    visit.wait_for_area(AREA)
    page = visit.page
    page.locator("#set-scale").click()
    stage = page.locator(".dm-stage").bounding_box()
    each = min(stage["width"] / 320, stage["height"] / 240)  # px of the page for a pixel of the picture
    middle = stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2
    for x in (-50, 50):
        page.mouse.click(middle[0] + x * each, middle[1])
    page.keyboard.press("Enter")
    assert "a number above 0" in visit.text("scale-hint")
    page.keyboard.type("20")
    page.keyboard.press("Enter")
    page.locator("#area-mm-card").wait_for()
    assert float(visit.text("area-mm")) == pytest.approx(AREA * 0.2**2, rel=0.03)  # the mouse stops at whole pixels
    first = visit.text("area-mm")
    page.locator("#set-scale").click()  # a second scale does not begin with the length of the first one
    for x in (-50, 50):
        page.mouse.click(middle[0] + x * each, middle[1])
    page.keyboard.press("Enter")
    assert "a number above 0" in visit.text("scale-hint")
    assert visit.text("area-mm") == first
    page.keyboard.type("15")
    page.mouse.click(stage["x"] + stage["width"] / 2, middle[1] + 20)  # another line has another length
    page.mouse.click(middle[0] + 50 * each, middle[1] + 20)
    page.keyboard.type("12")
    page.keyboard.press("Enter")
    page.wait_for_function("first => document.querySelector('#area-mm').textContent !== first", arg=first)
    assert float(visit.text("area-mm")) == pytest.approx(AREA * 0.24**2, rel=0.05)


def test_a_scale_is_set_with_the_keyboard_whose_cursor_is_seen(visit, tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    visit.upload(tmp_path / "photo.png")
    visit.wait_for_area(AREA)
    page = visit.page
    page.locator("#set-scale").press("Enter")
    visit.wait_until_drawn()
    before = page.locator("#canvas").screenshot()
    page.keyboard.press("ArrowLeft")
    visit.wait_until_drawn()
    assert page.locator("#canvas").screenshot() != before
    page.keyboard.press("Enter")
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.keyboard.type("20")
    page.keyboard.press("Enter")
    page.locator("#area-mm-card").wait_for()


CENTRE = """([low, high]) => {
  const canvas = document.querySelector("#canvas"), { width, height } = canvas;
  const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data, found = [];
  for (let at = 0; at < width * height; at++) {
    const isInside = [0, 1, 2].every(band => pixels[4 * at + band] >= low[band] && pixels[4 * at + band] <= high[band]);
    if (isInside) found.push(at);
  }
  const mean = place => found.reduce((sum, at) => sum + place(at), 0) / found.length;
  return [mean(at => at % width), mean(at => Math.floor(at / width))];
}"""
"""Centre of the pixels of the viewer whose colour is in a range."""
CROSS, END = (
    [(220, 220, 220), (255, 255, 255)],
    [(235, 190, 50), (255, 225, 110)],
)  # colours of the cross, and of an end


@pytest.mark.parametrize("zoom", ["+", "-"])
def test_a_key_acts_where_the_cross_is_drawn_after_a_zoom(visit, tmp_path: Path, zoom: str) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    visit.upload(tmp_path / "photo.png")
    visit.wait_for_area(AREA)
    page = visit.page
    page.locator("#view label", has_text="Image only").click()  # no lines but that of the scale
    page.locator("#set-scale").press("Enter")
    if zoom == "-":
        page.keyboard.press("+")
        page.keyboard.press("+")
    for key in ["ArrowLeft"] * 4 + ["ArrowUp"] * 3 + [zoom]:
        page.keyboard.press(key)
    visit.wait_until_drawn()
    cross = page.evaluate(CENTRE, CROSS)
    page.keyboard.press("Enter")
    stage = page.locator(".dm-stage").bounding_box()
    page.mouse.move(stage["x"] + 5, stage["y"] + 5)
    visit.wait_until_drawn()  # without the cross, over the end
    assert page.evaluate(CENTRE, END) == pytest.approx(cross, abs=1.5)
    for _ in range(9):
        page.keyboard.press("+")  # the place of the cross is now outside the viewer
    page.keyboard.press("ArrowRight")
    visit.wait_until_drawn()
    assert np.isfinite(page.evaluate(CENTRE, CROSS)).all()  # in view again
