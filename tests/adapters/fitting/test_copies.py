"""Augmentation as the default of dense heads: the modality, the number of copies, and features of augmented copies."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from dinomed.adapters.fit import fit_head
from dinomed.adapters.fitting import loop, optimizers
from dinomed.adapters.fitting.augment import Augment, AugmentConfig, resolve_augmentation
from dinomed.adapters.fitting.build import build_adapter
from dinomed.adapters.fitting.config import FitConfig, TrainConfig
from dinomed.adapters.fitting.data import Splits
from dinomed.adapters.fitting.feature_sources.cached import CopiesFeatureSource
from dinomed.adapters.fitting.feature_sources.choose import (
    LIVE_PRODUCTS,
    MAX_CHEAP_COPIES,
    MAX_COPIES,
    MIN_COPIES,
    count_copies,
    open_feature_source,
)
from dinomed.adapters.fitting.feature_sources.live import LiveFeatureSource
from dinomed.adapters.fitting.optimizers import BatchedAdamW, BatchIndices, ParameterGroup
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.adapters.tasks.depth.config import DepthConfig
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.adapters.tasks.segment.mask_schema import BINARY
from dinomed.adapters.tasks.segment.masks import Masks
from dinomed.backbones.load import load_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.config import load_config, to_yaml
from dinomed.datasets.manifest import Manifest, read_manifest
from dinomed.errors import UsageError
from dinomed.features.compute import compute_features
from dinomed.images.read import read_image
from dinomed.io.prefetch import prefetch


def segmenter(**settings: object) -> SegmentConfig:
    return SegmentConfig.model_validate({"image_size": 32, "augment": "endoscopy", **settings})


def open_source(config: TrainConfig, backbone_folder: Path, manifest: Manifest, cache: Path) -> tuple[object, Masks]:
    backbone = load_backbone(backbone_folder)
    splits = Splits(manifest.select(split="train"), manifest.select(split="val"), made=False)
    masks = Masks(splits.train, Preprocessing(image_size=32), "train", BINARY)
    adapter = build_adapter(config, backbone, 1)
    return open_feature_source(backbone, splits, adapter, config, cache, masks.take), masks


def test_dense_heads_are_augmented_by_default_and_classifiers_are_not() -> None:
    assert SegmentConfig().augment.preset == DepthConfig().augment.preset == "auto"
    assert SegmentConfig().augment.active
    assert not ClassifyConfig().augment.active
    assert load_config(SegmentConfig, None, ["augment=none"]).augment.active is False


def test_a_given_setting_of_the_fit_changes_no_other_setting() -> None:
    for kind in (SegmentConfig, DepthConfig, ClassifyConfig):
        plain, changed = kind().fit, load_config(kind, None, ["fit.epochs=3"]).fit
        assert changed.epochs == 3
        assert changed.model_copy(update={"epochs": plain.epochs}) == plain


def test_the_length_of_a_fit_depends_on_the_head() -> None:
    linear, decoder = (load_config(SegmentConfig, None, [f"head.name={name}"]).fit for name in ("linear", "unet"))
    assert (linear.batch_size, linear.min_steps) == (32, 500)
    assert (decoder.batch_size, decoder.min_steps) == (8, 400)


def test_auto_is_the_modality_of_the_manifest_then_of_the_backbone_then_general(
    lesion_manifest: Path, tiny_backbone: Path
) -> None:
    manifest, backbone = read_manifest(lesion_manifest), load_backbone(tiny_backbone)
    auto = AugmentConfig(preset="auto")
    assert resolve_augmentation(auto, manifest, backbone).preset == "general"
    backbone.metadata["modality"] = "fundus"
    assert resolve_augmentation(auto, manifest, backbone) == AugmentConfig.model_validate("fundus")
    column = pa.array(["xray"] * len(manifest))
    named = Manifest(manifest.table.append_column("modality", column), manifest.root)
    assert resolve_augmentation(auto, named, backbone) == AugmentConfig.model_validate("xray")
    two = pa.array(["xray"] * (len(manifest) - 1) + ["fundus"])
    mixed = Manifest(manifest.table.append_column("modality", two), manifest.root)
    del backbone.metadata["modality"]
    assert resolve_augmentation(auto, mixed, backbone).preset == "general"
    light = AugmentConfig.model_validate("light")
    assert resolve_augmentation(light, named, backbone) is light
    assert DepthConfig().augmentation(named, backbone).scale == 0


def test_general_keeps_left_and_right_apart() -> None:
    general = AugmentConfig.model_validate("general")
    assert general.horizontal_flip == general.vertical_flip == 0
    assert general.rotate > 0
    assert general.scale > 0
    assert general.brightness > 0


def test_auto_takes_no_other_values_and_survives_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="preset auto has no values of its own"):
        load_config(SegmentConfig, None, ["augment={preset: auto, rotate: 30}"])
    (tmp_path / "again.yaml").write_text(to_yaml(SegmentConfig()))
    assert load_config(SegmentConfig, tmp_path / "again.yaml") == SegmentConfig()


def test_few_images_get_many_copies_and_many_images_few() -> None:
    config, cheap, costly = SegmentConfig(), 1e9, 1e11
    counts = [count_copies(config, count, costly) for count in (25, 200, 1000, 100_000)]
    assert counts == [MAX_COPIES, 11, 3, MIN_COPIES]
    assert [count_copies(config, count, cheap) for count in (25, 200)] == [MAX_CHEAP_COPIES, 11]
    decoder = segmenter(head={"name": "dpt"})  # 400 steps of 8 images: new ones in every step
    assert count_copies(decoder, 25, cheap) == 0
    assert count_copies(decoder, 25, cheap, shared=True) == MAX_CHEAP_COPIES  # other heads read the same copies
    assert count_copies(decoder, 25, costly) == MAX_COPIES
    assert count_copies(segmenter(augment_copies=5), 25, cheap) == 5
    assert count_copies(segmenter(augment_copies=0), 25, cheap) == 0
    assert count_copies(segmenter(augment="none"), 25, cheap) == 0
    assert count_copies(segmenter(tune="last:1"), 25, cheap) == 0
    small = segmenter(fit={"epochs": 20, "min_steps": 400, "batch_size": 16})  # 2 batches of 20 images: 200 passes
    assert count_copies(small, 20, LIVE_PRODUCTS / (300 * 20)) == 0
    short = segmenter(fit={"epochs": 2, "min_steps": 0})
    assert count_copies(short, 25, costly) == 0  # two passes: copies that are computed once would save nothing


def test_copies_have_the_features_and_the_masks_of_the_augmented_images(
    lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    config, manifest = segmenter(augment_copies=3, seed=5), read_manifest(lesion_manifest)
    source, masks = open_source(config, tiny_backbone, manifest, tmp_path)
    assert isinstance(source, CopiesFeatureSource)
    backbone, train = load_backbone(tiny_backbone), manifest.select(split="train")
    augment = Augment(config.augment, 3)
    rows, moved = [2, 7, 11], 0
    for pass_index in range(4):
        (batch,) = source.train([BatchIndices(torch.tensor(rows), pass_index)])
        for place, row in enumerate(rows):
            copy = (pass_index + row) % 4
            image = backbone.preprocessing.to_input(read_image(train.path(row)))
            plane = masks.take([row]).numpy()[0]
            expected = plane
            if copy:
                pixels, expected = augment(image.permute(1, 2, 0).numpy().copy(), plane, 5, copy, row)
                image = torch.from_numpy(pixels).permute(2, 0, 1)
                moved += 1
            features = compute_features(backbone, backbone.preprocessing.normalise(image)[None], (-1,), True)
            assert np.array_equal(batch.targets[place].numpy(), expected)
            # The cache keeps patch tokens in float16: 1 part in 2,000 of values up to about 5.
            assert torch.allclose(batch.features.patches[place], features.patches[0], atol=5e-3)
    assert moved == 9  # each image has been itself once, and each of its copies once
    plain = compute_features(backbone, backbone.preprocessing(read_image(train.path(0)))[None], (-1,), False)
    assert np.allclose(source.cls[0], plain.cls[0].numpy(), atol=1e-4)  # batches of other sizes round differently
    assert len(source.cls) == len(train)


def test_copies_of_another_seed_or_augmentation_are_computed_again(
    lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(lesion_manifest)
    settings = ({"seed": 0}, {"seed": 1}, {"augment": "fundus"}, {"seed": 0})
    keys = []
    for changed in settings:
        source, _ = open_source(segmenter(augment_copies=2, **changed), tiny_backbone, manifest, tmp_path)
        assert isinstance(source, CopiesFeatureSource)
        keys.append(source.cache.key.short)
    assert keys[0] == keys[3]
    assert len(set(keys)) == 3


def test_no_copies_means_new_augmentations_in_every_epoch(
    lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    source, _ = open_source(segmenter(augment_copies=0), tiny_backbone, read_manifest(lesion_manifest), tmp_path)
    assert isinstance(source, LiveFeatureSource)


def test_a_segmenter_is_fitted_on_copies_by_default(lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    config = SegmentConfig.model_validate(
        {"image_size": 32, "augment_copies": 2, "fit": {"epochs": 3, "min_steps": 60}}
    )
    result = fit_head(
        load_backbone(tiny_backbone), read_manifest(lesion_manifest), tmp_path / "seg", config, cache=tmp_path / "cache"
    )
    losses = [json.loads(line)["train_loss"] for line in (result.folder / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]


def test_a_fit_ends_after_its_processor_seconds_with_a_falling_learning_rate(
    lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    fit = {"seconds": 1.0, "epochs": 4, "patience": 4}
    config = SegmentConfig.model_validate({"image_size": 32, "augment_copies": 2, "fit": fit})
    result = fit_head(
        load_backbone(tiny_backbone), read_manifest(lesion_manifest), tmp_path / "seg", config, cache=tmp_path / "cache"
    )
    epochs = [json.loads(line)["epoch"] for line in (result.folder / "log.jsonl").read_text().splitlines()]
    assert 1 <= len(epochs) <= 4


def test_a_fit_with_seconds_ignores_the_number_of_steps(capsys: pytest.CaptureFixture[str]) -> None:
    for steps in (0, 10**6):
        timed = {"seconds": 40, "min_steps": steps, "batch_size": 8}
        assert count_copies(segmenter(fit=timed), 281, 1.9e9) == MIN_COPIES  # 8 copies would take longer than the fit
        assert count_copies(segmenter(fit=timed | {"seconds": 400}), 281, 1.9e9) == 8
    weight = torch.nn.Parameter(torch.zeros(1))
    BatchedAdamW([ParameterGroup([weight], 1.0)], FitConfig.model_validate(timed), 281, 0)
    assert "passes over" not in capsys.readouterr().err


def test_the_learning_rate_follows_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(optimizers, "process_time", lambda: now[0])
    config = FitConfig(epochs=2, batch_size=2, learning_rate=1.0, seconds=10)
    weight = torch.nn.Parameter(torch.zeros(1))
    adamw = optimizers.BatchedAdamW([optimizers.ParameterGroup([weight], 1.0)], config, 4, 0)
    rates, passes = [], []
    for epoch in (1, 2):
        for batch in adamw.batch_indices(epoch):
            passes.append(batch.pass_index)
            adamw.step(lambda: weight.square().sum())
            rates.append(adamw.optimizer.param_groups[0]["lr"])
            now[0] += 1
    assert len(rates) == 10
    assert passes == [0, 0, 1, 1, 2, 3, 3, 4, 4, 5]  # an epoch begins with a new pass
    assert rates == pytest.approx([(1 + np.cos(np.pi * second / 10)) / 2 for second in range(10)], abs=1e-4)
    assert adamw.progress == 1


def test_batches_that_were_loaded_in_advance_do_not_prolong_a_fit_with_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, ends = [0.0], list[float]()
    monkeypatch.setattr(optimizers, "process_time", lambda: now[0])
    model = torch.nn.Linear(1, 1)

    def loss(_: BatchIndices) -> torch.Tensor:
        now[0] += 1
        return model(torch.ones(1, 1)).square().sum()

    def validate() -> tuple[float, dict[str, float]]:
        ends.append(now[0])
        return 0.0, {"score": 0.0}

    loop.run_epochs(
        model, FitConfig(epochs=2, batch_size=2, seconds=10), count=4,
        batches=lambda indices: prefetch(lambda batch: batch, indices, 4, 2), batch_loss=loss, validate=validate,
        seed=0, folder=tmp_path, key="k", description="training",
    )  # fmt: skip
    assert ends == [5, 10]
