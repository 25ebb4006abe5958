"""`dinomed demo all`: one picture, a tab for each thing that is said of it."""

import csv
import io
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.retrieval.search import load_index
from dinomed.adapters.tasks.segment.lesions import field_of_view
from dinomed.apps import cli
from dinomed.backbones.config import ViTConfig
from dinomed.backbones.load import save_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.datasets.manifest import read_manifest
from dinomed.datasets.synthetic.lesions import write_lesions
from dinomed.images.read import read_image

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ABSTAINED = 0.9  # share of the validation images: also masks that look certain are below the threshold


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the adapters `seg` and `cls` and the index `idx`, all on one backbone."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    vit = VisionTransformer(ViTConfig(embed_dim=32, depth=2, num_heads=2, patch_size=8, image_size=64))
    save_backbone(folder / "backbone", vit, Preprocessing(image_size=64), {})
    write_lesions(folder / "lesions", count=60, seed=1, broken=0)
    manifest = str(folder / "images.parquet")
    quiet = ["--quiet", "--json"]
    cli.invoke(
        ["scan", str(folder / "lesions"), "--labels", "labels.csv", "--group", "lesion_id", "-o", manifest, *quiet]
    )
    options = ["--backbone", str(folder / "backbone"), "--device", "cpu", *quiet]
    short = ["--set", "fit.epochs=2", "--set", "fit.min_steps=20", "--set", "image_size=64"]
    cli.invoke(["train", "segment", "-o", str(folder / "seg"), "--data", manifest, *options, *short])
    cli.invoke(["train", "classify", "-o", str(folder / "cls"), "--data", manifest, *options])
    cli.invoke(["index", manifest, "-o", str(folder / "idx"), *options])
    return folder


def demo_words(made: Path) -> list[str]:
    parts = {"--segment": "seg", "--classify": "cls", "--index": "idx"}
    options = [word for option, name in parts.items() for word in (option, str(made / name))]
    return ["demo", "all", *options, "--no-browser", "--device", "cpu"]


@pytest.fixture(scope="module")
def demo(browser, serve, made: Path, tmp_path_factory: pytest.TempPathFactory):
    command = [sys.executable, "-m", "dinomed", *demo_words(made), "--abstain", str(ABSTAINED)]
    with serve(command, tmp_path_factory.mktemp("demo") / "tmp") as demo:
        yield demo


def tab(visit, name: str) -> None:
    visit.page.get_by_role("tab", name=name, exact=True).first.click()


def test_a_picture_dropped_once_is_answered_in_every_tab(visit, demo, made: Path, tmp_path: Path) -> None:
    manifest = read_manifest(made / "images.parquet")
    groups = manifest.column("group")
    row = next(row for row, group in enumerate(groups) if groups.count(group) > 1)
    visit.upload(shutil.copy(manifest.path(row), tmp_path / "mine.jpg"))
    image = read_image(manifest.path(row))

    visit.keep_everything()
    visit.wait_for_answer()
    probability = load_adapter(made / "seg").probability(image)
    threshold = round(float(np.median(probability)), 2)
    visit.set_threshold(threshold)
    expected_mask = (probability >= threshold) & field_of_view(image)
    area = int(expected_mask.sum())
    visit.wait_for_area(area)

    tab(visit, "Classify")
    visit.page.wait_for_selector("#probabilities")
    names = visit.page.locator(".bar-name").all_inner_texts()
    values = [float(text.rstrip("%")) for text in visit.page.locator(".bar-value").all_inner_texts()]
    expected = load_adapter(made / "cls").probabilities(image)
    assert dict(zip(names, values, strict=True)) == {name: round(100 * p, 1) for name, p in expected.items()}
    predictor = load_adapter(made / "cls")
    output, limits = predictor.output_of_image(predictor.preprocessing.read(manifest.path(row))), predictor.answer.sets
    rule = predictor.abstention.at_coverage(1 - ABSTAINED)
    assert visit.page.locator("#abstained").count() == rule.abstains(np.array([output.confidence]))[0]
    stated = limits.problem or ", ".join(output.prediction_set)
    assert stated in visit.page.inner_text("#prediction-set")
    (answer,) = load_index(made / "idx").search_manifest(manifest.take([row]), 6, exclude_same_group=True)
    similarities = [f"{neighbor.similarity:.3f}" for neighbor in answer.neighbors]
    assert visit.page.locator("#similar .similarity").all_inner_texts() == similarities

    tab(visit, "Similar")
    visit.page.wait_for_selector("#found .cases")
    assert visit.page.locator("#found .similarity").all_inner_texts() == similarities
    labels = visit.page.locator("#found figcaption b").all_inner_texts()
    assert labels == [manifest.column("label")[neighbor.row] for neighbor in answer.neighbors]
    assert f"{answer.num_excluded} of the index are this picture itself" in visit.page.inner_text("#found .cases-hint")
    visit.page.locator("#exclude").click()
    visit.page.wait_for_function("() => document.querySelector('#found .similarity').innerText === '1.000'")

    tab(visit, "Segment")  # what was set there is as it was
    assert int(visit.text("area-px").replace(",", "")) == area
    _, mask = visit.download()
    assert ((mask == 255) == expected_mask).all()
    page = visit.page.content()
    for hidden in (str(made), *groups, *(Path(name).stem for name in manifest.column("image"))):
        assert hidden not in page
    assert all(url.startswith((demo.address, "data:", "blob:")) for url in visit.requests)


