"""Training on random windows: their positions, their masks, and the agreement with prediction."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dinomed.adapters.evaluation.evaluate import evaluate
from dinomed.adapters.fit import fit_head
from dinomed.adapters.fitting.augment import Augment, AugmentConfig
from dinomed.adapters.fitting.image_batches import ImageBatches
from dinomed.adapters.fitting.optimizers import BatchIndices
from dinomed.adapters.fitting.windows import RandomWindows
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.adapters.tasks.segment.mask_schema import BINARY
from dinomed.adapters.tasks.segment.masks import THRESHOLDS, WholeMasks, choose_thresholds, dice_of_maps, shrink_targets
from dinomed.adapters.tasks.segment.predict import SegmentPredictor
from dinomed.backbones.load import load_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.scan.scan import scan
from dinomed.errors import UsageError
from dinomed.images.read import read_image


def windows(targets: np.ndarray, side: int, share: float, outside: int = 0) -> RandomWindows:
    """Of one targets, which is given as it is; its values from 1 on are kinds of things."""
    kinds = range(1, int(targets.max()) + 1)
    marked = lambda planes: np.stack([planes[0] == kind for kind in kinds]) if kinds else np.zeros_like(planes)
    return RandomWindows(side, share, lambda row: targets, marked, lambda part: part, outside)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(4, 40), st.integers(0, 2**31), st.data())
def test_image_and_targets_are_cut_alike_and_contain_a_pixel_of_a_class(
    height: int, width: int, side: int, seed: int, data: st.DataObject
) -> None:
    y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    targets = np.zeros((1, height, width), np.uint8)
    targets[0, y, x] = 1
    image = np.stack([np.full((height, width), 7), *np.mgrid[:height, :width]], -1).astype(np.uint8)
    image[y, x, 0] = 200
    window, known = windows(targets, side, 1.0, outside=9).draw(image, seed, 0, 0)
    if max(height, width) <= side:
        assert np.array_equal(window, image)
        assert np.array_equal(known, targets)
        return
    assert window.shape == (side, side, 3)
    assert ((window[..., 0] == 200) == (known[0] == 1)).all()
    assert (known == 1).sum() == 1
    assert ((window[..., 0] == 0) == (known[0] == 9)).all()  # black is what lies outside
    inside = known[0] != 9
    assert inside.sum() == min(side, height) * min(side, width)
    rows, columns = window[..., 1][inside], window[..., 2][inside]
    top, left = rows.min(), columns.min()
    assert np.array_equal(window[inside], image[top : top + side, left : left + side].reshape(-1, 3))


def test_windows_depend_only_on_seed_pass_and_row() -> None:
    targets = np.zeros((1, 90, 70), np.uint8)
    targets[0, 10:20, 10:20] = 1
    image = np.random.default_rng(0).integers(0, 255, (90, 70, 3)).astype(np.uint8)
    sampler = windows(targets, 32, 0.5)
    first = sampler.draw(image, 1, 2, 3)[0]
    sampler.draw(image, 9, 9, 9)
    assert np.array_equal(sampler.draw(image, 1, 2, 3)[0], first)
    other_windows = [sampler.draw(image, *numbers)[0] for numbers in ((2, 2, 3), (1, 3, 3), (1, 2, 4))]
    assert not any(np.array_equal(window, first) for window in other_windows)


def test_the_share_of_windows_with_a_class_is_kept_and_small_classes_are_as_frequent_as_large_ones() -> None:
    targets = np.zeros((1, 400, 400), np.uint8)
    targets[0, 300:400, :150] = 1  # 15,000 px
    targets[0, 5:7, 390:392] = 2  # 4 px
    for share, low, high in ((0.0, 0.0, 0.15), (0.5, 0.18, 0.35), (1.0, 0.43, 0.57)):
        sampler, image = windows(targets, 40, share), np.zeros((400, 400, 1), np.uint8)
        seen = [set(np.unique(sampler.draw(image, 0, pass_index, 0)[1])) - {0} for pass_index in range(400)]
        assert sum(bool(kinds) for kinds in seen) >= 0.9 * share * 400
        # of 400 draws at p = 1/2 (1/4) a share is within 0.075 (0.065) at three standard deviations
        assert low <= sum(2 in kinds for kinds in seen) / 400 <= high
    empty = windows(np.zeros((1, 50, 400), np.uint8), 40, 1.0)
    assert {empty.place(np.zeros((1, 50, 400), bool), np.random.default_rng(i))[0] for i in range(99)} == set(range(11))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """20 gray pictures of 200 x 240 px, noisy, with spots of 12 px, dark, in a third of those windows of 40 px."""
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    rows = ["image,split"]
    for i in range(20):
        pixels = rng.integers(120, 136, (200, 240, 3)).astype(np.uint8)
        mask = np.zeros((200, 240), np.uint8)
        for _ in range(8):
            y, x = rng.integers(0, 188), rng.integers(0, 228)
            mask[y : y + 12, x : x + 12] = 255
        pixels[mask > 0] = 60
        Image.fromarray(pixels).save(folder / "images" / f"{i:02}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{i:02}.png")
        rows.append(f"images/{i:02}.png,{'test' if i >= 16 else 'val' if i >= 12 else 'train'}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return scan(folder, labels="labels.csv").manifest


def test_windows_match_their_masks_with_augmentation_too(large: Manifest) -> None:
    whole = WholeMasks(large, "train", BINARY)
    reads = Preprocessing(image_size=48, mean=(0.0,) * 3, std=(1.0,) * 3)
    drawn = RandomWindows(40, 1.0, whole.read, whole.marked, lambda part: shrink_targets(part, BINARY, reads))
    augment = Augment(AugmentConfig(rotate=180, horizontal_flip=0.5, vertical_flip=0.5, scale=0.2, shift=0.1), 3)
    nothing = lambda rows: torch.zeros(len(rows))
    draw = BatchIndices(torch.arange(8), 3)
    before = None
    for change in (None, augment):
        pixels, targets = ImageBatches(large, reads, nothing, change, 0, drawn).load(draw)
        assert (pixels.shape, targets.shape) == ((8, 3, 48, 48), (8, 1, 48, 48))
        assert targets.flatten(1).any(1).all()
        dark = pixels[:, :1] < 90 / 255
        assert (dark == targets.bool()).float().mean() > 0.98  # but for edges, by the two ways of resizing
        assert before is None or not torch.equal(targets, before)
        before = targets


SMALL = {"image_size": 48, "window": 48, "seed": 1}
FIT = {"epochs": 6, "patience": 6, "batch_size": 6, "min_steps": 60, "learning_rate": 0.01, "keep": "best"}


@pytest.fixture(scope="module")
def fitted(large: Manifest, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = SegmentConfig.model_validate({**SMALL, "crop": 0.5, "fit": FIT})
    place = tmp_path_factory.mktemp("fitted")
    return fit_head(load_backbone(tiny_backbone), large, place / "seg", config, cache=place / "cache").folder


@pytest.mark.long
def test_training_on_windows_learns_details_that_resizing_loses(
    fitted: Path, large: Manifest, tiny_backbone: Path, tmp_path: Path
) -> None:
    plain = SegmentConfig.model_validate({"image_size": 48, "fit": FIT, "seed": 1})
    fit_head(load_backbone(tiny_backbone), large, tmp_path / "plain", plain, cache=tmp_path / "cache")
    ours, squashed = (
        evaluate(folder, large, "test", resamples=20)["metrics"]["dice"] for folder in (fitted, tmp_path / "plain")
    )
    assert ours > squashed + 0.1


@pytest.mark.long
def test_epoch_and_threshold_are_chosen_on_predictions_by_windows(fitted: Path, large: Manifest) -> None:
    predictor = load_adapter(fitted)
    assert isinstance(predictor, SegmentPredictor)
    assert predictor.views.window == 48
    val = large.select(split="val")
    maps = list(predictor.manifest_maps(val))
    (threshold,), score = choose_thresholds(val, lambda row, size: maps[row], BINARY)
    record = predictor.metadata["validation"]
    assert predictor.threshold == threshold
    assert record["dice"] == pytest.approx(score, abs=1e-6)
    by_hand = [dice_of_maps(probability, BINARY.read(val, row), BINARY) for row, probability in enumerate(maps)]
    assert record["dice_by_windows"] == pytest.approx(np.mean(by_hand), abs=1e-6)


def test_thresholds_are_chosen_with_the_views_of_prediction(
    large: Manifest, tiny_backbone: Path, tmp_path: Path
) -> None:
    settings = {"image_size": 48, "flips": True, "scales": (1.0, 3.0), "fit": {**FIT, "min_steps": 0}}
    config = SegmentConfig.model_validate(settings)
    folder = fit_head(load_backbone(tiny_backbone), large, tmp_path / "seg", config, cache=tmp_path / "s").folder
    predictor = load_adapter(folder)
    assert isinstance(predictor, SegmentPredictor)
    val = large.select(split="val")
    maps = [predictor.probability(read_image(val.path(row))) for row in range(len(val))]
    masks = [BINARY.read(val, row)[0] == 1 for row in range(len(val))]
    scores = []
    for cut in THRESHOLDS:  # by hand, in double precision
        dice = []
        for probability, targets in zip(maps, masks, strict=True):
            guess = probability >= cut
            dice.append(2 * (guess & targets).sum() / (guess.sum() + targets.sum()))
        scores.append(dice)
    means, best = np.mean(scores, axis=1), np.array(scores[int(np.argmax(np.mean(scores, axis=1)))])
    errors = [(best - dice).std(ddof=1) / np.sqrt(len(dice)) for dice in np.array(scores)]
    near = [
        cut for cut, mean, error in zip(THRESHOLDS, means, errors, strict=True) if max(means) - mean <= error + 1e-6
    ]
    assert abs(predictor.threshold - 0.5) == pytest.approx(min(abs(cut - 0.5) for cut in near))
    assert predictor.metadata["validation"]["dice"] == pytest.approx(
        means[THRESHOLDS.index(predictor.threshold)], abs=1e-6
    )


def test_invalid_window_settings_are_refused(large: Manifest, tiny_backbone: Path, tmp_path: Path) -> None:
    for settings, message in (
        ({"crop": 0.5}, "set their size: window=PX"),
        ({"crop": 1.5, "window": 48}, "less than or equal to 1"),
        ({"crop": 0.5, "window": 48, "fit": {"optimizer": "lbfgs"}}, "set adamw with augment, tune or crop"),
    ):
        with pytest.raises(ValueError, match=message):
            SegmentConfig.model_validate(settings)
    plain = SegmentConfig(image_size=48, window=48)
    with pytest.raises(UsageError, match=r"images of 240 px.*`settings=\['crop=0\.5'\]`"):
        fit_head(load_backbone(tiny_backbone), large, tmp_path / "seg", plain, cache=tmp_path / "s")
