"""Augmentation: image and targets are transformed alike, values are not mixed, results are reproducible."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from dinomed.adapters.fitting.augment import Augment, AugmentConfig
from dinomed.adapters.fitting.image_batches import ImageBatches
from dinomed.adapters.fitting.optimizers import BatchIndices
from dinomed.adapters.tasks.segment.mask_schema import BINARY
from dinomed.adapters.tasks.segment.masks import Masks
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.datasets.manifest import Manifest, read_manifest
from dinomed.datasets.scan.scan import scan
from dinomed.errors import DinomedError
from dinomed.images.read import read_image
from dinomed.modalities import HEAD_PRESETS

SIDE = 64
MOVES = AugmentConfig(rotate=180, scale=0.3, shift=0.1, horizontal_flip=0.5, vertical_flip=0.5)


def picture(planes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of 8 px, and the targets that can be seen in each of the channels."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (planes, SIDE // 8, SIDE // 8), np.uint8).repeat(8, 1).repeat(8, 2)
    image = np.full((SIDE, SIDE, 3), 60, np.uint8)
    image[targets[0] == 1] = 200
    return image, targets


@pytest.mark.parametrize("preset", [name for name in HEAD_PRESETS if name != "none"])
def test_image_and_mask_move_together(preset: str) -> None:
    image, targets = picture()
    augment = Augment(AugmentConfig.model_validate(preset), 3)
    moved = 0
    for pass_index in range(12):
        changed, mask = augment(image, targets, 0, pass_index, 3)
        assert mask is not None
        assert mask.shape == targets.shape
        assert set(np.unique(mask)) <= {0, 1}
        gray = changed.mean(axis=2)
        inside, outside = np.median(gray[mask[0] == 1]), np.median(gray[mask[0] == 0])
        seen = gray > (inside + outside) / 2  # the colours may have changed, their order may not
        # Nearest against bilinear, and a blur of 1.5 px, differ at the borders of blocks of 8 px.
        assert (seen == (mask[0] == 1)).mean() > 0.9
        moved += not np.array_equal(mask, targets)
    assert moved > 6


def test_quarter_turns_move_pixels_without_mixing_them_and_rectangles_keep_their_shape() -> None:
    augment = Augment(AugmentConfig(quarter_turn=1.0), 3)
    square = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    turned = [augment(square, square[None, :, :, 0], 0, pass_index, 0) for pass_index in range(24)]
    expected = {np.rot90(square, turns).tobytes() for turns in range(4)}
    assert {image.tobytes() for image, _ in turned} == expected  # each of the four occurs, and nothing else
    assert all(mask is not None and np.array_equal(mask[0], image[:, :, 0]) for image, mask in turned)
    wide = square[:40]
    turned = [augment(wide, wide[None, :, :, 0], 0, pass_index, 0) for pass_index in range(24)]
    assert {image.tobytes() for image, _ in turned} == {wide.tobytes(), np.rot90(wide, 2).tobytes()}
    assert all(mask is not None and np.array_equal(mask[0], image[:, :, 0]) for image, mask in turned)


def test_several_planes_labels_and_unknown_depths_are_moved_and_never_mixed() -> None:
    image, planes = picture(6)
    augment = Augment(MOVES, 3)
    for pass_index in range(5):
        _, many = augment(image, planes, 1, pass_index, 0)
        assert many is not None
        for plane, alone in zip(many, planes, strict=True):
            _, single = augment(image, alone[None], 1, pass_index, 0)
            assert single is not None
            assert np.array_equal(plane, single[0])
    labels = np.random.default_rng(1).choice(np.array([0, 7, 200], np.uint8), (1, SIDE, SIDE))
    depth = np.where(labels == 7, np.nan, labels).astype(np.float32)
    _, augmented_labels = augment(image, labels, 2, 0, 0)
    _, deep = augment(image, depth, 2, 0, 0)
    assert augmented_labels is not None
    assert deep is not None
    assert set(np.unique(augmented_labels)) <= {0, 7, 200}
    assert np.array_equal(np.isnan(deep), augmented_labels == 7)
    assert np.array_equal(deep[augmented_labels != 7], augmented_labels[augmented_labels != 7].astype(np.float32))


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_augmentation_accepts_any_channels_and_both_bit_depths(channels: int, kind: type) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (SIDE, SIDE, channels), np.uint8)
    augmented_input = image if kind is np.uint8 else image.astype(np.float32) / 255
    changed, targets = Augment(AugmentConfig.model_validate("endoscopy"), channels)(augmented_input, None, 0, 0, 0)
    assert targets is None
    assert changed.shape == image.shape
    assert changed.dtype == kind
    if kind is np.float32:
        assert changed.min() >= 0
        assert changed.max() <= 1


def test_augmentation_depends_only_on_seed_pass_and_row() -> None:
    image, targets = picture()
    augment = Augment(MOVES, 3)
    alone = [augment(image, targets, 4, pass_index, row)[0] for pass_index in range(3) for row in range(8)]
    assert len({crop.tobytes() for crop in alone}) > 20
    with ThreadPoolExecutor(4) as pool:  # in any order, in any thread
        numbers = [(pass_index, row) for pass_index in range(3) for row in range(8)]
        mixed = list(pool.map(lambda n: augment(image, targets, 4, *n)[0], numbers[::-1]))[::-1]
    assert all(np.array_equal(first, in_batch) for first, in_batch in zip(alone, mixed, strict=True))
    assert not np.array_equal(alone[0], augment(image, targets, 5, 0, 0)[0])


def test_depth_maps_are_not_scaled() -> None:
    for preset in HEAD_PRESETS:
        assert AugmentConfig.model_validate(preset).without_scale().scale == 0
    assert AugmentConfig.model_validate({"preset": "light", "rotate": 40}).rotate == 40
    assert not AugmentConfig.model_validate("none").active


def test_unaugmented_images_equal_those_of_prediction(lesion_manifest: Path) -> None:
    manifest, reading = read_manifest(lesion_manifest).select(split="val"), Preprocessing(image_size=48)
    masks = Masks(manifest, Preprocessing(image_size=48), "val", BINARY)
    pictures = ImageBatches(manifest, reading, masks.take, None, 0)
    draws = [BatchIndices(torch.tensor([2, 0]), 0), BatchIndices(torch.tensor([1]), 0)]
    (pixels, targets), (plain_pixels, _) = pictures.batches(draws)
    assert torch.equal(pixels[1], reading(read_image(manifest.path(0))))
    assert torch.equal(plain_pixels[0], reading(read_image(manifest.path(1))))
    assert torch.equal(targets, masks.take([2, 0]))


def test_an_image_that_changed_after_the_scan_is_named(lesion_manifest: Path, tmp_path: Path) -> None:
    import shutil

    lesions = read_manifest(lesion_manifest)
    shutil.copytree(lesions.root, tmp_path / "lesions")
    manifest = Manifest(lesions.table, tmp_path / "lesions")
    manifest.path(1).write_bytes(b"no image")
    pictures = ImageBatches(manifest, Preprocessing(), lambda rows: torch.zeros(len(rows)), None, 0)
    with pytest.raises(DinomedError, match=r"SYN_\w+\.jpg: changed since the scan; scan again$"):
        list(pictures.batches([BatchIndices(torch.tensor([0, 1]), 0)]))


@pytest.mark.long
def test_real_lesions_stay_under_their_masks(real_data: Path) -> None:
    manifest = scan(real_data / "dermoscopy", make_split=False).manifest
    if not manifest.has("mask"):
        pytest.skip("no masks beside these images")
    rows = [i for i, mask in enumerate(manifest.column("mask")) if mask is not None][:6]
    chosen = manifest.take(rows)
    masks = Masks(chosen, Preprocessing(image_size=112), "test", BINARY)
    reading = Preprocessing(image_size=112)
    augment = Augment(AugmentConfig.model_validate("dermoscopy"), 3)
    plain, changed = (ImageBatches(chosen, reading, masks.take, augmentation, 0) for augmentation in (None, augment))
    draw = BatchIndices(torch.arange(len(rows)), 0)
    (a, targets), (b, moved) = plain.load(draw), changed.load(draw)
    assert not torch.equal(targets, moved)
    for before, mask, after, moved_mask in zip(a, targets, b, moved, strict=True):
        darker = [
            p.mean(0)[m[0] == 1].mean() < p.mean(0)[m[0] == 0].mean() for p, m in ((before, mask), (after, moved_mask))
        ]
        assert darker[0] == darker[1]  # a lesion that is darker than the skin around it still is