def test_a_broken_picture_shows_one_error_and_the_next_one_works(visit, made: Path, tmp_path: Path) -> None:
    visit.upload(read_manifest(made / "images.parquet").path(1))
    visit.wait_for_answer()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    visit.upload(tmp_path / "broken.png")
    visit.page.wait_for_selector(".message.error")
    assert "cannot be read as a picture" in visit.message("error")
    for place in ("classes", "found", "area-px"):
        assert visit.page.locator(f"#{place}").text_content() == ""  # of the picture before
    visit.upload(read_manifest(made / "images.parquet").path(0))
    visit.wait_for_answer()
    tab(visit, "Similar")
    visit.page.wait_for_selector("#found .cases")


def test_answers_for_a_picture_unlike_the_training_wait_behind_a_warning(visit, made: Path, tmp_path: Path) -> None:
    board = np.indices((120, 160)).sum(axis=0) // 10 % 2
    Image.fromarray(np.array([[20, 255, 20], [200, 0, 255]], np.uint8)[board]).save(tmp_path / "board.png")
    visit.upload(tmp_path / "board.png")
    visit.wait_for_answer()
    for name, result in (("Classify", "#probabilities"), ("Similar", "#found .cases"), ("Segment", "#lesions li")):
        tab(visit, name)
        assert visit.page.locator(".dm-unlike:visible").count() == 1
        assert visit.page.locator(result).count() == 0  # not hidden, but not there
        assert visit.page.locator(".dm-body:visible").count() == 0
    assert visit.page.locator("#download").is_disabled()
    assert visit.page.locator("#opacity").is_disabled()
    visit.screenshot("unlike")
    visit.page.locator(".dm-show-anyway:visible").click()
    visit.page.wait_for_selector("#threshold:visible")
    tab(visit, "Classify")
    visit.page.wait_for_selector("#probabilities")
    assert visit.page.locator(".dm-unlike:visible").count() == 1  # the warning stays
    assert visit.page.locator(".dm-show-anyway:visible").count() == 0
    visit.upload(read_manifest(made / "images.parquet").path(0))  # of the training: no warning is left
    visit.wait_for_answer()
    assert visit.page.locator(".dm-unlike:visible").count() == 0
    assert "Like the training images" in visit.page.inner_text(".dm-familiar:visible")


