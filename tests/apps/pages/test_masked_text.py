"""`--mask-text`: text in the pixels is gone from all that is written, and other pictures are the same bit for bit."""

import base64
import io
import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dinomed
from dinomed.adapters.tasks.classify.answer import Answer
from dinomed.adapters.tasks.classify.predict import ClassifyPredictor
from dinomed.adapters.tasks.depth.maps import DepthSource
from dinomed.adapters.tasks.depth.predict import DepthPredictor
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


class Everywhere:
    """A segmenter that finds the lesion in every pixel."""

    threshold = 0.5

    def probability(self, image: np.ndarray) -> np.ndarray:
        return np.full(image.shape[:2], 0.9, np.float32)


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


def test_an_interrupted_prediction_counts_the_text_of_all_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = runpy.run_path(str(TESTS / "adapters" / "video" / "written.py"))
    (tmp_path / "in").mkdir()
    for name in ("a.avi", "b.avi"):
        with writing_video(tmp_path / "in" / name, (240, 320), 5) as append:
            append(written(0))
            append(picture(2))
    whole = dinomed.predict(tools["Dark"](), tmp_path / "in", tmp_path / "whole", mask_text=True)
    predict = tools["Dark"].predict

    def stop(self: Any, images: Any) -> Any:
        if self.seen >= 2:
            raise KeyboardInterrupt
        return predict(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(tools["Dark"], "predict", stop)
        with pytest.raises(KeyboardInterrupt):
            dinomed.predict(tools["Dark"](), tmp_path / "in", tmp_path / "cut", mask_text=True)
    done = dinomed.predict(tools["Dark"](), tmp_path / "in", tmp_path / "cut", mask_text=True)
    assert done.kept == 1
    assert whole.masked_text is not None
    assert (whole.masked_text["images"], whole.masked_text["images_with_text"]) == (4, 2)
    assert done.masked_text == whole.masked_text


def test_it_is_refused_where_no_picture_is_written(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mask_text=True"):
        dinomed.search(folder, tmp_path / "index", mask_text=True)
    with pytest.raises(UsageError, match="mask_text=True"):
        dinomed.audit(folder, mask_text=True)
    with pytest.raises(UsageError, match="mask_text=True"):
        dinomed.evaluate(tmp_path / "cls", folder, mask_text=True)
    with pytest.raises(UsageError, match="mask_text=True"):
        dinomed.predict(tmp_path / "cls", folder, tmp_path / "out", sheet=False, mask_text=True)
    for name in ("map.png", "map.svg", None):
        with pytest.raises(UsageError, match=r"mask_text=True.* ends with .html"):  # before the backbone is loaded
            dinomed.show_map(tmp_path / "ssl", folder, out=name and tmp_path / name, mask_text=True)


def test_tasks_without_pictures_refuse_it_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    with writing_video(tmp_path / "clip.avi", (240, 320), 5) as append:
        append(written(0))
    classifier, depth = object.__new__(ClassifyPredictor), object.__new__(DepthPredictor)
    classifier.task, classifier.unit, classifier.classes, classifier.answer = "classify", "image", ("a", "b"), Answer()
    depth.task, depth.source, depth.low, depth.high = "depth", DepthSource(), 0.0, 60000.0
    classifier.abstention = depth.abstention = None
    cases: list[tuple[Any, Path, str]] = [
        (classifier, tmp_path / "clip.avi", "a classifier writes no overlay videos; leave it out"),
        (depth, folder, "a depth estimator writes no contact sheet with pictures; leave it out"),
    ]
    for predictor, images, words in cases:
        with pytest.raises(UsageError, match=f"`mask_text=True`: {words}"):
            dinomed.predict(predictor, images, tmp_path / "out", mask_text=True)
    assert not (tmp_path / "out").exists()


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


def test_thumbnails_of_examples_are_masked(folder: Path) -> None:
    from dinomed.apps.demos.page import build_page
    from dinomed.apps.demos.segment import SegmentPanel

    panel = SegmentPanel(Everywhere())
    for mask in (None, TextMask()):
        panel.text_mask = mask
        server = next(block for block in build_page([panel], [folder / "0.png"]).blocks.values() if block.elem_id)
        (shown,) = pictures_in(server.html_template)
        assert has_ink(shown) == (mask is None)


def test_results_of_the_demo_do_not_depend_on_it(tmp_path: Path) -> None:
    from dinomed.apps.demos.page import run_consumers
    from dinomed.apps.demos.segment import SegmentPanel

    framed = np.zeros((300, 400, 3), np.uint8)
    framed[60:, 40:360] = picture(0)[:, :320]
    Image.fromarray(draw_text(framed, ["PATIENT 4711"], 0.07, (0.2, 0.03))).save(tmp_path / "framed.png")
    panel = SegmentPanel(Everywhere())
    results = []
    for mask in (None, TextMask()):
        panel.text_mask = mask
        (result,) = run_consumers([panel], str(tmp_path / "framed.png"))
        assert not isinstance(result, str)
        assert has_ink(result.picture.shown[:60]) == (mask is None)
        summary = panel.summarize(result.picture, result.answers, {"threshold": 0.5, "min_share": 0, "largest_only": 0})
        assert summary is not None
        results.append(summary)
    assert (results[0].mask == results[1].mask).all()
    assert results[0].values == results[1].values
    assert 0 < results[0].values["area_share"] < 1


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
