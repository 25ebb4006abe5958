"""What the pages say of a picture, for every kind of adapter; the browser is in tests/browser."""

import base64
import os
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
from dinomed.adapters.tasks.segment.lesions import field_of_view
from dinomed.apps import cli
from dinomed.apps.demos import launch
from dinomed.apps.demos.serve import private_environment
from dinomed.backbones.config import ViTConfig
from dinomed.backbones.load import load_backbone, save_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.datasets.manifest import read_manifest
from dinomed.explore.images import patch_tokens
from dinomed.explore.similarity import similarity_maps
from dinomed.images.intensity import IntensityConfig
from dinomed.images.read import read_image, read_shown

SHORT = ["--set", "fit.epochs=1", "--set", "fit.min_steps=0", "--set", "image_size=32"]
BANDS = 5


def train(kind: str, out: Path, backbone: Path, data: Path, *more: str) -> Path:
    cli.invoke(["train", kind, "-b", str(backbone), "--data", str(data), "-o", str(out), "--quiet", "--json", *more])
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
            adapters = [arguments.pop(task) for task in ("segment", "classify", "depth") if task in arguments]
            launch.serve_demo(adapters, **arguments, device="cpu")
        return Answers(kept["panels"]), kept

    return call


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    with private_environment():
        yield


class Answers:
    """The answers of an app for a file, which is put where uploads are."""

    def __init__(self, panels: list[Any]) -> None:
        from dinomed.apps.demos.page import App

        self.app = App(panels)

    def __call__(self, path: Path | str, **settings: Any) -> dict[str, Any]:
        upload = Path(os.environ["GRADIO_TEMP_DIR"]) / "hash" / f"image{Path(path).suffix}"
        upload.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, upload)
        return self.app.answer({"id": "a", "path": str(upload), "settings": settings})

    def area(self, answer: dict[str, Any], threshold: float) -> int:
        """The area of the mask of full size."""
        request = {"key": answer["panels"]["segment"]["key"], "threshold": threshold}
        return self.app.panels["segment"].mask({**request, "min_share": 0, "largest_only": False})["area"]


@pytest.mark.slow
@pytest.mark.parametrize("tune", [pytest.param("last:1", marks=pytest.mark.long), "lora:2"])
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
    answer = look(path)
    classes, cases = answer["panels"]["classify"]["html"], answer["panels"]["retrieve"]["html"]
    expected = (load_adapter(seg).probability(image) >= 0.02) & field_of_view(image)
    assert look.area(answer, 0.02) == int(expected.sum())
    for name, value in load_adapter(cls).probabilities(image).items():
        assert name in classes
        assert f"{100 * value:.1f}%" in classes
    base = load_index(index)
    assert kept["panels"][1].predictor.backbone.fingerprint != base.backbone.fingerprint
    assert "cases-hint" in classes
    assert "cases-hint" in cases


@pytest.mark.slow
def test_with_corrections_the_page_gets_the_patch_features_of_the_backbone(
    page: Callable[..., Any], tmp_path: Path, lesion_manifest: Path, tiny_backbone: Path
) -> None:
    seg = train("segment", tmp_path / "seg", tiny_backbone, lesion_manifest, *SHORT)
    path = read_manifest(lesion_manifest).path(0)
    look, _ = page(segment=seg)
    plain = look(path)
    assert plain["panels"]["segment"]["patches"] is None
    look, kept = page(segment=seg, save=tmp_path / "saved")
    answer = look(path)
    assert look.area(answer, 0.02) > 0
    assert answer["panels"]["segment"]["map"] == plain["panels"]["segment"]["map"]
    sent = answer["panels"]["segment"]["patches"]
    codes = np.frombuffer(base64.b64decode(sent["features"]), np.int8).reshape(sent["rows"], sent["columns"], -1)
    assert codes.shape[-1] == sent["components"]
    tokens = patch_tokens(load_backbone(tiny_backbone), [read_image(path)])
    exact = similarity_maps(tokens, 0, (1, 1))[0]
    assert np.abs(similarity_maps([codes.astype(np.float32)], 0, (1, 1))[0] - exact).max() < 0.02  # int8
    assert kept["panels"][0].has_patches


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
    answer = look(manifest.path(0))
    classes, cases = answer["panels"]["classify"]["html"], answer["panels"]["retrieve"]["html"]
    panel = kept["panels"][0]
    pixels = panel.preprocessing.read(manifest.path(0))
    field = field_of_view(read_shown(manifest.path(0), BANDS, panel.preprocessing.intensity))
    expected = (load_adapter(bands / "seg").probability(pixels) >= 0.02) & field
    assert look.area(answer, 0.02) == int(expected.sum())
    for name, value in load_adapter(bands / "cls").probabilities(pixels).items():
        assert f"{name}</span>" in classes
        assert f"{100 * value:.1f}%" in classes
    assert "no longer where" not in cases
    assert cases.count("<img") == 6  # each case beside the picture, drawn by their first channels
    assert "2 of the index are this picture itself" in cases
    tifffile.imwrite(tmp_path / "pages.tif", np.load(manifest.path(0)).transpose(2, 0, 1), photometric="minisblack")
    assert look.area(look(tmp_path / "pages.tif"), 0.02) == look.area(answer, 0.02)
    Image.new("RGB", (50, 40)).save(tmp_path / "colour.jpg")
    answer = look(tmp_path / "colour.jpg")
    assert "does not fit a backbone that takes 5" in answer["error"]
    assert os.environ["GRADIO_TEMP_DIR"] not in answer["error"]


