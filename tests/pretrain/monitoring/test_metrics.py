"""Training metrics, health warnings, online k-NN and energy."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import read_manifest
from dinomed.errors import DinomedError
from dinomed.images.read import read_image
from dinomed.log import logger
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.data.select_images import select_images
from dinomed.pretrain.monitoring import metrics as training_metrics
from dinomed.pretrain.monitoring.energy import KG_PER_KWH, PUE, EnergyMeter
from dinomed.pretrain.monitoring.health import HealthCheck
from dinomed.pretrain.monitoring.online_knn import KnnHistory, OnlineKNN, auroc_error, build_online_knn
from dinomed.pretrain.monitoring.run_log import effective_rank, target_statistics
from dinomed.pretrain.trainer import pretrain

Tiny = Callable[..., PretrainConfig]
CPU = torch.device("cpu")


@pytest.mark.parametrize("kept", [1, 3, 16])
def test_the_effective_rank_counts_directions(kept: int) -> None:
    basis = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0][:kept]
    rows = basis.repeat(4, 1)  # each direction as often as the others
    assert effective_rank(rows) == pytest.approx(kept, rel=1e-4)  # float32


def test_the_information_of_certain_and_of_uniform_targets() -> None:
    certain = torch.eye(8).view(2, 4, 8)
    assert target_statistics(certain)["target_information"] == pytest.approx(math.log(8), rel=1e-5)
    vague = torch.full((2, 4, 8), 1 / 8)
    assert target_statistics(vague)["target_information"] == pytest.approx(0, abs=1e-6)


HEALTHY = {"loss": 6.0, "dino": 4.0, "target_information": 3.0, "target_entropy_mean": 6.0, "rank": 20.0}
FLAT = {"dino": 6.23, "target_information": 0.2}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        (FLAT, "log K = 6.24"),
        ({"dino": 6.23}, None),  # the targets tell enough: it has only not learned them yet
        ({"target_entropy_mean": 0.5}, "same few prototypes"),
        ({"rank": 1.2}, "effective rank 1.2"),
        ({"loss": 9.0}, "the loss has risen to 9.00 from 6.00"),
    ],
)
def test_each_problem_of_a_run_gives_one_warning(change: dict[str, float], words: str | None) -> None:
    health = HealthCheck(prototypes=512, views=128, steps=100)
    assert health.check(30, HEALTHY) == []
    warnings = health.check(40, HEALTHY | change)
    if words is None:
        assert warnings == []
    else:
        (text,) = warnings
        assert words in text
        assert "cause" in text or "Lower" in text
        assert health.check(50, HEALTHY | change) == []


def test_a_run_gives_no_warning_at_its_beginning() -> None:
    assert HealthCheck(prototypes=512, views=128, steps=1000).check(90, HEALTHY | FLAT) == []


def test_the_online_knn_equals_that_of_scikit_learn(tiny: Tiny, pictures: Path, tiny_backbone: Path) -> None:
    manifest = read_manifest(pictures)
    backbone = load_backbone(tiny_backbone)
    knn = build_online_knn(manifest, manifest.select(split="train"), backbone.preprocessing, limit=2000)
    assert knn is not None
    accuracies = knn.measure(backbone.vit, CPU)
    rows = []
    for part in knn.parts:
        images = [backbone.preprocessing(read_image(part.path(i))) for i in range(len(part))]
        rows.append(torch.nn.functional.normalize(backbone(torch.stack(images))[-1].cls, dim=-1).numpy())
    reference = KNeighborsClassifier(
        min(20, len(rows[0])), metric="cosine", algorithm="brute", weights=lambda d: np.exp(-d / 0.07)
    ).fit(rows[0], knn.labels[0])
    assert accuracies["knn_accuracy"] == pytest.approx(reference.score(rows[1], knn.labels[1]))


def test_images_that_cannot_be_read_any_more_are_left_out_of_the_knn_with_a_warning(
    pictures: Path, tiny_backbone: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, backbone = read_manifest(pictures), load_backbone(tiny_backbone)
    shutil.copytree(whole.root, tmp_path / "copy")
    manifest = replace(whole, root=tmp_path / "copy")
    knn = build_online_knn(manifest, manifest.select(split="train"), backbone.preprocessing, limit=2000)
    assert knn is not None
    train, val = knn.parts
    expected = OnlineKNN(train, val.take(list(range(1, len(val)))), backbone.preprocessing).measure(backbone.vit, CPU)
    val.path(0).unlink()
    logger.addHandler(caplog.handler)
    measured = [knn.measure(backbone.vit, CPU) for _ in range(2)]
    logger.removeHandler(caplog.handler)
    assert measured == [pytest.approx(expected)] * 2
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("online k-NN leaves out an image: ")
    assert val.column("image")[0] in warning
    for row in range(1, len(val)):
        val.path(row).unlink()
    with pytest.raises(DinomedError, match=r"none of the .* images of online k-NN can be used"):
        knn.measure(backbone.vit, CPU)


def test_without_labels_or_val_there_is_no_knn(tiny: Tiny, pictures: Path, tiny_backbone: Path) -> None:
    manifest, preprocessing = read_manifest(pictures), load_backbone(tiny_backbone).preprocessing
    train, _ = select_images(manifest, 4, 2)
    assert build_online_knn(manifest, train, preprocessing, limit=0) is None
    assert build_online_knn(manifest.select(split="train"), train, preprocessing, limit=10) is None
    limited = build_online_knn(manifest, train, preprocessing, limit=5)
    assert limited is None or len(limited.parts[0]) == 5


def test_the_history_keeps_the_best_value() -> None:
    history = KnnHistory()
    assert [history.add(step, value) for step, value in enumerate((0.5, 0.7, 0.6, 0.7, 0.8))] == [
        True, True, False, False, True,
    ]  # fmt: skip
    assert (history.start, history.best, history.best_step, history.waiting) == (0.5, 0.8, 4, 0)
    assert KnnHistory(**history.as_dict()) == history


def test_a_run_that_no_longer_improves_ends_and_keeps_its_best(
    tiny: Tiny, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = iter([0.5, 0.6, 0.9, 0.8, 0.7, 0.6])
    monkeypatch.setattr(
        training_metrics.OnlineKNN, "measure", lambda *_: {"knn_auroc": next(values), "knn_accuracy": 0.0}, raising=True
    )
    config = tiny(run={"steps": 20, "checkpoint_every": 2, "patience": 2})
    result = pretrain(config, pictures, tmp_path / "run", device="cpu")
    assert result.steps == 8  # best after step 4, then two that are worse
    assert "ended after step 8 of 20: 2 checkpoints without a better online k-NN" in " ".join(
        capsys.readouterr().err.split()
    )
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["knn"]["best_step"] == 4
    best, last = load_backbone(tmp_path / "run" / "best"), load_backbone(tmp_path / "run")
    assert best.metadata["step"] == 4
    assert last.metadata["step"] == 8
    again = pretrain(config, pictures, tmp_path / "run", device="cpu", resume=True)
    assert again.steps == 8  # it has ended, and a resume does not forget it


@pytest.mark.parametrize(
    ("values", "times"),
    [
        ([1.0, 0.9, 0.1, 0.0], 1),
        ([0.8, 0.799, 0.7, 0.6], 0),  # chance, with three or four validation images
        ([0.6, 0.7, 0.8, 0.65], 0),  # below its best, above its start
    ],
)
def test_a_fall_of_the_knn_beyond_chance_gives_one_warning(
    tiny: Tiny,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    values: list[float],
    times: int,
) -> None:
    measured = iter(values)
    monkeypatch.setattr(training_metrics.OnlineKNN, "measure", lambda *_: {"knn_auroc": next(measured)})
    pretrain(tiny(), pictures, tmp_path / "run", device="cpu")
    assert capsys.readouterr().err.count("worse than at the start") == times


@pytest.mark.parametrize(("auroc", "positives", "negatives"), [(0.6, 10, 40), (0.8, 30, 30), (0.9, 100, 20)])
def test_the_error_of_an_auroc_is_that_of_new_draws(auroc: float, positives: int, negatives: int) -> None:
    rng, draws = np.random.default_rng(0), 4000
    high = rng.exponential(auroc / (1 - auroc), (draws, positives, 1))
    shares = (high > rng.exponential(1.0, (draws, 1, negatives))).mean((1, 2))
    assert shares.mean() == pytest.approx(auroc, abs=0.01)
    # 4,000 draws tell a deviation to 1.1%, times three
    assert shares.std() == pytest.approx(auroc_error(auroc, positives, negatives), rel=0.035)


def _knn(counts: list[int]) -> OnlineKNN:
    """Build an online k-NN of validation images only, with this number of each class."""
    knn = OnlineKNN.__new__(OnlineKNN)
    knn.classes = [str(index) for index in range(len(counts))]
    knn.labels = [np.empty(0, int), np.repeat(np.arange(len(counts)), counts)]
    return knn


@pytest.mark.parametrize("counts", [[60, 60], [20, 30, 50], [5, 15, 40, 100, 0], [10, 12, 60, 8, 9, 130, 11]])
def test_the_chance_fall_is_that_of_new_draws(counts: list[int]) -> None:
    """Scores of a class are noise plus what the image gives for its own class; measured twice with nothing changed."""
    rng, knn, falls = np.random.default_rng(1), _knn(counts), []
    is_class = np.eye(len(counts), dtype=bool)[knn.labels[1]]
    is_class = is_class[:, is_class.any(0)]
    positives, negatives = is_class.sum(0), (~is_class).sum(0)
    for _ in range(1500):
        votes = rng.normal(size=(2, *is_class.shape)) + 1.2 * is_class
        votes = np.exp(votes) / np.exp(votes).sum(2, keepdims=True)
        ranks = votes.argsort(1).argsort(1)  # there are no ties: Mann and Whitney's count of pairs
        aurocs = ((ranks * is_class).sum(1) - positives * (positives - 1) / 2) / (positives * negatives)
        before, now = aurocs.mean(1)
        falls.append((before - now) / knn.chance_fall(before, now))
    # Two standard errors of one are 1.4 of the difference of two that have nothing in common: 8% fall further, and
    # fewer where classes are of very different size, of which the formula thinks too little.
    assert 0.015 < np.mean(np.array(falls) > 1) < 0.11


def test_the_chance_fall_is_larger_with_fewer_images() -> None:
    assert _knn([200, 200]).chance_fall(0.8, 0.75) < 0.05 < _knn([60, 60]).chance_fall(0.8, 0.75)
    assert _knn([2, 2]).chance_fall(1.0, 0.5) > 0.4  # a perfect start on four images is no certain one
    assert _knn([200, 200, 0]).chance_fall(0.8, 0.75) == _knn([200, 200]).chance_fall(0.8, 0.75)


def test_energy_is_watts_times_time_times_pue(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1800.0, 3600.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    monkeypatch.setattr(EnergyMeter, "_joules", lambda _: None)
    meter = EnergyMeter(CPU, assumed_watts=400)
    meter.sample()
    meter.sample()
    report = meter.report(processes=2)
    assert report["kwh"] == pytest.approx(0.4 * PUE * 2)
    assert report["co2e_kg"] == pytest.approx(0.4 * PUE * 2 * KG_PER_KWH)
    assert (report["watts"], report["measured"]) == (pytest.approx(400), False)
    # the paper's own example: 22,016 GPU hours at 400 W are 9.7 MWh and 3.7 t
    paper = EnergyMeter.__new__(EnergyMeter)
    paper.kwh, paper.seconds, paper.measured = 22016 * 0.4, 22016 * 3600.0, False
    assert paper.report()["kwh"] == pytest.approx(9.7e3, rel=0.01)
    assert paper.report()["co2e_kg"] == pytest.approx(3.7e3, rel=0.01)