def test_the_tab_segment_abstains_on_an_unlike_image_and_answers_for_a_like_one(
    visit, made: Path, tmp_path: Path
) -> None:
    predictor, manifest = load_adapter(made / "seg"), read_manifest(made / "images.parquet")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3)).astype(np.uint8)).save(tmp_path / "a.png")

    def confidence(path: Path) -> float:
        return predictor.confidence(predictor.output_of_image(predictor.preprocessing.read(path)))

    rule, certain = (
        predictor.abstention.at_coverage(1 - ABSTAINED),
        max(map(manifest.path, range(len(manifest))), key=confidence),
    )
    assert confidence(tmp_path / "a.png") < rule.threshold <= confidence(certain)
    visit.upload(tmp_path / "a.png")
    visit.wait_for_answer()
    assert visit.page.locator(".dm-unlike:visible").count() == 1
    assert visit.page.locator("#mask-abstained").count() == 0  # not hidden, but not there
    visit.page.locator(".dm-show-anyway:visible").click()
    visit.page.wait_for_selector("#mask-abstained:visible")
    shown = visit.page.inner_text("#mask-abstained")
    assert shown.startswith("No answer: the model abstains. Its confidence of ")
    for part in (f" below {rule.threshold:.3g}, ", f"keeps {100 * rule.coverage:.0f}%", "no result."):
        assert part in shown
    visit.screenshot("mask_abstained")
    visit.upload(certain)
    visit.wait_for_answer()
    visit.page.wait_for_selector("#measures:visible, .no-lesion:visible")
    assert visit.page.locator("#mask-abstained, .dm-unlike:visible").count() == 0


def test_a_batch_explains_each_file_that_is_unreadable_or_abstained(visit, made: Path, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3)).astype(np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"nothing")
    tab(visit, "Batch")
    visit.page.set_input_files("#batch-files", [str(tmp_path / "a.png"), str(tmp_path / "b.png")])
    visit.page.wait_for_function("document.querySelector('#batch-status').innerText === '2 of 2 done.'")
    shown, threshold = visit.page.inner_text("#batch-list li"), load_adapter(made / "seg").abstention
    assert f" is below {threshold.at_coverage(1 - ABSTAINED).threshold:.3g} (" in shown
    assert "Unlike the training images" in shown
    assert visit.page.inner_text("#batch-errors li").startswith("Image 2This file cannot be read as a picture: ")
    with visit.page.expect_download() as taken:
        visit.page.locator("#batch-download").click()
    with zipfile.ZipFile(taken.value.path()) as results, results.open("results.csv") as file:
        abstained, unreadable = csv.DictReader(io.TextIOWrapper(file, "utf-8"))
    assert abstained["abstained (segment)"] == "yes"
    assert abstained["abstained (classify)"] in ("yes", "no")
    assert "cannot be read" in unreadable["error"]


@pytest.mark.long
def test_axe_finds_no_violation_in_any_tab(visit, made: Path, find_violations) -> None:
    manifest, page = read_manifest(made / "images.parquet"), visit.page
    for row in (0, 1):  # two pictures: the tab Explore compares them
        visit.upload(manifest.path(row))
        visit.wait_for_answer()
    violations = {}
    results = {"Segment": "#area-px", "Classify": "#probabilities", "Similar": "#found .cases", "Batch": "#batch-files"}
    for name, result in results.items():
        tab(visit, name)
        page.wait_for_selector(result, state="attached")
        violations[name] = find_violations(page)
    tab(visit, "Explore")
    shown = {"similarity": "Point at a patch", "match": None, "attention": "class token", "pca": "Equal colours"}
    for mode, words in shown.items():
        page.locator("#explore-mode").select_option(mode)
        page.wait_for_selector(f"#explore-hint:has-text('{words}')" if words else ".ex-match")
        violations[mode] = find_violations(page)
    page.locator("#explore-mode").select_option("map")
    page.wait_for_selector("#map[data-ready=pca]")
    page.locator("#map-all").click()
    page.wait_for_selector("#map-grid img")
    violations["map"] = find_violations(page)
    tab(visit, "Similar")
    page.locator("#found .cases button").first.click()
    page.wait_for_selector("dialog[open]")
    violations["side by side"] = find_violations(page)
    assert {name: lines for name, lines in violations.items() if lines} == {}


