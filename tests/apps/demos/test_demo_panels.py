"""What the pages say of a picture, for every kind of adapter; the browser is in tests/browser."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.retrieval.search import load_index
from dinomed.apps import cli
from dinomed.apps.demos import launch
from dinomed.apps.demos.serve import private_environment
from dinomed.backbones.load import save_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer, ViTConfig
from dinomed.datasets.manifest import read_manifest
from dinomed.images.intensity import IntensityConfig
from dinomed.images.read import read_image

SHORT = ["--set", "fit.epochs=1", "--set", "fit.min_steps=0", "--set", "image_size=32"]
BANDS = 5


def train(kind: str, out: Path, backbone: Path, data: Path, *options: str) -> Path:
    cli.invoke(["train", kind, "-b", str(backbone), "--data", str(data), "-o", str(out), "--quiet", "--json", *options])
    return out


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`serve_demo` as far as its page: (look, panels, Blocks) where it would be served."""
    shown: list[Any] = []

    def call(**arguments: Any) -> Any:
        from dinomed.apps.demos import page

        kept: dict[str, Any] = {}

        def build(panels: list[Any], examples: list[Path], subtitle: str) -> Any:
            kept.update(panels=panels, examples=len(examples), subtitle=subtitle)
            return real(panels, examples, subtitle)

        real = page.build_page
        with monkeypatch.context() as patch:
            patch.setattr(page, "build_page", build)
            patch.setattr(launch, "serve", lambda build, address, browser: shown.append(build()))
            launch.serve_demo(**arguments, device="cpu")
        return page.looker(kept["panels"]), kept

    return call


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    with private_environment():
        yield


def controls(panel: Any, **changed: Any) -> list[Any]:
    """What a visitor has set: the values that the components begin with, but those that are named by their ids."""
    return [changed.get(component.elem_id or "", component.value) for component in panel.inputs]


def area(html: str) -> int:
    return int(html.split('id="area-px">')[1].split("<")[0].replace(",", ""))


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["last:1", "lora:2"])
def test_a_tuned_backbone_answers_beside_its_base(
    tune: str, page: Callable[..., Any], tmp_path: Path, lesion_manifest: Path, tiny_backbone: Path
) -> None:
    if tune.startswith("lora"):
        pytest.importorskip("peft")
    options = (tiny_backbone, lesion_manifest, "--tune", tune, *SHORT, "--set", "tune.learning_rate=0.05")
    seg = train("segment", tmp_path / "seg", *options)
    cls = train("classify", tmp_path / "cls", *options)
    index = tmp_path / "idx"
    cli.invoke(["index", str(lesion_manifest), "-b", str(tiny_backbone), "-o", str(index), "--quiet", "--json"])
    look, kept = page(segment=seg, classify=cls, index=index)
    path = read_manifest(lesion_manifest).path(0)
    image = read_image(path)
    values = [value for panel in kept["panels"] for value in controls(panel, threshold=0.02)]
    outputs = look(str(path), *values)
    assert area(outputs[3]) == int((load_adapter(seg).probability(image) >= 0.02).sum())
    for name, value in load_adapter(cls).probabilities(image).items():
        assert name in outputs[7]
        assert f"{100 * value:.1f}%" in outputs[7]
    base = load_index(index)
    assert kept["panels"][1].predictor.backbone.fingerprint != base.backbone.fingerprint
    assert "cases-hint" in outputs[8]
    assert "cases-hint" in outputs[9]


