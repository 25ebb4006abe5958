"""`dinomed demo segment` on an adapter as `dinomed train` writes it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.tasks.segment.lesions import field_of_view
from dinomed.apps import cli
from dinomed.backbones.config import ViTConfig
from dinomed.backbones.load import save_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.datasets.synthetic.lesions import write_lesions
from dinomed.images.read import read_image

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the adapters `seg` and `cls` on a small random backbone, and the pictures they were made from."""
    folder = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    vit = VisionTransformer(ViTConfig(embed_dim=32, depth=2, num_heads=2, patch_size=8, image_size=64))
    save_backbone(folder / "backbone", vit, Preprocessing(image_size=64, mean=mean, std=std, channels=3), {})
    write_lesions(folder / "lesions", count=48, seed=1, broken=0)
    manifest = str(folder / "images.parquet")
    made_of = ["--backbone", str(folder / "backbone"), "--data", manifest, "--device", "cpu", "--quiet", "--json"]
    scan = ["scan", str(folder / "lesions"), "--labels", "labels.csv", "--group", "lesion_id", "--quiet", "--json"]
    cli.invoke([*scan, "-o", manifest])
    short = ["--set", "fit.epochs=2", "--set", "fit.min_steps=20"]
    cli.invoke(["train", "segment", "-o", str(folder / "seg"), *made_of, *short])
    cli.invoke(["train", "classify", "-o", str(folder / "cls"), *made_of, *short])
    return folder


@pytest.fixture(scope="module")
def demo(browser, serve, adapters: Path, tmp_path_factory: pytest.TempPathFactory):
    command = [sys.executable, "-m", "dinomed", "demo", "segment", "--adapter", str(adapters / "seg")]
    with serve([*command, "--no-browser", "--device", "cpu"], tmp_path_factory.mktemp("demo") / "tmp") as demo:
        yield demo


def test_a_trained_adapter_outlines_a_lesion(visit, adapters: Path) -> None:
    assert "seg" in visit.text("title")
    visit.upload(sorted((adapters / "lesions" / "images").glob("*.jpg"))[0])
    visit.wait_for_answer()
    visit.set_threshold(0.02)  # nearly everything is at least this probable
    visit.page.wait_for_selector("#measures:visible")
    assert int(visit.text("area-px").replace(",", "")) > 0


def test_the_mask_taken_away_is_the_model_s(visit, adapters: Path) -> None:
    path = sorted((adapters / "lesions" / "images").glob("*.jpg"))[1]
    predictor, image = load_adapter(adapters / "seg"), read_image(path)
    probability = predictor.probability(image)
    threshold = round(float(np.median(probability)), 2)  # about half of the picture, whatever it has learned
    expected = (probability >= threshold) & field_of_view(image)
    visit.keep_everything()
    visit.upload(path)
    visit.wait_for_answer()
    visit.set_threshold(threshold)
    visit.wait_for_area(int(expected.sum()))
    _, mask = visit.download()
    assert mask.shape == (150, 200)
    assert ((mask == 255) == expected).all()


def test_synthetic_examples_are_offered_where_the_adapter_has_none(visit) -> None:
    assert visit.page.locator("#examples button img").count() == 6


def test_a_classifier_is_refused(adapters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["demo", "segment", "--adapter", str(adapters / "cls"), "--no-browser"])
    assert end.value.code == 2
    assert "classify adapter" in capsys.readouterr().err
