"""Mask schemas from files to predictions, losses in double precision, windows, and segmenters."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dinomed.adapters.evaluation.evaluate import evaluate
from dinomed.adapters.fit import fit_head
from dinomed.adapters.fitting.config import FitConfig
from dinomed.adapters.inference.dense import DensePredictor, Views, _starts
from dinomed.adapters.inference.folder import predict_collection
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.adapters.tasks.segment.losses import build_loss
from dinomed.adapters.tasks.segment.mask_schema import MaskSchema, build_mask_schema, find_mask_schema
from dinomed.adapters.tasks.segment.masks import Masks, dice_of_logits, shrink_targets
from dinomed.adapters.tasks.segment.predict import SegmentPredictor
from dinomed.backbones.load import load_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.scan.scan import scan
from dinomed.errors import UsageError
from dinomed.images.labelmap import read_label_map, write_label_map
from dinomed.images.read import UnreadableImage, read_image

QUICK = FitConfig(epochs=8, patience=8, batch_size=8, learning_rate=0.02, min_steps=0, keep="best")
CLASSES = {"spot": 3, "bar": 200}
SPOTS = {"kind": "multilabel", "classes": {"spot": "spot", "bar": "bar"}}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """24 pictures with a red spot, a blue bar, both or nothing; label maps of 0, 3 and 200, bits of 1 and 2, and a
    binary mask of each."""
    folder = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    for kind in ("images", "masks", "sums", "spots", "bars"):
        (folder / kind).mkdir()
    rows = ["image,sum,spot,bar,split"]
    for i in range(24):
        pixels = rng.integers(90, 130, (40, 56, 3)).astype(np.uint8)
        spot, bar = np.zeros((40, 56), bool), np.zeros((40, 56), bool)
        y, x = rng.integers(2, 22, 2)
        if i % 4 != 3:
            spot[y : y + 14, x : x + 14] = True
        if i % 4 in (1, 2):
            bar[:, 40:50] = True
        pixels[spot] = [220, 30, 30]
        pixels[bar] = [30, 30, 220]
        Image.fromarray(pixels).save(folder / "images" / f"{i:02}.png")
        values = np.zeros((40, 56), np.uint8)
        values[spot], values[bar] = 3, 200
        Image.fromarray(values).save(folder / "masks" / f"{i:02}.png")
        Image.fromarray((spot + 2 * bar).astype(np.uint8)).save(folder / "sums" / f"{i:02}.png")
        Image.fromarray(spot).save(folder / "spots" / f"{i:02}.png")
        Image.fromarray(bar).save(folder / "bars" / f"{i:02}.png")
        split = ("train", "train", "val", "test")[i // 6]
        rows.append(f"images/{i:02}.png,sums/{i:02}.png,spots/{i:02}.png,bars/{i:02}.png,{split}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return scan(folder, labels="labels.csv", label_maps=True).manifest


def with_mask(manifest: Manifest, column: str) -> Manifest:
    return Manifest(manifest.table.drop_columns(["mask"]).append_column("mask", manifest.table[column]), manifest.root)


def fit(manifest: Manifest, folder: Path, backbone: Path, **settings: object) -> Path:
    config = SegmentConfig(fit=QUICK, image_size=48, **settings)
    return fit_head(load_backbone(backbone), manifest, folder, config, cache=folder.parent / "cache").folder


def test_exclusive_classes_from_masks_to_predicted_label_maps(
    shapes: Manifest, tiny_backbone: Path, tmp_path: Path
) -> None:
    # the bound below is for the few steps of QUICK on unchanged pictures; augmented ones need more steps
    folder = fit(shapes, tmp_path / "seg", tiny_backbone, kind="multiclass", classes=CLASSES, augment="none")
    metrics = evaluate(folder, shapes, "test")["metrics"]
    assert set(metrics["per_class"]) == {"spot", "bar"}
    # half of the test pictures have no bar, and one in four nothing; 0.5 is what empty predictions would get
    assert metrics["dice"] > 0.6
    predictor = load_adapter(folder)
    assert isinstance(predictor, SegmentPredictor)
    image = read_image(shapes.path(1))
    maps = predictor.probabilities(image)
    assert maps.shape == (3, 40, 56)
    assert maps.sum(axis=0) == pytest.approx(1, abs=1e-5)
    assert predictor.probability(image) == pytest.approx(maps[1] + maps[2], abs=1e-6)
    predict_collection(predictor, shapes, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "mask_schema.json").read_text())["values"] == {"background": 0} | CLASSES
    written = read_label_map(tmp_path / "out" / "images" / "01.png")
    assert set(np.unique(written)) <= {0, 3, 200}
    same = written == np.array([0, 3, 200])[maps.argmax(axis=0)]
    assert same.mean() > 0.999  # a batch of one rounds otherwise, where two classes are equally probable


def test_the_values_of_label_maps_are_found(shapes: Manifest) -> None:
    schema = find_mask_schema(shapes)
    assert schema.names == ("background", "3", "200")
    assert schema.reported == (1, 2)
    assert build_mask_schema("multiclass", CLASSES) == MaskSchema(
        "multiclass", ("background", "spot", "bar"), (0, 3, 200)
    )


@pytest.mark.parametrize("value", [-1, 65_536])
def test_values_that_no_label_map_holds_are_refused_before_the_training(tmp_path: Path, value: int) -> None:
    np.save(tmp_path / "m.npy", np.array([[[0], [value]]], np.int32))
    table = pa.table({"image": ["a.png"], "sha256": ["a"], "mask": ["m.npy"]})
    with pytest.raises(UsageError, match=rf"values from .*{value}.*; the values of a label map are 0 to 65,535"):
        find_mask_schema(Manifest(table, tmp_path))


def test_labels_that_overlap_from_columns_and_from_bits_are_the_same(
    shapes: Manifest, tiny_backbone: Path, tmp_path: Path
) -> None:
    columns = fit(shapes, tmp_path / "a", tiny_backbone, kind="multilabel", classes={"spot": "spot", "bar": "bar"})
    bits = with_mask(shapes, "sum")
    folder = fit(bits, tmp_path / "b", tiny_backbone, kind="multilabel", classes={"spot": 1, "bar": 2})
    by_columns, by_bits = load_adapter(columns), load_adapter(folder)
    assert isinstance(by_columns, SegmentPredictor)
    assert isinstance(by_bits, SegmentPredictor)
    image = read_image(shapes.path(1))
    assert (by_columns.probabilities(image) == by_bits.probabilities(image)).all()  # the same targets, the same seed
    assert by_columns.thresholds == by_bits.thresholds
    assert evaluate(columns, shapes, "test")["metrics"]["dice"] > 0.6
    predict_collection(by_columns, shapes, tmp_path / "out")
    assert set(np.unique(read_label_map(tmp_path / "out" / "images" / "01.png"))) <= {0, 1, 2, 3}


def test_values_that_no_class_has_are_listed(shapes: Manifest, tiny_backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"masks/01\.png: value 200 of no class \(known: background 0, spot 3\)"):
        fit(shapes, tmp_path / "seg", tiny_backbone, kind="multiclass", classes={"spot": 3})
    assert not (tmp_path / "seg" / "adapter.safetensors").exists()
    schema = build_mask_schema("multilabel", {"a": 1, "b": 2})
    assert schema is not None
    write_label_map(tmp_path / "m.png", np.full((40, 56), 4))
    table = shapes.take([0]).table.drop_columns(["mask"]).append_column("mask", pa.array(["m.png"], pa.string()))
    with pytest.raises(UsageError, match=r"m\.png: value 4 of no class"):
        schema.read(Manifest(table, tmp_path), 0)


@pytest.mark.parametrize(
    ("kind", "classes", "message"),
    [
        ("binary", {"a": 1, "b": 2}, "have one class"),
        ("multiclass", {"a": "column"}, "is a number"),
        ("multiclass", {"a": 1, "b": 1}, "same value"),
        ("multiclass", {"a": -1}, "a has the value -1; the values of a label map are 0 to 65,535"),
        ("multiclass", {"a": 1, "b": 65_536}, "b has the value 65536"),
        ("multiclass", {f"c{i}": i for i in range(1, 257)}, "257 with the background; at most 256"),
        ("multilabel", {f"c{i}": f"c{i}" for i in range(17)}, "17 that may overlap; at most 16"),
        ("multilabel", {}, "need"),
        ("multilabel", {"a": 3}, "1, 2, 4"),
        ("multilabel", {"a": 1, "b": "x"}, "not both"),
    ],
)
def test_settings_that_contradict_each_other(kind: str, classes: dict[str, int | str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentConfig(kind=kind, classes=classes)


def test_a_missing_column_and_a_path_that_leaves_the_folder(shapes: Manifest) -> None:
    schema = build_mask_schema("multilabel", {"a": "none", "b": "spot"})
    assert schema is not None
    with pytest.raises(UsageError, match="column 'none'"):
        schema.usable(shapes)
    bad = pa.array(["../../etc/passwd"] * len(shapes), pa.string())
    schema = build_mask_schema("multilabel", {"a": "bad", "b": "spot"})
    assert schema is not None
    with pytest.raises(UsageError, match="leaves the folder"):
        schema.usable(Manifest(shapes.table.append_column("bad", bad), shapes.root))


def test_label_maps_are_read_as_they_are_stored(tmp_path: Path) -> None:
    values = np.array([[0, 7], [300, 65535]])
    write_label_map(tmp_path / "a.png", values)
    assert (read_label_map(tmp_path / "a.png") == values).all()
    palette = Image.fromarray(np.array([[0, 5], [2, 1]], np.uint8), "P")
    palette.putpalette(list(range(255, -1, -1)) * 3)
    palette.save(tmp_path / "p.png")
    assert read_label_map(tmp_path / "p.png").tolist() == [[0, 5], [2, 1]]
    np.save(tmp_path / "n.npy", values[..., None].astype(np.float32))
    assert (read_label_map(tmp_path / "n.npy") == values).all()
    np.save(tmp_path / "half.npy", np.full((2, 2, 1), 0.5))
    Image.new("L", (8, 8)).save(tmp_path / "j.jpg")
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "c.png")
    for name, message in (("half.npy", "not integers"), ("j.jpg", "JPEG"), ("c.png", "colours")):
        with pytest.raises(UnreadableImage, match=message):
            read_label_map(tmp_path / name)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(0, 2**31), st.sampled_from(["multiclass", "multilabel"]))
def test_encoding_and_packing_lose_nothing(count: int, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    bits = kind == "multilabel"
    codes = {str(i): int(2**i if bits else 10 * i + 1) for i in range(count)}
    schema = build_mask_schema(kind, codes)
    assert schema is not None
    shape = (count if bits else 1, 6, 6)
    targets = rng.integers(0, 2 if bits else len(schema.names), shape).astype(np.uint8)
    values = schema.encode(targets)
    assert set(np.unique(values)) <= set(schema.values())
    assert (shrink_targets(targets, schema, Preprocessing(image_size=6)) == targets).all()  # of the same size
    masks = Masks.__new__(Masks)
    masks.exclusive = schema.exclusive
    masks.bits = max(1, int(np.ceil(np.log2(len(schema.names))))) if schema.exclusive else count
    planes = (targets[0] >> np.arange(masks.bits, dtype=np.uint8)[:, None, None]) & 1 if schema.exclusive else targets
    masks._packed = [(np.packbits(planes, axis=-1), 6)]
    assert (masks.take([0])[0].numpy() == targets).all()


@pytest.mark.parametrize("name", ["dice", "dice_ce", "dice_focal", "tversky"])
@pytest.mark.parametrize("exclusive", [True, False])
def test_losses_equal_their_formulas_in_double_precision(name: str, exclusive: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 7, 5, generator=generator)
    logits64 = logits.double()
    if exclusive:
        targets = torch.randint(0, 3, (2, 1, 7, 5), generator=generator).to(torch.uint8)
        p = logits64.softmax(1)
        y = torch.nn.functional.one_hot(targets[:, 0].long(), 3).movedim(-1, 1).double()
        cross = -(y * logits64.log_softmax(1)).sum(1).mean()
        focal = -(y * (1 - p) ** 2 * p.log()).mean()  # MONAI means over the classes too
    else:
        targets = (torch.rand(2, 3, 7, 5, generator=generator) > 0.5).to(torch.uint8)
        p, y = logits64.sigmoid(), targets.double()
        cross = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
        focal = -(y * (1 - p) ** 2 * p.log() + (1 - y) * p**2 * (1 - p).log()).mean()
    hit, both = (p * y).sum((2, 3)), p.sum((2, 3)) + y.sum((2, 3))
    smooth = 1e-5
    dice = (1 - (2 * hit + smooth) / (both + smooth)).mean()
    false, missed = (p * (1 - y)).sum((2, 3)), ((1 - p) * y).sum((2, 3))
    tversky = (1 - (hit + smooth) / (hit + 0.2 * false + 0.8 * missed + smooth)).mean()
    expected = {"dice": dice, "dice_ce": dice + cross, "dice_focal": dice + focal, "tversky": tversky}[name]
    loss = build_loss(name, exclusive, alpha=0.2)(logits, targets)
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=0)  # float32 sums over 35 pixels


def test_dice_leaves_the_background_out() -> None:
    schema = build_mask_schema("multiclass", {"a": 1})
    assert schema is not None
    targets = torch.tensor([[0, 1], [1, 0]])[None, None]
    logits = torch.stack([torch.full((2, 2), 0.5), torch.tensor([[1.0, 1.0], [0.0, 0.0]])])[None]
    assert dice_of_logits(logits, targets, schema).tolist() == [pytest.approx(0.5)]  # 1 of 2 found, 1 for nothing


class Ramp(DensePredictor):
    """Predicts the pixels of the image, so that blended windows must equal the image."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def activate(self, logits: torch.Tensor) -> torch.Tensor:
        return logits

    def results(self, pixels: torch.Tensor, sizes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        return self.batch_maps(pixels, sizes)

    def _whole(self, image: torch.Tensor, size: tuple[int, ...]) -> np.ndarray:
        return image.float().numpy()

    def _window_logits(self, part: torch.Tensor) -> torch.Tensor:
        return part.float()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(8, 32), st.floats(0, 0.9))
