"""Rectangles that keep the proportions of images (`aspect` keep): sizes, features, classifiers, indexes, exports."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dinomed.adapters.bundle import read_record
from dinomed.adapters.evaluation.evaluate import evaluate
from dinomed.adapters.export.run import export
from dinomed.adapters.export.source import load_source
from dinomed.adapters.fit import fit_head
from dinomed.adapters.fitting.build import at_image_size
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.inference.shared import predict_many
from dinomed.adapters.retrieval.build import build_index
from dinomed.adapters.retrieval.pool import Pooling
from dinomed.adapters.retrieval.search import load_index
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.backbones.config import MAX_IMAGE_SIZE
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.preprocessing import Preprocessing, rectangle_size
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.scan.scan import scan
from dinomed.errors import UsageError
from dinomed.features.compute import compute_features
from dinomed.features.extract import extract, extract_usable
from dinomed.images.read import read_image

PATCH, SIDE = 8, 32
SHAPES = [(40, 60), (40, 60), (60, 40), (50, 50), (30, 150), (42, 61)]
"""Heights and widths; the last one has the rectangle of the first ones."""
ROUNDING = 1e-5  # float32 tokens of order 1; sums of other batches have another order


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([7, 8, 14, 16]), st.integers(1, 40))
def test_a_rectangle_has_whole_patches_the_proportions_of_the_image_and_a_bound(
    height: int, width: int, patch: int, count: int
) -> None:
    side = count * patch
    sizes = rectangle_size((height, width), side, patch)
    assert all(size % patch == 0 and size >= patch for size in sizes)
    short, long = sorted((height, width))
    assert max(sizes) <= 2 * side
    assert min(sizes) <= side
    if 2 * short >= long:  # the bound does not make it smaller
        assert min(sizes) == side
    scale = min(side / short, 2 * side / long)
    for size, length in zip(sizes, (height, width), strict=True):
        assert size == patch or abs(size - length * scale) <= patch / 2 + 1e-6
    assert rectangle_size((width, height), side, patch) == sizes[::-1]


@pytest.fixture(scope="module")
def keeping(backbone: FrozenBackbone) -> FrozenBackbone:
    return at_image_size(backbone, None, "keep")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """48 pictures of mixed shapes; those of class round are brighter."""
    folder, rng = tmp_path_factory.mktemp("mixed"), np.random.default_rng(0)
    rows = ["image,label,split"]
    for i in range(48):
        label = i % 2
        pixels = rng.integers(60 + 90 * label, 110 + 90 * label, (*SHAPES[i // 2 % len(SHAPES)], 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
        rows.append(f"{i:02}.png,{('flat', 'round')[label]},{('train', 'train', 'val', 'test')[i // 12]}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return scan(folder, labels="labels.csv").manifest


def test_features_of_mixed_shapes_are_those_of_each_image_alone(
    keeping: FrozenBackbone, mixed: Manifest, tmp_path: Path
) -> None:
    whole = extract(keeping, mixed, cache=tmp_path, batch_size=3, shard_size=7, blocks=(-2, -1))
    for row in range(len(mixed)):
        pixels = keeping.preprocessing(read_image(mixed.path(row)))
        assert tuple(pixels.shape[1:]) == rectangle_size(SHAPES[row // 2 % len(SHAPES)], SIDE, PATCH)
        alone = compute_features(keeping, pixels[None], (-2, -1), False)
        assert np.abs(whole.cls[row] - alone.cls[0].numpy()).max() < ROUNDING
        assert np.abs(whole.mean[row] - alone.mean[0].numpy()).max() < ROUNDING
    assert keeping.fingerprint != at_image_size(keeping, None, "square").fingerprint
    assert at_image_size(at_image_size(keeping, None, "square"), None, "keep").fingerprint == keeping.fingerprint


def test_an_image_that_cannot_be_read_does_not_shift_the_features_of_the_others(
    keeping: FrozenBackbone, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    for i, shape in enumerate([(40, 60), (40, 60), (60, 40), (60, 40), (40, 60)]):
        Image.fromarray(rng.integers(0, 255, (*shape, 3)).astype(np.uint8)).save(tmp_path / f"{i}.png")
    manifest = scan(tmp_path).manifest
    (tmp_path / "1.png").write_bytes(b"damaged")
    features, usable = extract_usable(keeping, manifest, cache=tmp_path / "cache", batch_size=4)
    assert usable.column("image") == ["0.png", "2.png", "3.png", "4.png"]
    for row in range(len(usable)):
        pixels = keeping.preprocessing(read_image(usable.path(row)))[None]
        assert np.abs(features.cls[row] - compute_features(keeping, pixels, (-1,), False).cls[0].numpy()).max() < 1e-5


def test_maps_of_rectangles_return_to_the_size_of_the_image(keeping: FrozenBackbone) -> None:
    reading, size = keeping.preprocessing, (40, 61)
    rows, columns = (side // PATCH for side in reading.input_size(size))
    assert (rows, columns) == (4, 6)
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    back = reading.from_input(torch.stack([y, x])[None].double(), size)[0]
    for values, length, count, step in ((back[0, :, 0], 40, rows, 1), (back[1, 0], 61, columns, 1)):
        places = ((torch.arange(length) + 0.5) / length).double()
        expected = places.clamp(0.5 / count, 1 - 0.5 / count)  # beyond the outermost centres the map is constant
        assert (values[::step] - expected).abs().max() < 1e-6  # the map is of float32 numbers


@pytest.fixture(scope="module")
def classifier(keeping: FrozenBackbone, mixed: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fits")
    config = ClassifyConfig.model_validate({"head": {"name": "logistic"}, "aspect": "keep"})
    square = at_image_size(keeping, None, "square")
    return fit_head(square, mixed, folder / "cls", config, cache=folder / "cache").folder


def test_a_classifier_predicts_mixed_shapes_as_each_image_alone(classifier: Path, mixed: Manifest) -> None:
    predictor = load_adapter(classifier)
    assert read_record(classifier).preprocessing.aspect == predictor.backbone.preprocessing.aspect == "keep"
    paths = [mixed.path(row) for row in range(36, 48)]
    together = predictor.predict(paths)
    for path, answer, shared in zip(
        paths, together, predict_many([predictor], [read_image(path) for path in paths])[0], strict=True
    ):
        (alone,) = predictor.predict([path])
        assert answer.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
        assert shared == pytest.approx(alone.probabilities, abs=1e-5)
    report = evaluate(classifier, mixed, "test", resamples=10)
    assert report["aspect"] == "keep"
    assert report["metrics"]["auroc"] > 0.9  # one class is brighter


def test_a_classifier_on_rectangles_is_exported_with_its_backbone_and_refused_where_only_squares_are(
    classifier: Path, mixed: Manifest, tmp_path: Path
) -> None:
    source = load_source(str(classifier))
    export(source, "safetensors", tmp_path / "out")
    path = mixed.path(4)
    expected, exported = (load_adapter(folder).predict([path])[0] for folder in (classifier, tmp_path / "out"))
    assert exported.probabilities == expected.probabilities
    assert "its shorter side has 32 px" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(UsageError, match=r"`format=onnx`.*takes squares only.*add `dynamic_size`"):
        export(source, "onnx", tmp_path / "onnx")
    with pytest.raises(UsageError, match=r"`format=monai`.*keeps their proportions \(aspect keep\); use onnx or saf"):
        export(source, "monai", tmp_path / "monai")


@pytest.mark.long
def test_a_classifier_on_rectangles_is_exported_to_onnx_for_any_size(classifier: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    report = export(load_source(str(classifier)), "onnx", tmp_path / "out", dynamic_size=True)  # compares rectangles
    assert report["format"] == "onnx"


def test_an_index_of_rectangles_finds_each_image(keeping: FrozenBackbone, mixed: Manifest, tmp_path: Path) -> None:
    build_index(keeping, mixed, tmp_path / "idx", cache=tmp_path / "cache", pooling=Pooling(tokens="cls+mean"))
    index = load_index(tmp_path / "idx")
    assert index.backbone.preprocessing.aspect == "keep"
    rows = [0, 4, 6, 8, 11]
    hits = index.search([mixed.path(row) for row in rows], k=1)
    assert [hit.row for (hit,) in hits] == rows
    assert [hit.similarity for (hit,) in hits] == pytest.approx([1.0] * len(rows), abs=1e-5)
    results = list(index.search_manifest(mixed, 1))
    assert [result.neighbors[0].row for result in results] == list(range(len(mixed)))
    build_index(keeping, mixed, tmp_path / "gem", cache=tmp_path / "cache", pooling=Pooling(tokens="gem"))
    hits = load_index(tmp_path / "gem").search([mixed.path(row) for row in rows], k=1)
    assert [hit.row for (hit,) in hits] == rows


def test_an_image_size_whose_rectangles_are_over_the_limit_is_refused(backbone: FrozenBackbone) -> None:
    with pytest.raises(UsageError, match=f"aspect keep: longer sides.*at most {MAX_IMAGE_SIZE // 2} px"):
        at_image_size(backbone, MAX_IMAGE_SIZE // 2 + PATCH, "keep")


def test_a_single_batch_of_any_sizes_has_squares() -> None:
    reading = Preprocessing(image_size=SIDE, aspect="keep", patch_size=PATCH)
    assert reading.stack([np.zeros((40, 60, 3), np.uint8), np.zeros((60, 40, 3), np.uint8)]).shape == (2, 3, SIDE, SIDE)
