"""`dinomed demo segment` with an adapter of several classes on arrays of five channels of 16 bits."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.tasks.segment.lesions import field_of_view
from dinomed.apps import cli
from dinomed.apps.demos.parts import read_picture
from dinomed.backbones.config import ViTConfig
from dinomed.backbones.load import save_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.images.intensity import IntensityConfig

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.long]
BANDS = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    vit = VisionTransformer(
        ViTConfig(embed_dim=32, depth=2, num_heads=2, patch_size=8, image_size=64, in_channels=BANDS)
    )
    reads = Preprocessing(
        image_size=64, mean=(0.5,) * BANDS, std=(0.25,) * BANDS, channels=BANDS, intensity=IntensityConfig(bits=16)
    )
    save_backbone(folder / "backbone", vit, reads, {})
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / "data" / name).mkdir(parents=True)
    rows = ["image,split"]
    for i in range(24):
        pixels = rng.integers(0, 20_000, (64, 80, BANDS)).astype(np.uint16)
        values = np.zeros((64, 80), np.uint8)
        values[8:32, 8:40], values[40:60, 44:76] = 3, 7
        pixels[values == 3, 3], pixels[values == 7, 4] = 60_000, 50_000
        np.save(folder / "data" / "images" / f"{i:02}.npy", pixels)
        Image.fromarray(values).save(folder / "data" / "masks" / f"{i:02}.png")
        rows.append(f"images/{i:02}.npy,{'val' if i > 17 else 'train'}")
    (folder / "data" / "labels.csv").write_text("\n".join(rows))
    manifest, quiet = str(folder / "m.parquet"), ["--quiet", "--json"]
    cli.invoke(["scan", str(folder / "data"), "--labels", "labels.csv", "--label-maps", "-o", manifest, *quiet])
    kinds = ["--set", "kind=multiclass", "--set", "classes={liver: 3, kidney: 7}", "--set", "image_size=64"]
    short = ["--set", "fit.epochs=3", "--set", "fit.min_steps=60", "--set", "fit.batch_size=6", "--set", "augment=none"]
    options = ["--backbone", str(folder / "backbone"), "--data", manifest, "--device", "cpu", *kinds, *short, *quiet]
    cli.invoke(["train", "segment", "-o", str(folder / "seg"), *options])
    return folder


@pytest.fixture(scope="module")
def demo(browser, serve, made: Path, tmp_path_factory: pytest.TempPathFactory):
    command = [sys.executable, "-m", "dinomed", "demo", "segment", "--adapter", str(made / "seg")]
    with serve([*command, "--no-browser", "--device", "cpu"], tmp_path_factory.mktemp("demo") / "tmp") as demo:
        yield demo


def show(visit, made: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.tif"
    tifffile.imwrite(path, np.load(made / "data" / "images" / "20.npy").transpose(2, 0, 1), photometric="minisblack")
    visit.keep_everything()
    visit.upload(path)
    visit.page.wait_for_selector("#measures:visible")


def test_the_class_that_is_chosen_is_outlined(visit, made: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.tif"
    tifffile.imwrite(path, np.load(made / "data" / "images" / "20.npy").transpose(2, 0, 1), photometric="minisblack")
    predictor = load_adapter(made / "seg")
    maps = predictor.probabilities(predictor.preprocessing.read(path))
    assert ((maps[1:] >= 0.5).sum(axis=(1, 2)) > 0).all()  # both were learned, or nothing is shown below
    picture, _ = read_picture(str(path), predictor.preprocessing)
    assert picture is not None
    maps *= field_of_view(picture.shown)  # black pixels at a corner count as the frame of the instrument
    assert visit.page.locator("#examples button").count() == 0
    visit.keep_everything()
    visit.upload(path)
    visit.wait_for_area(int((maps[1:].sum(axis=0) >= 0.5).sum()))
    for name, class_map in (("liver", maps[1]), ("kidney", maps[2])):
        visit.page.locator("#which").select_option(name)
        visit.wait_for_area(int((class_map >= 0.5).sum()))
    visit.set_threshold(0.9)
    visit.page.locator("#which").select_option("liver")
    visit.wait_for_area(int((maps[1] >= 0.5).sum()))  # another class begins at its own threshold
    assert float(visit.page.locator("#threshold").input_value()) == 0.5


def test_a_class_without_an_answer_leaves_the_picture_and_the_class_as_they_were(
    visit, made: Path, tmp_path: Path
) -> None:
    page = visit.page
    show(visit, made, tmp_path)
    page.locator("#which").select_option("liver")
    page.wait_for_selector("#measures:not([aria-busy])")
    visit.wait_until_drawn()
    before, drawn = visit.text("area-px"), page.locator("#canvas").screenshot()
    bad_map = {"which": "kidney", "map": "data:image/png;base64,AAAA"}

    def answer_with_a_broken_map(route: Any) -> None:
        response = route.fetch()
        answer = response.json()
        answer["panels"]["segment"] |= bad_map
        route.fulfill(response=response, json=answer)

    for respond in (lambda route: route.abort(), answer_with_a_broken_map):
        page.route("**/component_server/**", respond)
        page.locator("#which").select_option("kidney")
        page.wait_for_selector("#panel-segment .dm-result:not([aria-busy]) .message.error")
        assert "no valid answer" in visit.message("error")
        assert page.locator("#which").input_value() == "liver"
        assert page.locator("#measures").get_attribute("aria-busy") is None
        assert visit.text("area-px") == before
        assert page.locator("#canvas").screenshot() == drawn
        page.unroute("**/component_server/**")
    page.locator("#which").select_option("kidney")
    page.wait_for_selector("#panel-segment:not(:has(.message.error)):not(:has([aria-busy=true]))")
    visit.wait_until_drawn()
    assert page.locator("#which").input_value() == "kidney"
    assert page.locator("#canvas").screenshot() != drawn


def test_measures_of_the_class_before_are_marked_until_another_picture_is_opened(
    visit, made: Path, tmp_path: Path
) -> None:
    page, held = visit.page, []
    show(visit, made, tmp_path)
    page.route("**/component_server/**", lambda route: route.continue_() if held else held.append(route))
    page.locator("#which").select_option("kidney")
    page.wait_for_selector("#measures[aria-busy=true]")
    assert page.locator("#measures").evaluate("node => getComputedStyle(node).opacity") == "0.4"
    show(visit, made, tmp_path)
    assert page.locator("#panel-segment [aria-busy=true]:not(#shape)").count() == 0
    held[0].abort()
    page.wait_for_timeout(300)  # for what the page would do with it
    assert page.locator("#which").input_value() == "kidney"
    assert page.locator(".message.error").count() == 0


def test_a_colour_picture_is_refused_in_one_line(visit, tmp_path: Path) -> None:
    Image.new("RGB", (80, 64)).save(tmp_path / "colour.png")
    visit.upload(tmp_path / "colour.png")
    visit.page.wait_for_selector(".message.error")
    assert "does not fit a backbone that takes 5" in visit.message("error")
