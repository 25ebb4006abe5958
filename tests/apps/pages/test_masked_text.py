"""`--mask-text`: text in the pixels is gone from all that is written, and other pictures are the same bit for bit."""

import base64
import io
import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import dinomed
from dinomed.apps.demos import launch
from dinomed.apps.demos.corrections import Corrections
from dinomed.apps.demos.parts import read_picture
from dinomed.burned_in_text.mask import TextMask
from dinomed.datasets.scan.scan import scan
from dinomed.errors import UsageError
from dinomed.html.album import Album
from dinomed.images.read import read_image
from dinomed.pretrain.curation.descriptors.synthetic_copies import draw_text
from dinomed.video.video import Video
from dinomed.video.write import writing_video

Run = Callable[..., tuple[int, str, str]]
TESTS = Path(__file__).parents[2]
INK, DARKER = 190, 185  # of text, and of everything in the pictures without text


def picture(seed: int) -> np.ndarray:
    """A picture without text whose values are all below `DARKER`."""
    y, x = np.mgrid[:240, :320]
    levels = 110 + 40 * np.sin(x / 50 + seed) + 20 * np.cos(y / (40 + seed))
    return np.stack([levels + 20, levels, levels - 20], axis=-1).astype(np.uint8)


def written(seed: int) -> np.ndarray:
    return draw_text(picture(seed), ["PATIENT 4711", "12.03.1962"], 0.07, (0.1, 0.4))


def has_ink(pixels: np.ndarray, least: int = INK) -> bool:
    return bool(pixels.min(axis=-1).max() > least)


