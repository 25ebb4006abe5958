"""The check whether an image is unlike the training images: its distances, its limit, and when it is switched off."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dinomed.backbones.config import ViTConfig
from dinomed.backbones.load import load_backbone, save_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.datasets.manifest import Manifest, read_manifest
from dinomed.datasets.open import open_dataset
from dinomed.errors import DinomedError
from dinomed.features import familiarity
from dinomed.features.extract import extract
from dinomed.features.familiarity import (
    MIN_GROUPS,
    NEIGHBORS,
    TrainingReference,
    fit_reference,
    knn_distances,
    reference_from_tensors,
)


def unit_rows(count: int, seed: int, channels: int = 16) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, channels)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def reference_of(vectors: np.ndarray, groups: int = 50, controls: float = 1.0) -> TrainingReference:
    units = [str(row) for row in range(len(vectors))]
    distances = np.sort(knn_distances(vectors, vectors, units, units))
    return TrainingReference(vectors.astype(np.float16), distances, groups, -1, controls)


def test_distances_are_those_of_a_direct_computation_without_the_own_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(familiarity, "_BLOCK", 7)
    vectors, units = unit_rows(40, 0), [f"patient {i % 9}" for i in range(40)]
    expected = []
    for i in range(40):
        others = [float(vectors[i] @ vectors[j]) for j in range(40) if units[j] != units[i]]
        expected.append(1 - np.mean(sorted(others)[-NEIGHBORS:]))
    assert knn_distances(vectors, vectors, units, units) == pytest.approx(np.array(expected), abs=1e-6)  # float32
    queries = unit_rows(5, 1)
    alone = [1 - np.mean(sorted(vectors @ query)[-NEIGHBORS:]) for query in queries]
    assert knn_distances(queries, vectors) == pytest.approx(np.array(alone), abs=1e-6)


def test_few_images_of_the_same_kind_and_all_of_another_kind_are_unlike() -> None:
    rng = np.random.default_rng(0)
    centre = rng.normal(size=32)

    def like(count: int, middle: np.ndarray) -> np.ndarray:
        return (middle + 0.3 * rng.normal(size=(count, 32))).astype(np.float32)

    train = like(200, centre)
    reference = reference_of(train / np.linalg.norm(train, axis=1, keepdims=True))
    same, other = reference.judge(like(500, centre)), reference.judge(like(100, rng.normal(size=32)))
    assert np.mean([image.unlike for image in same]) <= 0.05
    assert all(image.unlike for image in other)
    assert all(image.percentile == 100 for image in other)
    middle = sorted(image.percentile for image in same)[250]
    assert 30 < middle < 75  # about half of the training images are nearer
    for image in same:
        assert image.unlike == (image.distance > reference.limit)


@pytest.mark.parametrize(
    ("groups", "controls", "reason"),
    [
        (MIN_GROUPS - 1, 1.0, "19 groups"),
        (MIN_GROUPS, 0.5, "only 50% of images with inverted colours"),
        (20, 0.9, None),
    ],
)
def test_the_check_says_why_it_is_not_available(groups: int, controls: float, reason: str | None) -> None:
    problem = reference_of(unit_rows(30, 0), groups, controls).problem
    assert problem is None if reason is None else reason in str(problem)


def test_a_reference_is_read_as_it_was_written_and_a_forged_one_is_refused() -> None:
    reference = reference_of(unit_rows(30, 0), 25, 0.75)
    tensors = reference.to_tensors()
    read = reference_from_tensors(tensors)
    assert read is not None
    assert (read.groups, read.block, read.controls) == (25, -1, 0.75)
    assert (read.vectors == reference.vectors).all()
    assert (read.distances == reference.distances).all()
    assert reference_from_tensors({}) is None
    for change in (
        {"distances": tensors["distances"][:-1]},
        {"vectors": tensors["vectors"] * torch.nan},
        {"vectors": tensors["vectors"].double()},
        {"counts": torch.tensor([1])},
    ):
        with pytest.raises(DinomedError, match="training images"):
            reference_from_tensors({**tensors, **change})
    with pytest.raises(DinomedError, match="incomplete"):
        reference_from_tensors({"vectors": tensors["vectors"]})


def fit_on(manifest: Manifest, folder: Path, cache: Path) -> TrainingReference:
    backbone = load_backbone(folder)
    return fit_reference(extract(backbone, manifest, cache=cache).mean, manifest.units(), backbone, manifest)


def test_a_training_of_few_groups_is_not_judged(lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    reference = fit_on(read_manifest(lesion_manifest).take(range(10)), tiny_backbone, tmp_path)
    assert "at least 20 are needed" in str(reference.problem)
    assert len(reference.vectors) == 0  # no features of images without need


def test_a_backbone_that_gives_all_images_nearly_the_same_features_is_not_trusted(
    lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(lesion_manifest)
    assert fit_on(manifest, tiny_backbone, tmp_path).problem is None
    same = lambda backbone, manifest, block: extract(backbone, manifest, cache=tmp_path).mean
    monkeypatch.setattr(familiarity, "control_features", same)  # inverted images look to it as the images themselves
    assert "inverted colours" in str(fit_on(manifest, tiny_backbone, tmp_path).problem)


def test_endoscopy_is_unlike_real_dermoscopy_and_held_out_dermoscopy_is_not(real_data: Path, tmp_path: Path) -> None:
    """Mean patch tokens of random weights hold colour and texture, in which the two differ."""
    torch.manual_seed(0)
    config = ViTConfig(embed_dim=64, depth=2, num_heads=2, patch_size=8, image_size=48, layerscale=None)
    save_backbone(tmp_path / "backbone", VisionTransformer(config), Preprocessing(image_size=48))
    backbone = load_backbone(tmp_path / "backbone")
    with open(real_data / "dermoscopy" / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    images: dict[str, dict[Path, str]] = {"train": {}, "test": {}}
    for split, count in (("train", 160), ("test", 100)):
        chosen = [row for row in rows if row["split"] == split]
        for row in chosen[:: len(chosen) // count][:count]:
            images[split][real_data / "dermoscopy" / row["image"]] = row["lesion_id"]
    images["colon"] = dict.fromkeys(sorted((real_data / "polyps" / "images").iterdir())[::4], "")
    parts = {}
    for name, paths in images.items():
        (tmp_path / name).mkdir()
        for path in paths:
            shutil.copy(path, tmp_path / name)
        parts[name] = open_dataset(tmp_path / name)
    means = {name: extract(backbone, part, cache=tmp_path).mean for name, part in parts.items()}
    lesions = {path.name: lesion for path, lesion in images["train"].items()}
    units = [lesions[name] for name in parts["train"].column("image")]
    reference = fit_reference(means["train"], units, backbone, parts["train"])
    assert reference.problem is None
    unlike = {name: np.mean([image.unlike for image in reference.judge(means[name])]) for name in ("test", "colon")}
    assert unlike["test"] <= 0.05
    assert unlike["colon"] >= 0.95
