"""Every head of classifiers is fitted, saved, loaded and evaluated, also with several labels and with groups."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from dinomed.adapters.bundle import read_record
from dinomed.adapters.evaluation.evaluate import evaluate, evaluate_in_full
from dinomed.adapters.fit import fit_head
from dinomed.adapters.inference.folder import FAMILIARITY_COLUMNS
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.tasks.classify import predict_groups
from dinomed.adapters.tasks.classify.answer import Answer, calibrate
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.adapters.tasks.classify.evaluated import EvaluatedClasses
from dinomed.adapters.tasks.classify.predict import ClassifyPredictor
from dinomed.adapters.tasks.classify.predict_groups import predict_group_table
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.config import build_config
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.images.read import read_image

HEADS = {
    "linear": {},
    "knn": {},
    "logistic": {"cs": [0.01, 1.0]},
    "grid": {"blocks": [-2, -1], "steps": 30, "learning_rates": [0.001, 0.1]},
    "attentive": {"heads": 2},
}
QUICK = {"epochs": 3, "min_steps": 0}


def settings(head: str = "linear", **other_settings: object) -> ClassifyConfig:
    return build_config(ClassifyConfig, {"head": {"name": head, **HEADS[head]}, "fit": QUICK, **other_settings}, "test")


def with_columns(manifest: Manifest, **columns: list[str | None]) -> Manifest:
    table = manifest.table
    for name, values in columns.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, pa.array(values, pa.string()))
    return Manifest(table, manifest.root)


@pytest.fixture(scope="module")
def place(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifiers")
    shutil.copytree(tiny_backbone, folder / "ssl")
    return folder


@pytest.fixture(scope="module")
def backbone(place: Path) -> FrozenBackbone:
    return load_backbone(place / "ssl")


@pytest.mark.parametrize("head", HEADS)
def test_a_head_predicts_from_its_bundle_with_the_metrics_of_its_fit(
    head: str, place: Path, backbone: FrozenBackbone, manifest: Manifest
) -> None:
    result = fit_head(backbone, manifest, place / head, settings(head), cache=place / "cache")
    record = read_record(result.folder)
    assert record.head["name"] == ("linear" if head == "grid" else head)
    assert record.classes == tuple(manifest.classes())
    predictor = load_adapter(result.folder)
    assert isinstance(predictor, ClassifyPredictor)
    assert sum(predictor.probabilities(read_image(manifest.path(0))).values()) == pytest.approx(1, abs=1e-5)
    # from pictures in place of cached features (patches were float16), through the temperature of the bundle
    again = evaluate(result.folder, manifest, "val", resamples=10)["metrics"]
    assert again["nll"] == pytest.approx(result.validation["nll"], abs=2e-3)
    assert again["auroc"] == pytest.approx(result.validation["auroc"], abs=0.02)  # a near tie may turn
    text = "".join(path.read_bytes().decode(errors="replace") for path in result.folder.iterdir())
    assert not any(value in text for column in ("image", "group") for value in manifest.column(column))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("columns", [False, True])
def test_an_image_may_have_several_labels(
    head: str, columns: bool, place: Path, backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    marks = rng.random((len(manifest), 2)) < 0.4
    if columns:
        cells = [[None if rng.random() < 0.1 else str(int(value)) for value in column] for column in marks.T]
        data, label_settings = with_columns(manifest, round=cells[0], dark=cells[1]), {"label": ["round", "dark"]}
    else:
        words = ["|".join(n for n, value in zip(("dark", "round"), row, strict=True) if value) or None for row in marks]
        data, label_settings = with_columns(manifest, finding=words), {"label": "finding", "separator": "|"}
    result = fit_head(backbone, data, tmp_path / "out", settings(head, **label_settings), cache=place / "cache")
    predictor = load_adapter(result.folder)
    assert isinstance(predictor, ClassifyPredictor)
    assert predictor.answer.multilabel
    assert set(predictor.classes) == {"round", "dark"}
    again = evaluate(result.folder, data, "val", resamples=10)
    assert again["metrics"]["nll"] == pytest.approx(result.validation["nll"], abs=2e-3)
    assert "confusion" not in again["metrics"]


@pytest.mark.parametrize("head", ["linear", "knn", "grid", "logistic"])
@pytest.mark.parametrize("pool", ["mean", "concat"])
def test_the_prediction_of_a_group_is_the_head_on_its_pooled_features(
    head: str, pool: str, place: Path, backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path
) -> None:
    # pairs of images of one split and label are a group; the last one may be alone
    rows: dict[tuple[str, str], list[int]] = {}
    for i, key in enumerate(zip(manifest.column("split"), manifest.column("label"), strict=True)):
        rows.setdefault(key, []).append(i)
    names = {i: f"pair-{n}-{k // 2}" for n, pair_rows in enumerate(rows.values()) for k, i in enumerate(pair_rows)}
    data = with_columns(manifest, group=[names[i] for i in range(len(manifest))])
    config = settings(head, unit="group", pool=pool, frames=2)
    result = fit_head(backbone, data, tmp_path / "out", config, cache=place / "cache")
    record = read_record(result.folder)
    assert record.training["units"]["train"] == len(set(data.select(split="train").column("group")))
    evaluation = evaluate_in_full(result.folder, data, "val", resamples=10)
    assert evaluation.result["unit"] == "group"
    assert evaluation.result["metrics"]["nll"] == pytest.approx(result.validation["nll"], abs=1e-3)
    judged, predictor = evaluation.evaluated, evaluation.predictor
    assert isinstance(judged, EvaluatedClasses)
    assert isinstance(predictor, ClassifyPredictor)
    assert len(judged.groups) == evaluation.result["metrics"]["n"] < len(data.select(split="val"))
    image = read_image(manifest.path(0))
    assert sum(predictor.probabilities(image).values()) == pytest.approx(1, abs=1e-5)  # a group of one


def test_a_group_is_fitted_and_evaluated_with_the_labels_known_of_any_of_its_images(
    place: Path, backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path
) -> None:
    # groups of up to three images of a split and label; each label is known of one image of a group
    place_of: dict[tuple[str, str], int] = {}
    names, label_cells = [], {"round": [], "dark": []}
    for key in zip(manifest.column("split"), manifest.column("label"), strict=True):
        number = place_of[key] = place_of.get(key, -1) + 1
        names.append(f"{'-'.join(key)}-{number // 3}")
        present = key[1] == manifest.classes()[0]
        label_cells["round"].append(str(int(present)) if number % 3 == 0 else None)
        label_cells["dark"].append(str(float(not present)) if number % 3 == 1 else None)
    data = with_columns(manifest, group=names, **label_cells)
    config = settings(unit="group", frames=1, label=["round", "dark"])
    result = fit_head(backbone, data, tmp_path / "out", config, cache=place / "cache")
    known = [(group, cell) for cells in label_cells.values() for group, cell in zip(names, cells, strict=True) if cell]
    present = [group for group, cell in known if float(cell)]
    assert sum(read_record(result.folder).training["classes"].values()) == sum(g.startswith("train") for g in present)
    evaluated = evaluate_in_full(result.folder, data, "val", resamples=10).evaluated
    assert evaluated.targets is not None
    assert (~np.isnan(evaluated.targets)).sum() == sum(group.startswith("val") for group, _ in known)


def test_probabilities_of_images_are_averaged_over_their_group(
    place: Path, backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path
) -> None:
    folder = fit_head(backbone, manifest, tmp_path / "out", settings(), cache=place / "cache").folder
    images, groups = (
        evaluate_in_full(folder, manifest, "test", resamples=10, unit=unit).evaluated for unit in ("image", "group")
    )
    assert isinstance(images, EvaluatedClasses)
    assert isinstance(groups, EvaluatedClasses)
    for index, name in enumerate(groups.groups):
        image_rows = [i for i, group in enumerate(images.groups) if group == name]
        np.testing.assert_allclose(groups.probabilities[index], images.probabilities[image_rows].mean(0), atol=1e-6)
    assert len(groups.groups) == len(set(images.groups))


def test_invalid_requests_raise_one_line(
    place: Path, backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="lbfgs takes all images at once; head attentive needs adamw"):
        build_config(ClassifyConfig, {"head": {"name": "attentive"}, "fit": {"optimizer": "lbfgs"}}, "test")
    with pytest.raises(UsageError, match="reads the patches of one image"):
        settings("attentive", unit="group")
    with pytest.raises(UsageError, match="a separator is for one column"):
        settings(label=["a", "b"], separator="|")
    with pytest.raises(UsageError, match="column 'a' is named twice"):
        settings(label=["a", "b", "a"])
    torn = with_columns(manifest, group=[f"all-{split}" for split in manifest.column("split")])
    with pytest.raises(UsageError, match="hold images of different labels"):
        fit_head(backbone, torn, tmp_path / "no", settings(unit="group"), cache=place / "cache")
    folder = fit_head(backbone, manifest, tmp_path / "cls", settings(), cache=place / "cache").folder
    for by, message in ((("sx",), "no column 'sx'"), (("group",), "no property"), (("lesion",), "no column 'lesion'")):
        with pytest.raises(UsageError, match=message):
            evaluate(folder, manifest, by=by)
    many = with_columns(manifest, clinic=[f"c{i}" for i in range(len(manifest))], empty=[None] * len(manifest))
    with pytest.raises(UsageError, match=r"`by=empty`: the column is empty"):
        evaluate(folder, many, by=("empty",))


def test_the_temperature_and_thresholds_come_from_val_and_change_no_ranking() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 400)
    logits = (6 * (np.eye(3)[targets] + rng.normal(size=(400, 3)))).astype(np.float32)
    answer = calibrate(Answer(), logits, targets)
    assert answer.temperature is not None
    assert answer.temperature > 2  # far too sure
    plain, scaled = (a.probabilities(torch.from_numpy(logits)).argmax(1) for a in (Answer(), answer))
    assert (plain == scaled).all()
    assert len(answer.thresholds) == 3
    separated = calibrate(Answer(), np.eye(3, dtype=np.float32)[targets], targets)
    assert separated.temperature is None
    unknown = calibrate(Answer(), logits, np.where(targets == 2, 3, targets))
    assert unknown.thresholds[2] is None


def test_confidence_and_losses_follow_the_decision_about_each_label() -> None:
    """Also where the rounding of the table, to 6 decimals, would carry a probability over its threshold."""
    answer = Answer(multilabel=True, thresholds=(0.1234564, None))
    values = np.array([[0.12345642, 0.5]])
    assert answer.decide(values).tolist() == [[True, True]]
    assert answer.losses(values, np.ones((1, 2))).tolist() == [0.0]
    assert answer.confidence(values).tolist() == [0.123456]


@pytest.mark.parametrize("unit", ["image", "group"])
def test_the_table_of_groups_equals_the_predictions_of_the_evaluation(
    unit: str, place: Path, backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path
) -> None:
    pairs = zip(manifest.column("split"), manifest.column("label"), strict=True)
    data = with_columns(manifest, group=[None if i % 7 == 3 else "-".join(pair) for i, pair in enumerate(pairs)])
    folder = fit_head(
        backbone, data, tmp_path / "out", settings("knn", unit=unit, frames=3), cache=place / "cache"
    ).folder
    predictor = load_adapter(folder)
    assert isinstance(predictor, ClassifyPredictor)
    test = data.select(split="test")
    groups = test.column("group")
    assert predict_group_table(predictor, test, tmp_path / "table").groups == len(set(groups) - {None}) + groups.count(
        None
    )
    lines = [line.split(",") for line in (tmp_path / "table" / "predictions.csv").read_text().splitlines()]
    assert lines[0] == [
        "group",
        "images",
        "predicted",
        *manifest.classes(),
        *["prediction_set"][: unit == "group"],
        *FAMILIARITY_COLUMNS,
    ]
    judged = evaluate_in_full(folder, data, unit="group", resamples=10).evaluated
    assert isinstance(judged, EvaluatedClasses)
    for line, name, expected in zip(lines[1:], judged.groups, judged.probabilities, strict=True):
        count = groups.count(name) if name in groups else 1
        alone = [image for image, group in zip(test.column("image"), groups, strict=True) if group is None]
        assert line[0] in ([name] if name in groups else alone)
        assert int(line[1]) == (min(3, count) if unit == "group" else count)
        assert [float(value) for value in line[3 : 3 + len(expected)]] == pytest.approx(expected.tolist(), abs=1e-5)
        assert line[2] == manifest.classes()[int(expected.argmax())]
    with pytest.raises(UsageError, match="already holds a result"):
        predict_group_table(predictor, test, tmp_path / "table")


@pytest.mark.parametrize("cut", ["between", "half a line", "twice"])
def test_an_interrupted_table_of_groups_is_resumed_and_is_equal(
    cut: str, place: Path, backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # groups of 1 to 4 images; one is named as an image without a group is
    groups = [f"g{i // 4}" if i % 4 else None for i in range(len(manifest))]
    groups[1] = manifest.column("image")[0]
    data = with_columns(manifest, group=groups, split=["test"] * len(manifest))
    folder = fit_head(backbone, manifest, tmp_path / "cls", settings(), cache=place / "cache").folder
    predictor = load_adapter(folder)
    assert isinstance(predictor, ClassifyPredictor)
    monkeypatch.setattr(predict_groups, "IMAGES", 7)
    whole = predict_group_table(predictor, data, tmp_path / "whole")
    assert (whole.groups, whole.kept) == (len(set(groups) - {None}) + groups.count(None), 0)
    real, calls = predict_groups._rows, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise KeyboardInterrupt
        return real(*arguments)

    for _ in range(2 if cut == "twice" else 1):
        with monkeypatch.context() as patch:
            patch.setattr(predict_groups, "_rows", interrupted)
            with pytest.raises(KeyboardInterrupt):
                predict_group_table(predictor, data, tmp_path / "out")
    assert not (tmp_path / "out" / "predictions.csv").exists()
    rows = tmp_path / "out" / "predictions.partial.jsonl"
    noted = len(rows.read_text().splitlines())
    if cut == "half a line":
        rows.write_text(rows.read_text()[:-20])
    with pytest.raises(UsageError, match="by another adapter or of other images"):
        predict_group_table(predictor, data.take(range(5)), tmp_path / "out")
    done = predict_group_table(predictor, data, tmp_path / "out")
    assert 0 < done.kept <= noted
    assert (done.kept == noted) == (cut != "half a line")
    for name in ("predictions.csv", "predictions.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not rows.exists()
