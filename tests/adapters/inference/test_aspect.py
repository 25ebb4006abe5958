"""Padding to the square (`aspect` pad): places of maps, training and prediction, records, and refusals of exports."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import avg_pool2d

from dinomed.adapters.bundle import read_record
from dinomed.adapters.evaluation.evaluate import evaluate_in_full
from dinomed.adapters.evaluation.mask_baselines import baseline_guesses
from dinomed.adapters.export.run import export
from dinomed.adapters.export.source import ExportSource, load_source
from dinomed.adapters.fit import fit_head
from dinomed.adapters.fitting.build import at_image_size
from dinomed.adapters.fitting.config import FitConfig
from dinomed.adapters.inference.dense import Views
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.inference.shared import Backbones, predict_many
from dinomed.adapters.tasks.depth.maps import shrink_depth
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.adapters.tasks.segment.mask_schema import BINARY, MaskSchema
from dinomed.adapters.tasks.segment.masks import Masks, shrink_targets
from dinomed.adapters.tasks.segment.predict import SegmentPredictor
from dinomed.apps.demos.explore.tokens import PatchTokens
from dinomed.apps.pages.evaluation import build_evaluation_page
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.explore.images import embed_images
from dinomed.features.compute import Features
from dinomed.features.extract import extract
from dinomed.images.read import read_image

PATCH, SIDE = 8, 64


def centre_of(weights: np.ndarray) -> np.ndarray:
    """The centre of mass (y, x) of a map (H, W), px."""
    places = np.stack(np.mgrid[: weights.shape[0], : weights.shape[1]]) + 0.5
    return (places * weights).sum(axis=(1, 2)) / weights.sum()


@settings(deadline=None, max_examples=40)
@given(st.integers(30, 240), st.integers(30, 240), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["square", "pad"]))
def test_a_mark_in_the_image_is_at_its_place_in_the_map_to_half_a_patch(
    height: int, width: int, down: float, right: float, aspect: str
) -> None:
    preprocessing = Preprocessing(image_size=SIDE, mean=(0.0,), std=(1.0,), channels=1, aspect=aspect)
    box = preprocessing.box((height, width))
    step = height / box.height, width / box.width  # px of the image in one px of the square
    image = np.zeros((height, width, 1), np.uint8)
    size = [max(1, round(length * 2)) for length in step]  # the mark has two px of the square
    top, left = round(down * (height - size[0])), round(right * (width - size[1]))
    image[top : top + size[0], left : left + size[1]] = 255
    patches = avg_pool2d(preprocessing(image)[None], PATCH)
    found = preprocessing.from_input(patches, (height, width))[0, 0].numpy()
    assert found.shape == (height, width)
    highest = np.argwhere(found >= found.max() * (1 - 1e-5)) + 0.5  # several at the border, where nothing is beyond
    mark = np.array([top, left]) + np.array(size) / 2
    apart = np.abs(highest - mark) / step  # px of the square
    # one px more: a mark on the border of two patches, and its blur by the resizing
    assert apart.max(axis=1).min() <= PATCH / 2 + 1


@pytest.mark.parametrize("size", [(48, 128), (120, 40), (64, 64)])
@pytest.mark.parametrize("side", [SIDE, 2 * SIDE])
def test_a_map_linear_in_x_and_y_stays_linear_at_every_size_of_the_square(size: tuple[int, int], side: int) -> None:
    preprocessing = Preprocessing(image_size=side, mean=(0.0,), std=(1.0,), channels=1, aspect="pad")
    centres = (torch.arange(SIDE, dtype=torch.float64) + 0.5) / SIDE  # of the map, in sides of the square
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    found = preprocessing.from_input(torch.stack([y, x])[None], size)[0]
    box = preprocessing.box(size)
    down, right = (
        ((torch.arange(count, dtype=torch.float64) + 0.5) * length / count + start) / side
        for count, length, start in zip(size, (box.height, box.width), (box.top, box.left), strict=True)
    )
    first, last = centres[0], centres[-1]  # beyond the outermost centres the map is constant
    expected = torch.stack(torch.meshgrid(down.clamp(first, last), right.clamp(first, last), indexing="ij"))
    assert (found - expected).abs().max() < 1e-12


@pytest.mark.parametrize("scale", [1, 2])
def test_maps_of_other_sizes_are_cut_out_at_the_place_of_the_image_in_them(
    segmenter: Path, scale: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, record = load_adapter(segmenter), read_record(segmenter)
    changed = record.model_copy(update={"usage": record.usage | {"views": {"flips": True, "scales": (float(scale),)}}})
    predictor = SegmentPredictor(changed, trained.adapter, trained.backbone)

    def linear_in_y(features: Features) -> torch.Tensor:
        assert features.patches is not None
        rows, columns = features.patches.shape[-2:]
        return ((torch.arange(rows) + 0.5) / rows)[:, None].expand(1, 1, 1, rows, columns)

    monkeypatch.setattr(predictor.adapter, "probe_logits", linear_in_y)
    side = scale * SIDE
    top, height = ((20, 24), (40, 47))[scale - 1]  # of 130x48 px in 64 and in 128 px, rounded to whole px
    y = (top + (np.arange(48) + 0.5) * height / 48) / side
    found = predictor.maps(np.zeros((48, 130, 3), np.uint8))
    assert np.abs(found - 1 / (1 + np.exp(-y))[:, None]).max() < 1e-6


def test_padding_keeps_proportions_in_the_centre_and_becomes_zero() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(90, 160, (50, 100, 3)).astype(np.uint8)
    padded = Preprocessing(image_size=SIDE, aspect="pad")
    assert padded.box((50, 100)) == (16, 0, 32, 64)
    assert padded.box((100, 30)) == (0, 22, 64, 19)
    assert padded.box((1, 10_000)).height == 1
    pixels, values = padded(image), padded(image.astype(np.float32) / 255)
    border = torch.cat([pixels[:, :16], pixels[:, 48:]], dim=1)
    assert border.abs().max() <= 0.5 / 255 / min(padded.std) + 1e-6  # rounded to 8 bits
    assert torch.cat([values[:, :16], values[:, 48:]], dim=1).abs().max() < 1e-6
    assert (pixels - values)[:, 16:48].abs().max() < 2 / 255 / min(padded.std)  # resized with two roundings
    turned = padded(np.ascontiguousarray(image.transpose(1, 0, 2)))
    assert (turned - pixels.transpose(1, 2)).abs().max() < 2.1 / 255 / min(padded.std)
    square = np.ascontiguousarray(image[:, :50])
    assert torch.equal(padded(square), Preprocessing(image_size=SIDE)(square))


def test_targets_are_padded_with_background_and_depths_with_unknown() -> None:
    labels, padded = np.full((1, 20, 40), 0, np.uint8), Preprocessing(image_size=8, aspect="pad")
    schema = MaskSchema("multiclass", ("spot", "background"), (7, 0))  # the background is not the first class
    small = shrink_targets(labels, schema, padded)
    assert (small[0, 2:6] == 0).all()
    assert (small[0, :2] == 1).all()
    assert (small[0, 6:] == 1).all()
    assert shrink_targets(labels + 1, BINARY, padded)[0].sum(axis=1).tolist() == [0, 0, 8, 8, 8, 8, 0, 0]
    depth = shrink_depth(np.full((40, 20), 3, np.float32), padded)
    assert np.isnan(depth[:, :2]).all()
    assert (depth[:, 2:6] == 3).all()


@pytest.fixture(scope="module")
def segmenter(spots: Manifest, backbone: FrozenBackbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fits")
    fit = FitConfig(epochs=20, patience=20, batch_size=6, learning_rate=0.02, min_steps=0)
    config = SegmentConfig(fit=fit, image_size=SIDE, aspect="pad", augment="none")
    result = fit_head(backbone, spots, folder / "seg", config, cache=folder / "cache")
    assert result.validation["dice"] > 0.6  # at the size of the images; 0 with targets at other places than the images
    assert abs(result.validation["dice"] - result.validation["dice_at_training_size"]) < 0.15
    return result.folder


@pytest.mark.parametrize("views", [Views(), Views(flips=True), Views(flips=True, scales=(1.0, 2.0)), Views(window=56)])
def test_predicted_masks_are_where_the_spots_are(segmenter: Path, spots: Manifest, views: Views) -> None:
    trained, record = load_adapter(segmenter), read_record(segmenter)
    changed = record.model_copy(update={"usage": record.usage | {"views": vars(views)}})
    predictor = SegmentPredictor(changed, trained.adapter, trained.backbone)
    for row in (0, 1, 18, 19):
        image = read_image(spots.path(row))
        (result,) = predictor.results(predictor.preprocessing(image)[None], [image.shape[:2]])
        known = BINARY.read(spots, row)[0]
        apart = np.abs(centre_of(result.mask.astype(float)) - centre_of(known.astype(float)))
        assert apart.max() <= PATCH / 2 * max(image.shape) / SIDE, row


def test_the_record_keeps_the_aspect_and_other_features_are_not_used(
    segmenter: Path, spots: Manifest, backbone: FrozenBackbone, tmp_path: Path
) -> None:
    shared = Backbones()
    predictor = load_adapter(segmenter, load=shared)
    assert predictor.backbone.preprocessing.aspect == read_record(segmenter).preprocessing.aspect == "pad"
    squared = at_image_size(backbone, SIDE)
    assert squared.preprocessing.aspect == "square"
    assert predictor.backbone.fingerprint != squared.fingerprint
    assert at_image_size(squared, None, "pad").fingerprint == predictor.backbone.fingerprint
    folders = {extract(frozen, spots, cache=tmp_path).folder for frozen in (squared, predictor.backbone)}
    assert len(folders) == 2
    image = read_image(spots.path(1))
    ((maps,), (tokens,)) = predict_many([predictor, PatchTokens(predictor.backbone)], [image])
    assert maps.shape == (1, 120, 40)
    expected = embed_images(predictor.backbone, [image])[0].tokens
    assert tokens.shape == expected.shape == (8, 8, 32)  # pictures of patches use the square
    assert np.abs(tokens - expected).max() < 1e-5


def test_the_mean_mask_is_compared_without_its_padding(spots: Manifest) -> None:
    masks = Masks(spots, Preprocessing(image_size=SIDE, aspect="pad"), "train", BINARY)
    wide = spots.take([0])
    guess = baseline_guesses(wide, masks.of_rows([0]), 1, BINARY)["mean mask"](0, (48, 128))
    known = BINARY.read(wide, 0)
    assert guess.shape == known.shape
    assert (guess != known).mean() < 0.02  # the outline, by the smaller size


@pytest.mark.parametrize("kind", ["monai", "timm", "transformers"])
def test_formats_that_describe_only_squares_are_refused(kind: str, backbone: FrozenBackbone, tmp_path: Path) -> None:
    source = ExportSource(at_image_size(backbone, None, "pad"))
    with pytest.raises(UsageError, match=f"`format={kind}`.*pads them.*use onnx or safetensors"):
        export(source, kind, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_padding_adapter_is_exported_with_its_backbone(segmenter: Path, spots: Manifest, tmp_path: Path) -> None:
    export(load_source(str(segmenter)), "safetensors", tmp_path / "out")
    written, original = load_adapter(tmp_path / "out"), load_adapter(segmenter)
    assert written.backbone.preprocessing.aspect == "pad"
    image = read_image(spots.path(0))
    assert np.array_equal(written.output_of_image(image), original.output_of_image(image))
    assert "in the centre of a square of 64 x 64 px" in (tmp_path / "out" / "README.md").read_text()


def test_an_evaluation_states_the_aspect(segmenter: Path, spots: Manifest) -> None:
    evaluation = evaluate_in_full(segmenter, spots, "val", resamples=10)
    assert evaluation.result["aspect"] == "pad"
    assert "aspect: pad" in build_evaluation_page(evaluation, spots)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic_size", [False, True])
def test_a_padding_adapter_is_exported_to_onnx(segmenter: Path, tmp_path: Path, dynamic_size: bool) -> None:
    pytest.importorskip("onnxruntime")
    report = export(load_source(str(segmenter)), "onnx", tmp_path / "out", dynamic_size=dynamic_size)  # compares both
    assert report["format"] == "onnx"
