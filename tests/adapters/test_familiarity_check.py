"""The check of unlike images in adapters and indexes: the same answer in a batch, in a table, and in a report."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dinomed.adapters.fit import fit_head, join_splits
from dinomed.adapters.fitting.config import BackboneTuneConfig, FitConfig
from dinomed.adapters.fitting.data import Splits
from dinomed.adapters.inference.dense import Views
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.inference.shared import predict_many
from dinomed.adapters.predictor import Predictor
from dinomed.adapters.retrieval.build import build_index
from dinomed.adapters.retrieval.search import load_index
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.adapters.training_images import FamiliarityCheck
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import Manifest, read_manifest, write_manifest
from dinomed.errors import DinomedError
from dinomed.features.extract import extract
from dinomed.features.familiarity.fit import fit_reference
from dinomed.images.read import read_image

Run = Callable[..., tuple[int, str, str]]
QUICK = FitConfig(epochs=1, batch_size=16, min_steps=0)


@pytest.fixture(scope="module")
def made(tiny_backbone: Path, lesion_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapters `seg` (four blocks, augmented), `cls` and `tuned`, and the index `idx`."""
    folder = tmp_path_factory.mktemp("made")
    backbone, manifest = load_backbone(tiny_backbone), read_manifest(lesion_manifest)
    configs: dict[str, Any] = {
        "seg": SegmentConfig(fit=QUICK, image_size=32),
        "cls": ClassifyConfig(fit=QUICK),
        "tuned": ClassifyConfig(fit=QUICK, tune=BackboneTuneConfig(last=1, learning_rate=0.05)),
    }
    for name, config in configs.items():
        fit_head(backbone, manifest, folder / name, config, cache=folder / "cache")
    build_index(backbone, manifest, folder / "idx", cache=folder / "cache")
    return folder


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A green and violet board, as no lesion is."""
    board = np.indices((40, 40)).sum(axis=0) // 4 % 2
    path = tmp_path / "odd" / "board.png"
    path.parent.mkdir()
    Image.fromarray(np.array([[20, 255, 20], [200, 0, 255]], np.uint8)[board]).save(path)
    return path


@pytest.mark.parametrize("name", ["seg", "cls", "tuned"])
def test_a_bundle_keeps_the_features_of_its_own_backbone(name: str, made: Path, lesion_manifest: Path) -> None:
    predictor = load_adapter(made / name)
    assert predictor.check is not None
    reference = predictor.check.reference
    assert reference.problem is None
    train = read_manifest(lesion_manifest).select(split="train")
    if name == "seg":  # it was trained again on train and val
        splits = read_manifest(lesion_manifest)
        train = join_splits(Splits(train, splits.select(split="val"), made=False))
    means = extract(predictor.backbone, train, cache=made / "cache", blocks=(reference.block,)).mean
    expected = fit_reference(means, train.units(), predictor.backbone, train, reference.block)
    assert reference.judge(means) == expected.judge(means)
    assert sum(image.unlike for image in reference.judge(means)) <= 1


@pytest.mark.parametrize("views", [Views(), Views(flips=True), Views(scales=(0.5, 1.0)), Views(window=24)])
def test_the_check_of_a_batch_does_not_depend_on_how_maps_are_predicted(
    views: Views, made: Path, lesion_manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = read_image(read_manifest(lesion_manifest).path(0))
    plain = load_adapter(made / "seg")
    assert plain.check is not None
    ((expected,),) = predict_many([plain.check], [image])
    monkeypatch.setattr("dinomed.adapters.tasks.segment.predict.views_of", lambda usage: views)
    predictor = load_adapter(made / "seg")
    pixels = predictor.preprocessing(image)[None]
    predictor.batch_maps(pixels, [image.shape[:2]])  # type: ignore[attr-defined]
    (checked,) = predictor.check_batch(pixels) or []
    assert checked.distance == pytest.approx(expected.distance, abs=1e-6)


@pytest.mark.parametrize("block", [99, -99, 0.5])
def test_features_of_an_unknown_block_are_refused(block: Any, made: Path) -> None:
    predictor = load_adapter(made / "cls")
    assert predictor.check is not None
    with pytest.raises(DinomedError, match=f"are of block {block}, which is unknown"):
        FamiliarityCheck(replace(predictor.check.reference, block=block), predictor.backbone)


def test_an_adapter_that_reads_several_sizes_checks_the_whole_image(
    made: Path, lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path, run: Run
) -> None:
    manifest = read_manifest(lesion_manifest)
    config = ClassifyConfig(fit=QUICK, scales=(1.0, 1.5))
    fit_head(load_backbone(tiny_backbone), manifest, tmp_path / "sizes", config, cache=made / "cache")
    image = read_image(manifest.path(0))
    plain = load_adapter(made / "cls")
    assert plain.check is not None
    ((expected,),) = predict_many([plain.check], [image])
    predictor = load_adapter(tmp_path / "sizes")
    (checked,) = predictor.check_batch(predictor.preprocessing(image)[None]) or []
    assert checked.distance == pytest.approx(expected.distance, abs=1e-6)
    code, text, _ = run("evaluate", tmp_path / "sizes", "--data", lesion_manifest, "--resamples", "10", "--json")
    assert (code, json.loads(text)["unlike_training"]["of"]) == (0, len(manifest.select(split="test")))


def test_the_check_runs_the_backbone_once_for_a_batch(
    made: Path, lesion_manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = load_adapter(made / "cls")
    calls: list[int] = []
    real = predictor.backbone.forward
    monkeypatch.setattr(predictor.backbone, "forward", lambda *given: calls.append(1) or real(*given))
    pixels = torch.stack([predictor.preprocessing(read_image(read_manifest(lesion_manifest).path(i))) for i in (0, 1)])
    predictor.results(pixels, [(32, 32)] * 2)
    assert len(predictor.check_batch(pixels) or []) == 2
    assert calls == [1]
    predictor.results(pixels, [(32, 32)] * 2)
    predictor.check_batch(pixels.clone())  # other images: not the features of the last batch
    assert calls == [1] * 3


@pytest.mark.parametrize("name", ["seg", "cls"])
def test_predict_writes_which_images_are_unlike_the_training(
    name: str, made: Path, odd: Path, lesion_manifest: Path, tmp_path: Path, run: Run
) -> None:
    manifest = read_manifest(lesion_manifest)
    train = [row for row, split in enumerate(manifest.column("split")) if split == "train"]
    Image.open(manifest.path(train[0])).save(odd.parent / "seen.png")
    assert run("predict", made / name, odd.parent, "-o", tmp_path / "out", "--json")[0] == 0
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert (rows["board.png"]["unlike_training"], rows["board.png"]["distance_percentile"]) == ("yes", "100.0")
    assert rows["seen.png"]["unlike_training"] == "no"


def test_a_group_is_unlike_the_training_if_one_of_its_images_is(
    made: Path, lesion_manifest: Path, tmp_path: Path, run: Run
) -> None:
    manifest = read_manifest(lesion_manifest)
    assert run("predict", made / "cls", lesion_manifest, "--unit", "group", "-o", tmp_path / "g", "--json")[0] == 0
    assert run("predict", made / "cls", lesion_manifest, "-o", tmp_path / "i", "--json")[0] == 0
    tables = []
    for name in ("g", "i"):
        with open(tmp_path / name / "predictions.csv", newline="") as file:
            tables.append(list(csv.DictReader(file)))
    group_of = dict(zip(manifest.column("image"), manifest.column("group"), strict=True))
    worst: dict[str, float] = {}
    for row in tables[1]:
        group = group_of[row["image"]]
        worst[group] = max(worst.get(group, 0), float(row["distance_percentile"]))
    assert {row["group"]: float(row["distance_percentile"]) for row in tables[0]} == worst


@pytest.mark.parametrize("name", ["seg", "cls"])
def test_evaluate_says_how_many_images_are_unlike(
    name: str, made: Path, lesion_manifest: Path, tmp_path: Path, run: Run
) -> None:
    arguments = ("evaluate", made / name, "--data", lesion_manifest, "--resamples", 10)
    code, out, err = run(*arguments, "-o", tmp_path / "page", "--json")
    assert code == 0, err
    unlike = json.loads(out)["unlike_training"]
    count = read_manifest(lesion_manifest).column("split").count("test")
    assert (unlike["of"], unlike["problem"]) == (count, None)
    line = f"{unlike['images']} of {count} images are unlike the training images"
    assert line in (tmp_path / "page" / "report.html").read_text()
    assert line in " ".join(run(*arguments)[1].split())


def few_groups(lesion_manifest: Path, path: Path) -> Manifest:
    """The same images as pictures of eight patients; train has six."""
    manifest = read_manifest(lesion_manifest)
    splits = manifest.column("split")
    patients = [f"patient {['train', 'val', 'test'].index(split)}{i % 4}" for i, split in enumerate(splits)]
    table = manifest.table.set_column(manifest.table.column_names.index("group"), "group", [patients])
    write_manifest(Manifest(table, manifest.root), path)
    return read_manifest(path)


def test_a_training_of_few_patients_leaves_the_column_empty_and_the_report_says_why(
    made: Path, lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path, run: Run
) -> None:
    few_groups(lesion_manifest, tmp_path / "few.parquet")
    quick = ("--set", "fit.epochs=1", "--set", "fit.min_steps=0")
    data = ("--data", tmp_path / "few.parquet")
    code, _, err = run("train", "classify", "-b", tiny_backbone, *data, "-o", tmp_path / "cls", *quick)
    assert code == 0, err
    assert run("predict", tmp_path / "cls", tmp_path / "few.parquet", "-o", tmp_path / "out")[0] == 0
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        assert {(row["unlike_training"], row["distance_percentile"]) for row in csv.DictReader(file)} == {("", "")}
    code, out, _ = run("evaluate", tmp_path / "cls", *data, "--resamples", 10)
    assert code == 0
    assert "not checked (the training images have 4 groups" in " ".join(out.split())
    for folder, few in ((tmp_path / "cls", True), (made / "cls", False)):
        card = (folder / "card.md").read_text()
        assert ("are not recognised: the training images have 4 groups, and at least 20 are needed." in card) == few
        assert ("The bundle holds mean features" in card) != few


def test_an_index_knows_what_is_unlike_its_images(made: Path, odd: Path, lesion_manifest: Path) -> None:
    index = load_index(made / "idx")
    assert index.check is not None
    images = [read_image(odd), read_image(read_manifest(lesion_manifest).path(0))]
    (checked,) = predict_many([index.check], images)
    assert [image.unlike for image in checked] == [True, False]


def test_a_similarity_is_a_percentile_of_the_pairs_of_the_collection(made: Path) -> None:
    index = load_index(made / "idx")
    vectors, units = index.vector_index.vectors, index.vector_index.manifest.units()
    pairs = [float(vectors[i] @ vectors[j]) for i in range(len(units)) for j in range(i) if units[i] != units[j]]
    assert len(index.pair_similarities) == len(pairs)
    median = float(np.median(pairs))
    assert index.similarity_percentile(median) == pytest.approx(50, abs=0.2)
    assert index.similarity_percentile(2) == 100


def test_a_predictor_without_stored_features_is_not_checked(made: Path, lesion_manifest: Path) -> None:
    predictor: Predictor = load_adapter(made / "cls")
    predictor.check = None
    pixels = predictor.preprocessing(read_image(read_manifest(lesion_manifest).path(0)))[None]
    assert predictor.check_batch(pixels) is None