def test_examples_are_refused_where_no_colour_picture_can_be_taken(page: Callable[..., Any], bands: Path) -> None:
    (bands / "pictures").mkdir()
    Image.new("RGB", (50, 40)).save(bands / "pictures" / "a.png")
    with pytest.raises(launch.UsageError, match=r"--examples: .* takes 5 channels"):
        page(classify=bands / "cls", examples=bands / "pictures")


def test_a_classifier_and_an_index_that_read_differently_are_refused(
    page: Callable[..., Any], bands: Path, user_folder: Path
) -> None:
    with pytest.raises(launch.UsageError, match="read pictures differently"):
        page(classify=user_folder / "cls", index=bands / "idx", retrieve=False)


def test_of_several_classes_one_is_outlined_or_any(page: Callable[..., Any], bands: Path) -> None:
    look, kept = page(segment=bands / "seg")
    panel = kept["panels"][0]
    path = read_manifest(bands / "m.parquet").path(1)
    maps = load_adapter(bands / "seg").probabilities(panel.preprocessing.read(path))
    field = field_of_view(read_shown(path, BANDS, panel.preprocessing.intensity))
    assert list(panel.cuts) == ["any of them", "1", "2"]
    for which, expected in (("any of them", maps[1:].sum(0)), ("1", maps[1]), ("2", maps[2])):
        answer = look(path, segment={"which": which})
        assert look.area(answer, 0.5) == int(((expected >= 0.5) & field).sum())
        assert answer["panels"]["segment"]["which"] == which


def test_overlapping_classes_begin_at_their_own_thresholds(page: Callable[..., Any], bands: Path) -> None:
    sums = ["--set", "kind=multilabel", "--set", "classes={one: 1, two: 2}"]
    seg = train("segment", bands / "overlap", bands / "backbone", bands / "m.parquet", *SHORT, *sums)
    look, _ = page(segment=seg)
    predictor = load_adapter(seg)
    path = read_manifest(bands / "m.parquet").path(1)
    for name, cut in zip(("one", "two"), predictor.thresholds, strict=True):
        assert look(path, segment={"which": name})["panels"]["segment"]["cut"] == round(cut, 3)


def test_a_model_that_gives_no_number_is_a_message_and_no_empty_mask(tmp_path: Path) -> None:
    from dinomed.apps.demos.segment import SegmentPanel

    class Broken:
        threshold = 0.5

        def probability(self, image: np.ndarray) -> np.ndarray:
            return np.full(image.shape[:2], np.nan, np.float32)

    Image.new("RGB", (50, 40), (200, 150, 140)).save(tmp_path / "a.png")
    answer = Answers([SegmentPanel(Broken())])(tmp_path / "a.png")["panels"]["segment"]
    assert "no valid number" in answer["html"]
    assert "map" not in answer


def test_a_level_and_its_threshold_are_the_same_mask() -> None:
    from dinomed.apps.demos.segment import LEVELS, probability_levels

    probability = np.random.default_rng(0).random((60, 70)).astype(np.float32)
    probability[0, :3] = 0, 0.5, 1
    levels = probability_levels(probability)
    for level in range(1, LEVELS + 1):
        assert ((levels >= level) == (probability >= level / LEVELS)).all()


def test_a_map_is_reduced_to_the_size_of_the_page() -> None:
    from dinomed.apps.demos.segment import MAP_PX, reduce_map

    large = np.zeros((3000, 4000), np.float32)
    large[:1500] = 1
    reduced = reduce_map(large)
    assert reduced.shape == (768, MAP_PX)
    assert reduced.mean() == pytest.approx(0.5, abs=1e-3)  # areas are kept
    assert reduce_map(large[:700, :900]).shape == (700, 900)