def test_windows_cover_every_pixel_and_equal_maps_blend_to_themselves(
    h: int, w: int, window: int, overlap: float
) -> None:
    image = torch.arange(3 * h * w).reshape(3, h, w) % 251
    out = Ramp(Views(window=window, overlap=overlap)).batch_maps(image[None], [(h, w)])[0]
    assert out.shape == (3, h, w)
    np.testing.assert_allclose(out, image.numpy(), atol=1e-2)  # of 250, by float32 weights from 1e-3 to 1


@pytest.mark.parametrize("order", [("spot", "bar", "background"), ("background", "spot", "bar")])
def test_masks_are_empty_where_all_is_background_in_any_order_of_the_classes(
    shapes: Manifest, order: Sequence[str]
) -> None:
    schema = build_mask_schema("multiclass", {name: (CLASSES | {"background": 0})[name] for name in order})
    assert schema is not None
    Masks(shapes.take([0]), Preprocessing(image_size=8), "train", schema)  # a spot
    with pytest.raises(UsageError, match="every mask of train is empty at 8 px"):
        Masks(shapes.take([3]), Preprocessing(image_size=8), "train", schema)


def test_windows_overlap_by_at_least_the_setting() -> None:
    starts = _starts(1000, 100, 0.5)
    assert (np.diff(starts) <= 50).all()
    assert starts[-1] == 900