@pytest.fixture(scope="module")
def bands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone of five channels of 16 bits, arrays with label maps and labels, adapters and an index."""
    folder = tmp_path_factory.mktemp("bands")
    torch.manual_seed(0)
    vit = VisionTransformer(
        ViTConfig(embed_dim=32, depth=2, num_heads=2, patch_size=8, image_size=32, in_channels=BANDS)
    )
    reads = Preprocessing(
        image_size=32, mean=(0.5,) * BANDS, std=(0.25,) * BANDS, channels=BANDS, intensity=IntensityConfig(bits=16)
    )
    save_backbone(folder / "backbone", vit, reads, {})
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / "data" / name).mkdir(parents=True)
    rows = ["image,label,lesion_id,split"]
    for i in range(24):
        pixels = rng.integers(0, 20_000, (40, 56, BANDS)).astype(np.uint16)
        values = np.zeros((40, 56), np.uint8)
        values[4:20, 6:26], values[24:38, 30:50] = 1, 2
        pixels[values == 1, 3], pixels[values == 2, 4] = 60_000, 50_000
        np.save(folder / "data" / "images" / f"{i:02}.npy", pixels)
        Image.fromarray(values).save(folder / "data" / "masks" / f"{i:02}.png")
        split = ("train", "train", "val", "test")[i // 6]
        rows.append(f"images/{i:02}.npy,{'ab'[i % 2]},lesion {i // 2},{split}")
    (folder / "data" / "labels.csv").write_text("\n".join(rows))
    manifest = folder / "m.parquet"
    quiet = ["--quiet", "--json"]
    scan = ["scan", str(folder / "data"), "--labels", "labels.csv", "--group", "lesion_id", "--label-maps"]
    cli.invoke([*scan, "-o", str(manifest), *quiet])
    train("segment", folder / "seg", folder / "backbone", manifest, *SHORT, "--set", "kind=multiclass")
    train("classify", folder / "cls", folder / "backbone", manifest)
    cli.invoke(["index", str(manifest), "-b", str(folder / "backbone"), "-o", str(folder / "idx"), *quiet])
    return folder


def test_arrays_of_five_channels_and_sixteen_bits(page: Callable[..., Any], bands: Path, tmp_path: Path) -> None:
    look, kept = page(segment=bands / "seg", classify=bands / "cls", index=bands / "idx")
    assert kept["examples"] == 0  # they would be pictures of three channels
    manifest = read_manifest(bands / "m.parquet")
    values = [value for panel in kept["panels"] for value in controls(panel, threshold=0.02)]
    outputs = look(shutil.copy(manifest.path(0), tmp_path / "mine.npy"), *values)
    pixels = kept["panels"][0].preprocessing.read(manifest.path(0))
    predictor = load_adapter(bands / "seg")
    assert area(outputs[3]) == int((predictor.probability(pixels) >= 0.02).sum())
    for name, value in load_adapter(bands / "cls").probabilities(pixels).items():
        assert f"{name}</span>" in outputs[7]
        assert f"{100 * value:.1f}%" in outputs[7]
    assert "no longer where" not in outputs[9]
    assert outputs[9].count("<img") == 6  # each case beside the picture, drawn by their first channels
    assert "2 of the index are this picture itself" in outputs[9]
    tifffile.imwrite(tmp_path / "pages.tif", np.load(manifest.path(0)).transpose(2, 0, 1), photometric="minisblack")
    assert look(str(tmp_path / "pages.tif"), *values)[3] == outputs[3]
    Image.new("RGB", (50, 40)).save(tmp_path / "colour.jpg")
    refused = look(str(tmp_path / "colour.jpg"), *values)
    for text in (refused[3], refused[7], refused[9]):
        assert "does not fit a backbone that takes 5" in text
        assert str(tmp_path) not in text


def test_examples_are_refused_where_no_colour_picture_can_be_taken(page: Callable[..., Any], bands: Path) -> None:
    (bands / "pictures").mkdir()
    Image.new("RGB", (50, 40)).save(bands / "pictures" / "a.png")
    with pytest.raises(launch.UsageError, match=r"--examples: .* takes 5 channels"):
        page(classify=bands / "cls", examples=bands / "pictures")


def test_a_classifier_and_an_index_that_read_differently_are_refused(
    page: Callable[..., Any], bands: Path, tmp_path: Path, lesion_manifest: Path, tiny_backbone: Path
) -> None:
    cls = train("classify", tmp_path / "cls", tiny_backbone, lesion_manifest)
    with pytest.raises(launch.UsageError, match="read pictures differently"):
        page(classify=cls, index=bands / "idx", retrieve=False)


def test_of_several_classes_one_is_outlined_or_any(page: Callable[..., Any], bands: Path) -> None:
    look, kept = page(segment=bands / "seg")
    (panel,) = kept["panels"]
    path = read_manifest(bands / "m.parquet").path(1)
    maps = load_adapter(bands / "seg").probabilities(panel.preprocessing.read(path))
    assert list(panel.cuts) == ["any of them", "1", "2"]
    for which, expected in (("any of them", maps[1:].sum(0)), ("1", maps[1]), ("2", maps[2])):
        outputs = look(str(path), *controls(panel, which=which, threshold=0.5))
        cut = 0.5
        if (expected >= cut).any():
            assert area(outputs[3]) == int((expected >= cut).sum())
        else:
            assert f"No {'lesion' if which == 'any of them' else which} found" in outputs[3].replace(
                "any of them", "lesion"
            )
        assert outputs[6] == which


def test_overlapping_classes_begin_at_their_own_thresholds(page: Callable[..., Any], bands: Path) -> None:
    sums = ["--set", "kind=multilabel", "--set", "classes={one: 1, two: 2}"]
    seg = train("segment", bands / "overlap", bands / "backbone", bands / "m.parquet", *SHORT, *sums)
    look, kept = page(segment=seg)
    (panel,) = kept["panels"]
    predictor = load_adapter(seg)
    path = read_manifest(bands / "m.parquet").path(1)
    planes = predictor.decide(predictor.probabilities(panel.preprocessing.read(path)))
    for plane, name, cut in zip(planes, ("one", "two"), predictor.thresholds, strict=True):
        outputs = look(str(path), *controls(panel, which=name))  # the slider still stands where "any" left it
        assert outputs[5].value == round(cut, 2)
        if plane.any():
            assert area(outputs[3]) == int(plane.sum())
        else:
            assert "No " in outputs[3]
