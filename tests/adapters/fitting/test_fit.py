"""Fitting, saving and loading of adapters on synthetic lesions, and errors in the data."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn.functional import interpolate

from dinomed.adapters.bundle import read_record
from dinomed.adapters.evaluation.evaluate import evaluate
from dinomed.adapters.fit import fit_head
from dinomed.adapters.fitting.augment import AugmentConfig
from dinomed.adapters.fitting.config import FitConfig
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.adapters.tasks.classify.fit import class_weights
from dinomed.adapters.tasks.classify.predict import ClassifyPredictor
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.adapters.tasks.segment.fit import SegmenterFit
from dinomed.adapters.tasks.segment.mask_schema import BINARY
from dinomed.adapters.tasks.segment.predict import SegmentPredictor
from dinomed.backbones.config import ViTConfig
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone, save_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.config import load_config
from dinomed.configs import find_config
from dinomed.datasets.manifest import Manifest
from dinomed.errors import DinomedError, UsageError
from dinomed.features.compute import Features
from dinomed.images.read import read_image

QUICK = FitConfig(epochs=6, patience=3, batch_size=16, learning_rate=0.02, min_steps=0)
CLASSIFY = ClassifyConfig(fit=QUICK)
SEGMENT = SegmentConfig(fit=QUICK, image_size=48)


@pytest.fixture(scope="module")
def place(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backbone and a feature cache, where bundles are written beside them."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(tiny_backbone, folder / "ssl")
    return folder


@pytest.fixture(scope="module")
def backbone(place: Path) -> FrozenBackbone:
    return load_backbone(place / "ssl")


@pytest.fixture(scope="module")
def classifier(place: Path, backbone: FrozenBackbone, manifest: Manifest) -> Path:
    return fit_head(backbone, manifest, place / "cls", CLASSIFY, cache=place / "cache").folder


@pytest.fixture(scope="module")
def segmenter(place: Path, backbone: FrozenBackbone, manifest: Manifest) -> Path:
    return fit_head(backbone, manifest, place / "seg", SEGMENT, cache=place / "cache").folder


def change(manifest: Manifest, **columns: list) -> Manifest:
    """The manifest with columns replaced; None removes one."""
    table = manifest.table
    for name, values in columns.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        if values is not None:
            table = table.append_column(name, pa.array(values, pa.string()))
    return Manifest(table, manifest.root)


def test_a_classifier_learns_its_training_images(classifier: Path, manifest: Manifest) -> None:
    metrics = evaluate(classifier, manifest, "train")["metrics"]
    assert metrics["auroc"] > 0.65  # chance is 0.5 with a deviation of 0.06 for 40 images; the backbone is random
    assert metrics["n"] == len(manifest.select(split="train"))


def test_a_segmenter_beats_a_mask_of_everything(segmenter: Path, manifest: Manifest) -> None:
    metrics = evaluate(segmenter, manifest, "train")["metrics"]
    train = manifest.select(split="train")
    share = np.array([BINARY.read(train, i)[0].mean() for i in range(len(train))])
    assert metrics["dice"] > (2 * share / (1 + share)).mean() + 0.05  # by little: the backbone is random
    log = [json.loads(line) for line in (segmenter / "log.jsonl").read_text().splitlines()]
    assert log[-1]["train_loss"] < log[0]["train_loss"]


@pytest.mark.parametrize(
    ("keep", "preset", "few", "kept"),
    [
        ("auto", "light", 99, 4),
        ("auto", "light", 1, 1),
        ("auto", "none", 99, 1),
        ("last", "none", 1, 4),
        ("best", "light", 99, 1),
    ],
)
def test_auto_keeps_the_last_epoch_of_an_augmented_fit_if_val_has_few_groups(
    keep: str, preset: str, few: int, kept: int, place: Path, backbone: FrozenBackbone, manifest: Manifest,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    scores = iter([0.9, 0.8, 0.7, 0.6])
    monkeypatch.setattr(SegmenterFit, "validate", lambda fit: (score := next(scores), {"val_dice": score}))
    monkeypatch.setattr("dinomed.adapters.fitting.head_fit.FEW_VAL_GROUPS", few)
    fit = FitConfig(epochs=4, patience=2, batch_size=16, min_steps=0, keep=keep)  # type: ignore[arg-type]
    config = SegmentConfig(fit=fit, image_size=48, augment=AugmentConfig(preset=preset), augment_copies=2)  # type: ignore[arg-type]
    result = fit_head(backbone, manifest, tmp_path / "seg", config, cache=place / "cache")
    assert result.epoch == kept
    epochs = len((tmp_path / "seg" / "log.jsonl").read_text().splitlines())
    assert epochs == (4 if kept == 4 else 3)  # without early stopping, or two epochs after the best one


def test_a_loaded_adapter_predicts_bit_for_bit_what_the_saved_one_predicts(
    place: Path, segmenter: Path, classifier: Path, manifest: Manifest
) -> None:
    image = read_image(manifest.path(0))
    moved = place.parent / "elsewhere"  # bundle and backbone together: the path between them is relative
    if not moved.exists():
        shutil.copytree(place, moved)
    for name in ("seg", "cls"):
        original, moved_adapter = load_adapter(place / name), load_adapter(moved / name)
        assert original.metadata == moved_adapter.metadata
        if isinstance(original, SegmentPredictor):
            assert isinstance(moved_adapter, SegmentPredictor)
            map_ = original.probability(image)
            assert (map_ == moved_adapter.probability(image)).all()
            assert map_.shape == image.shape[:2]
            assert map_.dtype == np.float32
            assert 0 <= map_.min() < map_.max() <= 1
        else:
            assert isinstance(moved_adapter, ClassifyPredictor)
            assert original.probabilities(image) == moved_adapter.probabilities(image)
            assert sum(original.probabilities(image).values()) == pytest.approx(1, abs=1e-6)


def test_weights_depend_on_the_seed(
    place: Path, backbone: FrozenBackbone, manifest: Manifest, segmenter: Path, tmp_path: Path
) -> None:
    fit_head(backbone, manifest, tmp_path / "again", SEGMENT, cache=place / "cache")
    fit_head(backbone, manifest, tmp_path / "other", SEGMENT.model_copy(update={"seed": 1}), cache=place / "cache")
    hashes = [read_record(folder).weights_sha256 for folder in (segmenter, tmp_path / "again", tmp_path / "other")]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_record_is_complete_and_names_no_image(classifier: Path, segmenter: Path, manifest: Manifest) -> None:
    record = read_record(segmenter)
    assert record.backbone.path == "../ssl"
    assert record.preprocessing.image_size == 48
    assert record.threshold is not None
    assert read_record(classifier).classes == tuple(manifest.classes())
    assert "research use only" in record.purpose
    for folder in (classifier, segmenter):
        text = "".join(path.read_bytes().decode(errors="replace") for path in folder.iterdir())
        assert str(manifest.root) not in text
        for column in ("image", "group"):
            assert not any(value in text for value in manifest.column(column))


def test_training_images_are_left_out_by_content_whatever_their_name_or_split(
    classifier: Path, manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = evaluate(classifier, manifest, "test")
    assert clean["seen_in_training"] == {"images": 0, "of_seen_groups": 0, "left_out": False}
    train = manifest.select(split="train").take([0, 1])
    renamed = change(train, image=["x.png", "y.png"], split=["test"] * 2, group=None)
    for number, image in enumerate(("x.png", "y.png")):
        shutil.copy(train.path(number), tmp_path / image)
    moved = Manifest(renamed.table, tmp_path)
    with pytest.raises(UsageError, match=r"2 of 2 images of split 'test'.*such as x\.png.*`allow_seen=True`"):
        evaluate(classifier, moved)
    kept = evaluate(classifier, moved, allow_seen=True)["seen_in_training"]
    assert kept == {"images": 2, "of_seen_groups": 0, "left_out": False}
    groups = manifest.column("group")
    groups[manifest.column("split").index("test")] = groups[manifest.column("split").index("val")]
    fewer = evaluate(classifier, change(manifest, group=groups))
    assert fewer["seen_in_training"] == {"images": 0, "of_seen_groups": 1, "left_out": True}
    assert fewer["metrics"]["n"] == clean["metrics"]["n"] - 1
    assert "1 of" in (errors := capsys.readouterr().err)
    assert "they are left out" in errors


def test_float16_patches_cost_less_than_a_thousandth(segmenter: Path, manifest: Manifest) -> None:
    predictor = load_adapter(segmenter)
    pixels = torch.stack([predictor.backbone.preprocessing(read_image(manifest.path(i))) for i in range(8)])
    exact = predictor.logits(pixels).sigmoid()
    tokens = predictor.backbone(pixels)[0].patches
    rounded = tokens.half().float().transpose(1, 2).unflatten(2, predictor.backbone.grid())
    with torch.no_grad():
        stored = predictor.adapter(Features(tokens[:, 0], tokens[:, 0], rounded)).sigmoid()
    assert (stored - exact).abs().max() < 1e-3  # of probability


def test_class_weights_give_each_class_the_same_weight() -> None:
    labels = np.array([0, 0, 0, 1, 2, 2])
    weights = class_weights(labels, 3).double().numpy()
    assert np.bincount(labels, weights[labels]) == pytest.approx([2, 2, 2])  # N / classes


def test_the_multiscale_config_trains_and_predicts_at_the_images_own_size(
    manifest: Manifest, place: Path, tmp_path: Path
) -> None:
    config = load_config(SegmentConfig, find_config("configs/adapters/segment_multiscale.yaml"))
    config = config.model_copy(update={"fit": QUICK, "image_size": 32})
    torch.manual_seed(0)
    vit = VisionTransformer(ViTConfig(embed_dim=16, depth=5, num_heads=2, patch_size=8, image_size=32, layerscale=None))
    save_backbone(tmp_path / "five", vit, Preprocessing(image_size=32))
    five = load_backbone(tmp_path / "five")
    folder = fit_head(five, manifest, tmp_path / "seg", config, cache=tmp_path / "cache").folder
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert log[-1]["train_loss"] < log[0]["train_loss"]
    predictor = load_adapter(folder)
    assert isinstance(predictor, SegmentPredictor)
    assert predictor.adapter.linear.weight.shape == (1, 4 * 16, 1, 1)
    image = np.random.default_rng(0).integers(0, 255, (41, 67, 3), np.uint8)
    assert predictor.probability(image).shape == (41, 67)
    # each block has a say, and in the order of the config
    tokens = predictor.backbone(predictor.backbone.preprocessing(image)[None], config.head.blocks)
    patches = torch.cat([block.patches for block in tokens], -1).transpose(1, 2).unflatten(2, (4, 4))
    logits = predictor.adapter(Features(patches[:, :, 0, 0], patches[:, :, 0, 0], patches))
    resized = interpolate(logits.detach(), (41, 67), mode="bilinear")[0, 0].sigmoid().numpy()
    assert resized == pytest.approx(predictor.probability(image), abs=1e-6)
    with pytest.raises(UsageError, match="the backbone has blocks 0 to 2"):  # the tiny one
        fit_head(load_backbone(place / "ssl"), manifest, tmp_path / "no", config, cache=tmp_path / "cache")


# What is wrong with the data


def test_data_without_labels_masks_or_classes_is_refused(
    place: Path, backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path
) -> None:
    options = {"cache": place / "cache"}
    with pytest.raises(UsageError, match="no labels in a column 'label'"):
        fit_head(backbone, change(manifest, label=None), tmp_path / "a", CLASSIFY, **options)
    with pytest.raises(UsageError, match="no masks"):
        fit_head(backbone, change(manifest, mask=None), tmp_path / "b", SEGMENT, **options)
    with pytest.raises(UsageError, match="one class only"):
        fit_head(backbone, change(manifest, label=["x"] * len(manifest)), tmp_path / "c", CLASSIFY, **options)
    with pytest.raises(UsageError, match="no splits"):
        fit_head(backbone, change(manifest, split=None), tmp_path / "d", CLASSIFY, **options)
    assert not any(tmp_path.iterdir())


def test_a_missing_val_is_made_by_group_with_a_warning(
    place: Path, backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without = manifest.take([i for i, split in enumerate(manifest.column("split")) if split != "val"])
    result = fit_head(backbone, without, tmp_path / "cls", CLASSIFY, cache=place / "cache")
    assert "no split 'val'" in capsys.readouterr().err
    data = read_record(result.folder).training["data"]
    assert data["val_made_here"] is True
    assert data["train"]["images"] + data["val"]["images"] == len(without.select(split="train"))
    assert data["val"]["images"] > 0


def test_a_group_in_two_splits_is_refused(
    place: Path, backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path
) -> None:
    torn = change(manifest, group=["one patient"] * len(manifest))
    with pytest.raises(UsageError, match=r"one group has .* in train and .* in val"):
        fit_head(backbone, torn, tmp_path / "cls", CLASSIFY, cache=place / "cache")


def test_a_class_with_one_image_and_an_unknown_class_are_reported(
    place: Path, backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = manifest.column("split")
    labels = manifest.column("label")
    labels[splits.index("train")] = "single"
    labels[splits.index("test")] = "new"
    changed = change(manifest, label=labels)
    folder = fit_head(backbone, changed, tmp_path / "cls", CLASSIFY, cache=place / "cache").folder
    assert "only one training image of class 'single'" in capsys.readouterr().err
    metrics = evaluate(folder, changed, "test")["metrics"]
    assert "class 'new' (1 images), unknown to training" in capsys.readouterr().err
    assert metrics["per_class"]["new"]["recall"] == 0.0
    assert {"new", "single"} <= set(metrics["undefined_auroc"])
    assert np.isfinite(metrics["auroc"])
    with pytest.raises(UsageError, match="no image of split 'test' has one of the classes of the adapter"):
        evaluate(folder, change(manifest, label=["other"] * len(manifest)), "test")


def test_an_output_in_use_is_not_touched(
    place: Path, backbone: FrozenBackbone, manifest: Manifest, classifier: Path, tmp_path: Path
) -> None:
    before = (classifier / "adapter.json").read_bytes()
    with pytest.raises(UsageError, match="add `overwrite=True`"):
        fit_head(backbone, manifest, classifier, CLASSIFY, cache=place / "cache")
    assert (classifier / "adapter.json").read_bytes() == before
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        fit_head(backbone, manifest, tmp_path, CLASSIFY, cache=place / "cache", overwrite=True)


def test_a_refused_fit_leaves_no_folder(
    place: Path, backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path
) -> None:
    config = SegmentConfig.model_validate({"kind": "multiclass", "classes": {"a": 7}})
    with pytest.raises(UsageError, match="value 1 of no class"):
        fit_head(backbone, manifest, tmp_path / "seg", config, cache=place / "cache")
    assert not (tmp_path / "seg").exists()


def test_an_unfinished_fit_is_repeated_without_overwrite(
    place: Path, backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("dinomed.adapters.fit.save_bundle", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit_head(backbone, manifest, tmp_path / "cls", CLASSIFY, cache=place / "cache")
    with pytest.raises(UsageError, match="did not finish"):
        load_adapter(tmp_path / "cls")
    fit_head(backbone, manifest, tmp_path / "cls", CLASSIFY, cache=place / "cache")
    assert load_adapter(tmp_path / "cls").task == "classify"


# What is wrong with a bundle


@pytest.fixture
def copied(place: Path, segmenter: Path, tmp_path: Path) -> Path:
    for name in ("ssl", "seg"):
        shutil.copytree(place / name, tmp_path / name)
    return tmp_path / "seg"


def test_a_missing_backbone_is_named_with_the_remedy(copied: Path, place: Path) -> None:
    (copied.parent / "ssl").rename(copied.parent / "moved")
    with pytest.raises(DinomedError, match=r"ssl; say where: `backbone=PATH`"):
        load_adapter(copied)
    assert load_adapter(copied, backbone=copied.parent / "moved").task == "segment"


def test_another_backbone_is_refused_by_both_fingerprints(copied: Path, backbone: FrozenBackbone) -> None:
    wanted = read_record(copied).backbone.fingerprint
    torch.manual_seed(5)
    save_backbone(copied.parent / "ssl", VisionTransformer(backbone.vit.config), Preprocessing(image_size=32))
    fingerprint = load_backbone(copied.parent / "ssl", image_size=48).fingerprint
    with pytest.raises(UsageError, match=f"{wanted[:16]}.*{fingerprint[:16]}"):
        load_adapter(copied)