def test_large_images_are_predicted_by_windows_of_the_training_size(
    shapes: Manifest, tiny_backbone: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="images of 56 px"):
        fit(shapes, tmp_path / "no", tiny_backbone, kind="multiclass", window=40)
    folder = fit(shapes, tmp_path / "seg", tiny_backbone, kind="multiclass", classes=CLASSES, window=56)
    predictor = load_adapter(folder)
    assert isinstance(predictor, SegmentPredictor)
    image = read_image(shapes.path(1))
    small = predictor.probabilities(image)
    plain = load_adapter(fit(shapes, tmp_path / "plain", tiny_backbone, kind="multiclass", classes=CLASSES))
    assert isinstance(plain, SegmentPredictor)
    assert small == pytest.approx(plain.probabilities(image), abs=1e-5)  # not larger than the window: squashed whole
    large = np.tile(image, (5, 4, 1))
    probabilities = predictor.probabilities(large)
    assert probabilities.shape == (3, 200, 224)
    assert probabilities.sum(axis=0) == pytest.approx(1, abs=1e-5)
    targets = np.tile(predictor.schema.read(shapes, 1)[0], (5, 4))
    right, wrong = (
        (np.array(maps).argmax(axis=0) == targets)[targets > 0].mean()
        for maps in (probabilities, plain.probabilities(large))
    )
    assert right > wrong + 0.1  # squashed whole, four spots in a row are smaller than a patch


def test_mirror_images_and_sizes_are_averaged(shapes: Manifest, tiny_backbone: Path, tmp_path: Path) -> None:
    folder = fit(shapes, tmp_path / "seg", tiny_backbone, flips=True, scales=(1.0, 2.0), **SPOTS)
    predictor = load_adapter(folder)
    assert isinstance(predictor, SegmentPredictor)
    image = read_image(shapes.path(1))
    probabilities = predictor.probabilities(image)
    assert predictor.probabilities(image[:, ::-1])[..., ::-1] == pytest.approx(probabilities, abs=1e-5)
    single = at_one_size(predictor, 1.0).maps(image)
    double = at_one_size(predictor, 2.0).maps(image)
    assert probabilities == pytest.approx((single + double) / 2, abs=1e-5)


def at_one_size(predictor: SegmentPredictor, scale: float) -> SegmentPredictor:
    """The same predictor at one size, mirrored."""
    once = object.__new__(SegmentPredictor)
    once.__dict__.update(predictor.__dict__ | {"views": Views(flips=True, scales=(scale,))})
    return once
