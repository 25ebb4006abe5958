"""`dinomed demo classify` and `dinomed demo retrieve`, as a visitor meets them."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.retrieval.filters import parse_conditions
from dinomed.adapters.retrieval.search import load_index
from dinomed.apps import cli
from dinomed.backbones.config import ViTConfig
from dinomed.backbones.load import save_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.datasets.manifest import read_manifest
from dinomed.datasets.synthetic.lesions import write_lesions
from dinomed.images.read import read_image

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the adapter `cls`, the index `idx`, and the pictures they were made from."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    vit = VisionTransformer(ViTConfig(embed_dim=32, depth=2, num_heads=2, patch_size=8, image_size=64))
    save_backbone(folder / "backbone", vit, Preprocessing(image_size=64), {})
    write_lesions(folder / "lesions", count=40, seed=1, broken=0)
    manifest = str(folder / "images.parquet")
    quiet = ["--quiet", "--json"]
    cli.invoke(
        ["scan", str(folder / "lesions"), "--labels", "labels.csv", "--group", "lesion_id", "-o", manifest, *quiet]
    )
    options = ["--backbone", str(folder / "backbone"), "--device", "cpu", *quiet]
    cli.invoke(["train", "classify", "-o", str(folder / "cls"), "--data", manifest, *options])
    cli.invoke(["index", manifest, "-o", str(folder / "idx"), *options])
    return folder


@pytest.fixture(scope="module", params=["retrieve", "classify"])
def demo(browser, serve, made: Path, tmp_path_factory: pytest.TempPathFactory, request):
    command = [sys.executable, "-m", "dinomed", "demo", request.param, "--index", str(made / "idx")]
    if request.param == "classify":
        command += ["--adapter", str(made / "cls")]
    with serve([*command, "--no-browser", "--device", "cpu"], tmp_path_factory.mktemp("demo") / "tmp") as demo:
        demo.kind = request.param
        yield demo


def similarities(visit) -> list[float]:
    return [float(text) for text in visit.page.locator(".cases .similarity").all_inner_texts()]


def grouped(made: Path) -> int:
    """A row of the manifest whose lesion has other pictures too."""
    groups = read_manifest(made / "images.parquet").column("group")
    return next(row for row, group in enumerate(groups) if groups.count(group) > 1)


def test_a_picture_of_the_index_gets_other_cases_and_nothing_leaves(visit, demo, made: Path, tmp_path: Path) -> None:
    manifest = read_manifest(made / "images.parquet")
    row = grouped(made)
    visit.upload(shutil.copy(manifest.path(row), tmp_path / "mine.jpg"))  # known by its content, not by its name
    visit.page.wait_for_selector(".cases")
    image_index = load_index(made / "idx")
    (answer,) = image_index.search_manifest(manifest.take([row]), 6, exclude_same_group=True)
    assert similarities(visit) == [round(neighbor.similarity, 3) for neighbor in answer.neighbors]
    labels = visit.page.locator(".cases figcaption b").all_inner_texts()
    assert labels == [manifest.column("label")[neighbor.row] for neighbor in answer.neighbors]
    assert f"{answer.num_excluded} of the index are this picture itself" in visit.page.inner_text(".cases-hint")
    assert visit.page.locator(".cases img").count() == 6
    page = visit.page.content()
    for hidden in (str(made), *(manifest.column("group")), *(Path(name).stem for name in manifest.column("image"))):
        assert hidden not in page
    assert all(url.startswith((demo.address, "data:", "blob:")) for url in visit.requests)


def test_a_case_opens_beside_the_picture_and_cases_are_counted_by_label(visit, demo, made: Path) -> None:
    visit.upload(read_manifest(made / "images.parquet").path(0))
    visit.page.wait_for_selector(".cases")
    if demo.kind == "retrieve":
        visit.page.locator("#regions").click()
        visit.page.wait_for_selector(".cases:not(.pairs)")
    labels = visit.page.locator(".cases figcaption b").all_inner_texts()
    tally = dict(text.rsplit(" ", 1) for text in visit.page.locator(".tally li").all_inner_texts())
    assert tally == {label: str(labels.count(label)) for label in labels}
    opened = visit.page.locator(".case-open").nth(1)
    opened.click()
    visit.page.wait_for_selector(".dm-compare[open]")
    assert visit.page.inner_text("#case-caption").startswith(labels[1])
    sources = visit.page.eval_on_selector_all(".dm-sides img", "all => all.map(one => one.src)")
    assert len(set(sources)) == 2
    assert visit.page.evaluate("[...document.querySelectorAll('.dm-sides img')].every(one => one.naturalHeight >= 100)")
    visit.screenshot(f"side_by_side_{demo.kind}")
    visit.page.keyboard.press("ArrowRight")
    assert visit.page.inner_text("#case-caption").startswith(labels[2])
    visit.page.keyboard.press("Escape")
    visit.page.wait_for_selector(".dm-compare:not([open])", state="attached")
    assert visit.page.evaluate("document.activeElement.classList.contains('case-open')")


def test_cases_are_filtered_by_the_columns_of_the_index(visit, demo, made: Path) -> None:
    if demo.kind != "retrieve":
        return
    manifest = read_manifest(made / "images.parquet")
    label = sorted(set(manifest.column("label")))[-1]
    visit.upload(manifest.path(0))
    visit.page.wait_for_selector("#found .cases")
    visit.page.evaluate(
        "() => { window.busy = []; const found = document.querySelector('#found'); new MutationObserver(() =>"
        " window.busy.push(found.getAttribute('aria-busy'))).observe(found, { attributeFilter: ['aria-busy'] }); }"
    )
    visit.page.locator("[data-setting='filter label']").select_option(label)
    visit.page.wait_for_function(
        "label => [...document.querySelectorAll('#found figcaption b')].every(one => one.textContent === label)",
        arg=label,
    )
    visit.page.wait_for_function("() => window.busy.length === 2")
    assert visit.page.evaluate("window.busy") == ["true", None]  # the cases before were marked as old
    (answer,) = load_index(made / "idx").search_manifest(
        manifest.take([0]), 6, conditions=parse_conditions([f"label={label}"]), exclude_same_group=True
    )
    assert similarities(visit) == [round(one.similarity, 3) for one in answer.neighbors]


def test_matching_regions_are_drawn_when_the_option_is_on(visit, demo, made: Path) -> None:
    visit.upload(read_manifest(made / "images.parquet").path(0))
    visit.page.wait_for_selector(".cases")
    wide = "() => [...document.querySelectorAll('.cases img')].every(i => i.naturalWidth > 2.2 * i.naturalHeight)"
    regions = visit.page.locator("#similar-regions" if demo.kind == "classify" else "#regions")
    if demo.kind == "classify":
        regions.click()
    visit.page.wait_for_function(wide)  # the picture and the case side by side
    regions.click()
    visit.page.wait_for_function(wide.replace("every", "some").replace("() => ", "() => !"))


def test_probabilities_are_those_of_the_adapter(visit, demo, made: Path) -> None:
    if demo.kind != "classify":
        visit.page.locator("#exclude").click()
        visit.upload(read_manifest(made / "images.parquet").path(1))
        visit.page.wait_for_selector(".cases")
        assert similarities(visit)[0] == 1  # the picture itself is shown where that is wanted
        return
    path = read_manifest(made / "images.parquet").path(1)
    visit.upload(path)
    visit.page.wait_for_selector("#probabilities")
    expected = load_adapter(made / "cls").probabilities(read_image(path))
    names = visit.page.locator(".bar-name").all_inner_texts()
    values = [float(text.rstrip("%")) for text in visit.page.locator(".bar-value").all_inner_texts()]
    assert dict(zip(names, values, strict=True)) == {name: round(100 * p, 1) for name, p in expected.items()}
    assert values == sorted(values, reverse=True)
    assert re.search(r"(?i)calibrated", visit.text("calibrated"))


def test_a_broken_picture_shows_an_error_and_the_page_still_works(visit, demo, made: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    visit.upload(tmp_path / "broken.png")
    visit.page.wait_for_selector(".message.error")
    assert "cannot be read as a picture" in visit.message("error")
    assert str(tmp_path) not in visit.message("error")
    visit.upload(read_manifest(made / "images.parquet").path(2))
    visit.page.wait_for_selector(".cases")