def pictures_in(page: str) -> list[np.ndarray]:
    parts = re.findall(r"data:image/\w+;base64,([A-Za-z0-9+/=]+)", page)
    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(part))).convert("RGB")) for part in parts]
    return [image for image in images if min(image.shape[:2]) >= 60]  # the others are maps of patches


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures with text and one without."""
    (tmp_path / "in").mkdir()
    for number in range(3):
        Image.fromarray(picture(number) if number == 2 else written(number)).save(tmp_path / "in" / f"{number}.png")
    return tmp_path / "in"


def test_an_album_masks_text_in_pictures_and_sheets(folder: Path) -> None:
    manifest = scan(folder, make_split=False).manifest
    for mask in (None, TextMask()):
        album = Album(mask=mask)
        figures = [album.picture(manifest, row) for row in range(3)]
        figures.append(album.sheet(manifest, range(3), "sheet", side=200))
        shown = pictures_in("".join(figures))
        assert [has_ink(pixels) for pixels in shown] == ([True, True, False, True] if mask is None else [False] * 4)
    assert mask is not None
    assert (mask.images, mask.images_with_text) == (6, 4)
    assert "no de-identification" in album.note()[0]


def test_frames_are_written_without_their_text(tmp_path: Path) -> None:
    with writing_video(tmp_path / "clip.avi", (240, 320), 5) as append:
        for number in range(4):
            append(picture(number) if number % 2 else written(number))
    options = {"fps": 0, "min_tissue": 0, "duplicate_bits": -1, "min_sharpness": 0}
    plain = dinomed.frames(tmp_path / "clip.avi", tmp_path / "plain", **options)
    masked = dinomed.frames(tmp_path / "clip.avi", tmp_path / "masked", mask_text=True, **options)
    counts = [int(count) for count in masked.manifest.column("masked_text")]
    assert [count > 0 for count in counts] == [True, False, True, False]
    assert masked.masked_text == {"images": 4, "images_with_text": 2, "regions": sum(counts)}
    assert plain.masked_text is None
    for row in range(4):
        before, after = (read_image(result.manifest.path(row)) for result in (plain, masked))
        assert has_ink(before) == (row % 2 == 0)
        assert not has_ink(after)
        assert (row % 2 == 0) == (before != after).any()


def test_slices_are_written_without_their_text(tmp_path: Path) -> None:
    write_series = runpy.run_path(str(TESTS / "volumes" / "made.py"))["write_series"]
    values = np.stack([written(0)[..., 1], picture(1)[..., 1], written(2)[..., 1]]).astype(np.int16)
    write_series(tmp_path / "in", values)
    low, high = (2.0 * value - 1024 for value in (0, 255))  # by the slope and intercept of the series
    for options in ({}, {"neighbours": True}, {"window": [f"{low},{high}", f"{low},{high + 100}"]}):
        window = {"window": f"{low},{high}"} | options
        plain = dinomed.slices(tmp_path / "in", tmp_path / "plain", overwrite=True, **window)
        masked = dinomed.slices(tmp_path / "in", tmp_path / "masked", mask_text=True, overwrite=True, **window)
        assert masked.masked_text is not None
        assert masked.masked_text["regions"] >= 2
        for row in range(3):
            before, after = (np.asarray(Image.open(each.manifest.path(row))) for each in (plain, masked))
            assert (before.max() > INK) == (row != 1 or "neighbours" in options)
            assert after.max() < DARKER
            if row == 1 and "neighbours" not in options:
                assert (before == after).all()


def test_overlay_videos_are_written_without_text_and_predictions_stay(tmp_path: Path) -> None:
    tools = runpy.run_path(str(TESTS / "adapters" / "video" / "written.py"))
    with writing_video(tmp_path / "clip.avi", (240, 320), 5) as append:
        for number in range(3):
            append(written(number % 2))
    rows = []
    for name, mask_text in (("plain", False), ("masked", True)):
        done = dinomed.predict(tools["Dark"](), tmp_path / "clip.avi", tmp_path / name, mask_text=mask_text)
        result = tools["only"](tmp_path / name)
        ink = [has_ink(frame.pixels) for frame in Video(result / "overlay.avi").stream()]
        assert ink == [not mask_text] * 3
        rows.append(tools["rows_of"](result))
        summary = json.loads((result / "summary.json").read_text())
        assert ("regions_of_masked_text" in summary) == mask_text
    assert rows[0] == rows[1]
    assert done.masked_text is not None
    assert done.masked_text["images_with_text"] == 3


def test_it_is_refused_where_no_picture_is_written(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mask_text=True"):
        dinomed.search(folder, tmp_path / "index", mask_text=True)
    with pytest.raises(UsageError, match="mask_text=True"):
        dinomed.audit(folder, mask_text=True)
    with pytest.raises(UsageError, match="mask_text=True"):
        dinomed.evaluate(tmp_path / "cls", folder, mask_text=True)
    with pytest.raises(UsageError, match="mask_text=True"):
        dinomed.predict(tmp_path / "cls", folder, tmp_path / "out", sheet=False, mask_text=True)


def test_pictures_of_the_demo_and_its_corrections_are_masked(folder: Path, tmp_path: Path) -> None:
    mask = TextMask()
    picture_, _ = read_picture(str(folder / "0.png"), None, mask=mask)
    assert picture_ is not None
    assert has_ink(picture_.pixels)  # the model reads the picture as it is
    assert not has_ink(picture_.shown)
    corrections = Corrections(tmp_path / "saved", "0" * 64)
    row = corrections.save(picture_, None, "rejected", 0.5, "reviewer", mask)
    saved = read_image(tmp_path / "saved" / row["image"])
    assert not has_ink(saved)
    assert int(row["masked_text"]) >= 1
    assert (saved == picture_.shown).all()
    panel, index = SimpleNamespace(text_mask=None), SimpleNamespace(text_mask=None)
    launch._mask_text([panel], index)  # type: ignore[list-item, arg-type]
    assert panel.text_mask is index.text_mask is not None


@pytest.mark.long
def test_pages_of_commands_are_written_without_text(user_folder: Path, folder: Path, tmp_path: Path, run: Run) -> None:
    out, ssl = tmp_path / "out", user_folder / "ssl"
    calls = {
        "sheet/index.html": ("predict", user_folder / "seg", folder, "-o", out / "sheet"),
        "curated.html": ("curate", "--pool", tmp_path / "pool", "-o", out / "curated.parquet"),
        "pca.html": ("show", "pca", folder, "-b", ssl, "--whole", "-o", out / "pca.html"),
        "similarity.html": ("show", "similarity", folder, "-b", ssl, "-o", out / "similarity.html"),
        "map.html": ("show", "map", folder, "-b", ssl, "--method", "pca", "-o", out / "map.html"),
        "audit.html": ("audit", folder, tmp_path / "copies", "-o", out / "audit.html"),
    }
    for name in ("copies", "pool"):
        (tmp_path / name).mkdir()
    for number in range(12):  # near-duplicates are searched among 8 or more
        Image.fromarray(written(number)).save(tmp_path / "pool" / f"{number}.png")
    for number in (0, 2):
        Image.open(folder / f"{number}.png").save(tmp_path / "copies" / f"{number}.bmp")
    out.mkdir()
    for mask_text in (False, True):
        for page, call in calls.items():
            overwrite = ["--overwrite"] if call[0] != "audit" else []
            code, _, err = run(*call, *overwrite, *(["--mask-text"] if mask_text else []))
            assert code == (call[0] == "audit"), err
            shown = pictures_in((out / page).read_text(encoding="utf-8"))
            assert any(map(has_ink, shown)) != mask_text, page
            assert shown
    index = tmp_path / "index"
    assert run("index", folder, "-b", ssl, "-o", index)[0] == 0
    light = []
    for mask_text in (False, True):
        call = ("search", folder, "--index", index, "--evidence", "-k", "3", "--overwrite", "-o", out / "hits")
        code, _, err = run(*call, *(["--mask-text"] if mask_text else []))
        assert code == 0, err
        pairs = [read_image(path) for path in sorted((out / "hits").glob("*.jpg"))]
        assert len(pairs) == 9
        light.append([int((pair.min(axis=-1) > INK).sum()) for pair in pairs])  # background and text
    assert sum(after < before for before, after in zip(*light, strict=True)) == 8  # one pair is without text