def test_ids_are_there_once(visit, made: Path) -> None:
    visit.upload(read_manifest(made / "images.parquet").path(0))
    for name in ("Classify", "Similar", "Segment"):
        tab(visit, name)
        ids = visit.page.eval_on_selector_all("[id]", "all => all.map(one => one.id)")
        ours = [name for name in ids if name and not name.startswith(("component-", "range_id"))]
        assert len(ours) == len(set(ours)), sorted(name for name in set(ours) if ours.count(name) > 1)


def test_a_phone_shows_all_tabs_in_one_row(visit) -> None:
    visit.page.set_viewport_size({"width": 390, "height": 844})
    boxes = [each.bounding_box() for each in visit.page.get_by_role("tab").all()]
    assert len(boxes) == 5
    assert max(box["x"] + box["width"] for box in boxes) <= 390
    assert len({box["y"] for box in boxes}) == 1


def test_arrow_keys_move_between_the_tabs(visit) -> None:
    visit.page.locator("#tab-segment").focus()
    shown = [visit.page.locator("[role=tabpanel]:visible").get_attribute("id")]
    for key in ("ArrowRight", "End", "ArrowRight", "ArrowLeft", "Home"):
        visit.page.keyboard.press(key)
        shown.append(visit.page.locator("[role=tabpanel]:visible").get_attribute("id"))
        assert visit.page.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
    names = ["segment", "classify", "explore", "segment", "explore", "segment"]
    assert shown == [f"panel-{name}" for name in names]


UNMARKED = """sign => {
  const words = /[A-Za-z]{3,}/, found = [], app = document.querySelector(".dm-app");
  const walker = document.createTreeWalker(app, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent, parent = walker.currentNode.parentElement;
    if (words.test(text) && !text.includes(sign) && !parent.closest("#batch-list span")) found.push(text.trim());
  }
  for (const name of ["aria-label", "title", "alt", "placeholder"]) {
    for (const node of app.querySelectorAll(`[${name}]`)) {
      const text = node.getAttribute(name);
      if (words.test(text) && !text.includes(sign)) found.push(`${name}: ${text}`);
    }
  }
  return found;
}"""


@pytest.mark.long
def test_every_text_of_the_page_is_in_the_file_for_translation(browser, serve, made: Path, tmp_path: Path) -> None:
    manifest = read_manifest(made / "images.parquet")
    command = [sys.executable, str(Path(__file__).with_name("marked_texts.py")), *demo_words(made)]
    found: set[str] = set()
    with serve([*command, "--save", str(tmp_path / "saved")], tmp_path / "tmp") as demo:
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.goto(demo.address)
        page.wait_for_selector(".dm-app[data-ready]")
        for row in (0, 1):
            page.set_input_files("#picture input[type=file]", str(manifest.path(row)))
            page.wait_for_selector(".dm-app[data-state=shown]")
        found.update(page.evaluate(UNMARKED, "¤"))
        for name, result in (("classify", "#probabilities"), ("retrieve", "#found .cases"), ("explore", ".ex-tile")):
            page.locator(f"#tab-{name}").click()
            page.wait_for_selector(result)
            found.update(page.evaluate(UNMARKED, "¤"))
        page.locator("#explore-mode").select_option("map")
        page.wait_for_selector("#map[data-ready=pca]")
        page.locator("#tab-batch").click()
        (tmp_path / "broken.png").write_bytes(b"nothing")
        page.set_input_files("#batch-files", [str(manifest.path(0)), str(tmp_path / "broken.png")])
        page.wait_for_selector("#batch-list li")
        page.wait_for_selector("#batch-errors li")
        found.update(page.evaluate(UNMARKED, "¤"))
        page.close()
    values = {
        *manifest.columns,
        *(str(value) for name in manifest.columns for value in manifest.column(name)),
        "lesion",
    }
    assert {text for text in found if text.partition(" (")[0] not in values} == {"dinomed"}
