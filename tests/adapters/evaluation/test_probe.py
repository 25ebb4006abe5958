"""The probe: fitted on train, chosen on val, evaluated on test only."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dinomed.adapters.evaluation import probe as probing
from dinomed.adapters.evaluation.probe import probe
from dinomed.adapters.heads.solved.logistic import fit_logistic
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import Manifest, read_manifest
from dinomed.errors import UsageError
from dinomed.features.extract import extract
from dinomed.features.knn import knn_probabilities
from dinomed.metrics.classification import classification_metrics


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_the_report_equals_the_metrics_of_its_parts(tiny_backbone: Path, lesion_manifest: Path, cache: Path) -> None:
    backbone, manifest = load_backbone(tiny_backbone), read_manifest(lesion_manifest)
    report = probe(backbone, manifest, cache=cache)
    parts = {name: manifest.select(split=name) for name in ("train", "val", "test")}
    x = {name: extract(backbone, part, cache=cache).cls for name, part in parts.items()}
    classes = manifest.classes()
    y = {name: np.array([classes.index(label) for label in part.column("label")]) for name, part in parts.items()}
    val, test = (knn_probabilities(x["train"], y["train"], x[name], len(classes)) for name in ("val", "test"))
    best = max(val, key=lambda k: (classification_metrics(y["val"], val[k], classes)["auroc"], -k))
    assert report["knn"]["k"] == best
    assert report["knn"]["auroc"] == classification_metrics(y["test"], test[best], classes)["auroc"]
    assert max(row["k"] for row in report["knn"]["tried"]) == len(parts["train"])  # 100 and 200 are cut to it
    assert report["logistic"]["C"] in [row["C"] for row in report["logistic"]["tried"]]
    assert len(report["logistic"]["tried"]) == 12
    assert report["classes"] == {name: int((y["train"] == i).sum()) for i, name in enumerate(classes)}
    assert "research use only" in report["purpose"]
    assert report["aspect"] == "square"


def test_the_choice_does_not_use_test(tiny_backbone: Path, lesion_manifest: Path, cache: Path) -> None:
    backbone, manifest = load_backbone(tiny_backbone), read_manifest(lesion_manifest)
    labels, splits = manifest.column("label"), manifest.column("split")
    rolled = [
        labels[i - 1] if split == "test" else label for i, (label, split) in enumerate(zip(labels, splits, strict=True))
    ]
    table = manifest.table.drop_columns(["label"]).append_column("label", pa.array(rolled))
    first, second = (probe(backbone, m, cache=cache) for m in (manifest, Manifest(table, manifest.root)))
    for method, setting in (("knn", "k"), ("logistic", "C")):
        assert first[method][setting] == second[method][setting]
    assert first["logistic"]["auroc"] != second["logistic"]["auroc"]


@pytest.mark.parametrize("split", ["train", "tset", ""])
def test_only_val_and_test_are_evaluated(tiny_backbone: Path, lesion_manifest: Path, cache: Path, split: str) -> None:
    with pytest.raises(UsageError, match="give val or test"):
        probe(load_backbone(tiny_backbone), read_manifest(lesion_manifest), cache=cache, split=split)


def test_missing_labels_raise_an_error_with_the_columns_and_the_remedy(
    tiny_backbone: Path, lesion_manifest: Path, cache: Path
) -> None:
    manifest = read_manifest(lesion_manifest)
    table = manifest.table.rename_columns(["diagnosis" if name == "label" else name for name in manifest.columns])
    with pytest.raises(UsageError) as error:
        probe(load_backbone(tiny_backbone), Manifest(table, manifest.root), cache=cache)
    message = str(error.value)
    assert "diagnosis" in message
    assert f"dinomed scan {manifest.root} --labels FILE.csv" in message
    assert not any(name in message for name in ("sha256", "bytes", "mask", "\n"))


def test_a_class_of_one_image_is_a_warning_and_left_out_of_the_means(
    tiny_backbone: Path, lesion_manifest: Path, cache: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    manifest = read_manifest(lesion_manifest)
    labels = manifest.column("label")
    labels[manifest.column("split").index("train")] = "single"
    table = manifest.table.drop_columns(["label"]).append_column("label", pa.array(labels))
    monkeypatch.setattr(probing, "fit_logistic", lambda x, y: fit_logistic(x, y, (0.1,)))
    report = probe(load_backbone(tiny_backbone), Manifest(table, manifest.root), cache=cache)
    assert "only one training image of class 'single'" in capsys.readouterr().err
    assert report["classes"]["single"] == 1
    assert np.isfinite(report["knn"]["auroc"])


def test_an_undefined_auroc_on_val_falls_back_without_a_crash(
    tiny_backbone: Path, lesion_manifest: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, manifest = load_backbone(tiny_backbone), read_manifest(lesion_manifest)
    one_class = [
        i
        for i, (label, split) in enumerate(zip(manifest.column("label"), manifest.column("split"), strict=True))
        if split != "val" or label == "regular"
    ]
    monkeypatch.setattr(probing, "fit_logistic", lambda x, y: fit_logistic(x, y, (1.0, 0.1)))
    report = probe(backbone, manifest.take(one_class), cache=cache)
    assert report["knn"]["k"] == 10  # the smallest
    assert report["logistic"]["C"] == 0.1
