"""`dinomed demo all`: one picture, a tab for each thing that is said of it."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.retrieval.search import load_index
from dinomed.apps import cli
from dinomed.backbones.load import save_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer, ViTConfig
from dinomed.datasets.manifest import read_manifest
from dinomed.datasets.synthetic.lesions import write_lesions
from dinomed.images.read import read_image

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the adapters `seg` and `cls` and the index `idx`, all on one backbone."""
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
    common = ["--backbone", str(folder / "backbone"), "--device", "cpu", *quiet]
    short = ["--set", "fit.epochs=2", "--set", "fit.min_steps=20", "--set", "image_size=64"]
    cli.invoke(["train", "segment", "-o", str(folder / "seg"), "--data", manifest, *common, *short])
    cli.invoke(["train", "classify", "-o", str(folder / "cls"), "--data", manifest, *common])
    cli.invoke(["index", manifest, "-o", str(folder / "idx"), *common])
    return folder


@pytest.fixture(scope="module")
def demo(browser, serve, made: Path, tmp_path_factory: pytest.TempPathFactory):
    parts = {"--segment": "seg", "--classify": "cls", "--index": "idx"}
    part_options = [word for option, name in parts.items() for word in (option, str(made / name))]
    command = [
        sys.executable,
        "-m",
        "dinomed.apps.cli",
        "demo",
        "all",
        *part_options,
        "--no-browser",
        "--device",
        "cpu",
    ]
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

    visit.page.wait_for_selector("#area-px, .no-lesion")
    probability = load_adapter(made / "seg").probability(image)
    threshold = round(float(np.median(probability)), 2)
    visit.set_threshold(threshold)
    area = int((probability >= threshold).sum())
    visit.page.wait_for_function(
        "n => document.querySelector('#area-px')?.innerText.replaceAll(',', '') === n", arg=str(area)
    )

    tab(visit, "Classification")
    visit.page.wait_for_selector("#probabilities")
    names = visit.page.locator(".bar-name").all_inner_texts()
    values = [float(text.rstrip("%")) for text in visit.page.locator(".bar-value").all_inner_texts()]
    expected = load_adapter(made / "cls").probabilities(image)
    assert dict(zip(names, values, strict=True)) == {name: round(100 * p, 1) for name, p in expected.items()}
    (answer,) = load_index(made / "idx").search_manifest(manifest.take([row]), 6, exclude_same_group=True)
    similarities = [f"{neighbor.similarity:.3f}" for neighbor in answer.neighbors]
    assert visit.page.locator("#similar .similarity").all_inner_texts() == similarities

    tab(visit, "Similar cases")
    visit.page.wait_for_selector("#found .cases")
    assert visit.page.locator("#found .similarity").all_inner_texts() == similarities
    labels = visit.page.locator("#found figcaption b").all_inner_texts()
    assert labels == [manifest.column("label")[neighbor.row] for neighbor in answer.neighbors]
    assert f"{answer.num_excluded} of the index are this picture itself" in visit.page.inner_text("#found .cases-hint")
    visit.page.locator("#exclude input").click()
    visit.page.wait_for_function("() => document.querySelector('#found .similarity').innerText === '1.000'")

    tab(visit, "Segmentation")  # what was set there is as it was
    assert int(visit.text("area-px").replace(",", "")) == area
    with visit.page.expect_download() as download:
        visit.page.locator("#download").click()
    assert ((np.asarray(Image.open(download.value.path())) == 255) == (probability >= threshold)).all()
    page = visit.page.content()
    for hidden in (str(made), *groups, *(Path(name).stem for name in manifest.column("image"))):
        assert hidden not in page
    assert all(url.startswith((demo.address, "data:", "blob:")) for url in visit.requests)


def test_a_broken_picture_shows_an_error_in_every_tab_and_the_next_one_works(visit, made: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    visit.upload(tmp_path / "broken.png")
    for name, place in (("Segmentation", "numbers"), ("Classification", "classes"), ("Similar cases", "found")):
        tab(visit, name)
        visit.page.wait_for_selector(f"#{place} .error")
        assert "cannot be read as a picture" in visit.text(place)
    visit.upload(read_manifest(made / "images.parquet").path(0))
    visit.page.wait_for_selector("#found .cases")
    tab(visit, "Segmentation")
    visit.page.wait_for_selector("#area-px, .no-lesion")


def test_ids_are_there_once(visit, made: Path) -> None:
    visit.upload(read_manifest(made / "images.parquet").path(0))
    for name in ("Classification", "Similar cases", "Segmentation"):
        tab(visit, name)
        visit.page.wait_for_timeout(300)
        ids = visit.page.eval_on_selector_all("[id]", "all => all.map(one => one.id)")
        ours = [elem_id for elem_id in ids if elem_id and not elem_id.startswith(("component-", "range_id"))]
        assert len(ours) == len(set(ours)), sorted(elem_id for elem_id in set(ours) if ours.count(elem_id) > 1)
