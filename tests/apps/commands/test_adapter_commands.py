"""The commands features, probe, train, evaluate and predict: output, exit codes and preserved files."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dinomed.backbones.load import load_backbone, save_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.datasets.manifest import read_manifest
from dinomed.images.read import read_image

SEGMENT = ("train", "segment", "-b", "ssl", "--data", "derm.parquet")
CLASSIFY = ("train", "classify", "-b", "ssl", "--data", "derm.parquet", "-o", "x")
FAST = ("--set", "fit.epochs=2", "--set", "fit.min_steps=0")


def test_all_commands_in_json(user_folder: Path, run) -> None:
    data = ("--data", user_folder / "derm.parquet", "--json", "--quiet")
    for extra in ((), ("--untrained",)):
        code, out, err = run("probe", user_folder / "ssl", *data, *extra)
        assert code == 0, err
        assert {"auroc", "balanced_accuracy", "accuracy"} <= json.loads(out)["logistic"].keys()
    code, out, _ = run("evaluate", user_folder / "seg", *data)
    assert code == 0
    assert 0 < json.loads(out)["metrics"]["dice"] <= 1
    code, out, _ = run("evaluate", user_folder / "cls", *data)
    assert json.loads(out)["split"] == "test"
    assert json.loads(out)["seen_in_training"] == {"images": 0, "of_seen_groups": 0, "left_out": False}
    assert (user_folder / "derm.features").is_dir()


def test_tables_state_that_they_are_for_research(user_folder: Path, run, tmp_path: Path) -> None:
    for command in (
        ("probe", user_folder / "ssl"),
        ("evaluate", user_folder / "seg"),
        ("evaluate", user_folder / "cls"),
    ):
        code, out, _ = run(*command, "--data", user_folder / "derm.parquet")
        assert code == 0
        assert "research use only" in out
    again = ("--backbone", user_folder / "ssl", "--data", user_folder / "derm.parquet", "-o", tmp_path / "cls")
    code, out, _ = run("train", "classify", *again, *FAST)
    assert code == 0
    assert "research use only" in out


def cells_of(table: str) -> list[list[str]]:
    """Return the cells of each line of a printed table that has cells."""
    lines = [line.replace("┃", "│") for line in table.splitlines()]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]


def test_each_metric_of_a_classifier_stands_under_its_own_header(user_folder: Path, run) -> None:
    code, out, err = run("evaluate", user_folder / "cls", "--data", user_folder / "derm.parquet")
    assert code == 0, err
    report = json.loads(run("evaluate", user_folder / "cls", "--data", user_folder / "derm.parquet", "--json")[1])
    rows = cells_of(out)
    header = rows.index(["class", "n", "sensitivity", "AUROC", "AUPRC"])
    metrics, classes = rows[:header], rows[header + 1 :][: len(report["metrics"]["per_class"])]
    assert metrics[0] == ["", "test", "95% interval"]
    printed = {name: float(value) for name, value, _ in metrics[1:]}
    assert printed == {name: pytest.approx(row["value"], abs=5e-4) for name, row in report["intervals"].items()}
    assert [row[0] for row in classes] == list(report["metrics"]["per_class"])
    for row in classes:
        expected = report["metrics"]["per_class"][row[0]]
        assert float(row[3]) == pytest.approx(expected["auroc"], abs=5e-4)
        assert float(row[4]) == pytest.approx(expected["auprc"], abs=5e-4)


def test_an_evaluation_on_images_of_the_fit_is_a_warning(user_folder: Path, run) -> None:
    options = ("evaluate", user_folder / "cls", "--data", user_folder / "derm.parquet", "--split", "val")
    code, out, err = run(*options)
    assert code == 0
    assert "the metrics are too high" in err
    assert "METRICS TOO HIGH: " in out
    assert "images seen in training or validation" in " ".join(out.split())
    code, out, _ = run(*options, "--json")
    assert json.loads(out)["seen_in_training"]["images"] == json.loads(out)["metrics"]["n"]


def test_predict_writes_the_readable_images_and_fails_at_the_end(user_folder: Path, run, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in sorted((user_folder / "lesions" / "images").iterdir())[:3]:
        shutil.copy(path, pictures)
    code, out, err = run("predict", user_folder / "seg", pictures, "-o", tmp_path / "out", "--json")
    assert code == 0, err
    assert json.loads(out)["images"] == 3
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8\xff no")
    code, out, err = run("predict", user_folder / "seg", pictures, "-o", tmp_path / "out", "--json", "--overwrite")
    assert code == 1
    assert "1 images have no prediction" in err
    assert "broken.jpg" in err
    assert json.loads(out)["images"] == 3
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
    picture = min(path for path in pictures.iterdir() if path.name != "broken.jpg")
    code, _, err = run("predict", user_folder / "cls", picture, "-o", tmp_path / "one")
    assert code == 0, err
    assert picture.name in (tmp_path / "one" / "predictions.csv").read_text()


def test_predict_accepts_paths_in_the_current_folder(
    user_folder: Path, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = min((user_folder / "lesions" / "images").iterdir())
    shutil.copy(source, tmp_path / "lesion.jpg")
    monkeypatch.chdir(tmp_path)
    for source_argument, out in (("lesion.jpg", "one"), (".", "all")):
        for again in ((), ("--overwrite",)):
            code, text, err = run("predict", user_folder / "seg", source_argument, "-o", f"{out}/", "--json", *again)
            assert code == 0, err
            assert json.loads(text)["images"] == 1
        assert (tmp_path / out / "lesion.png").exists()


def test_predict_resumes_after_an_interruption(
    user_folder: Path, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = user_folder / "lesions" / "images"
    for form in ("--json", "--names"):
        options = ("predict", user_folder / "seg", source, "-o", tmp_path / form, form)
        with monkeypatch.context() as patch:
            patch.setattr("dinomed.adapters.inference.folder.write_csv", _interrupt)
            assert run(*options)[0] == 130
        code, out, err = run(*options)
        assert code == 0, err
        if form == "--json":
            report = json.loads(out)
            assert (report["images"], report["kept"]) == (60, 60)
            assert "not for diagnosis" in report["note"]
        else:
            assert re.search(r"of these, predicted by an earlier, interrupted call *│ *60 ", out)
    code, out, err = run("predict", user_folder / "seg", source, "-o", tmp_path / "whole", "--abstain", 0.3)
    assert code == 0, err
    names = [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")]
    assert names == [
        "folder", "table of predictions", "predicted images", "images without a prediction", "contact sheet",
        "predictions marked as abstained", "rule of abstention", "note",
    ]  # fmt: skip


def _break(folder: Path, how: str) -> None:
    """Spoil a copy of `user_folder` in one way."""
    weights = folder / "seg" / "adapter.safetensors"
    if how == "bundle cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "bundle pickle":
        torch.save({"weight": torch.zeros(2)}, weights)
    elif how == "backbone gone":
        shutil.rmtree(folder / "ssl")
    elif how == "backbone cut":
        path = folder / "ssl" / "backbone" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "other backbone":
        torch.manual_seed(7)
        config = load_backbone(folder / "ssl").vit.config
        save_backbone(folder / "ssl" / "backbone", VisionTransformer(config), Preprocessing(image_size=32))
    elif how == "mask of another size":
        Image.new("L", (5, 5)).save(min((folder / "lesions" / "masks").iterdir()))
    elif how == "image gone":
        for path in (folder / "lesions" / "images").iterdir():
            path.unlink()
    elif how == "folder without images":
        (folder / "text").mkdir()
        (folder / "text" / "notes.txt").write_text("no picture")
    elif how == "no image":
        (folder / "page.jpg").write_text("<html>")


EVALUATE, PREDICT = ("evaluate", "seg", "--data", "derm.parquet"), ("predict", "seg", "lesions/images", "-o", "x")


@pytest.mark.parametrize(
    ("how", "arguments", "code", "message"),
    [
        ("bundle cut", PREDICT, 1, "truncated, damaged"),
        ("bundle pickle", EVALUATE, 1, "not a safetensors file"),
        ("backbone gone", PREDICT, 1, "say where: --backbone PATH"),
        ("backbone gone", ("train", *SEGMENT[1:], "-o", "x"), 2, "no known name and no existing path"),
        ("backbone cut", PREDICT, 1, "model.safetensors"),
        ("other backbone", EVALUATE, 2, "was made on backbone ssl with fingerprint"),
        ("", (*PREDICT, "-b", "nowhere"), 2, "no existing path"),
        ("", ("predict", "none", "lesions", "-o", "x"), 2, "adapter none does not exist"),
        ("", ("predict", "lesions", "lesions", "-o", "x"), 2, "is no adapter"),
        ("", ("predict", "seg", "none", "-o", "x"), 2, "none does not exist"),
        ("", ("predict", "seg", "lesions/images", "-o", "derm.parquet"), 2, "is a file"),
        ("", ("predict", "seg", "lesions/images", "-o", "lesions/images"), 2, "is the folder of the images"),
        ("", ("evaluate", "seg", "--data", "lesions"), 2, "no splits"),
        ("", (*EVALUATE, "--split", "tset"), 2, "no usable image in split 'tset'"),
        ("mask of another size", ("scan", "lesions", "-o", "x.parquet"), 2, "mask of another size"),
        ("mask of another size", ("train", *SEGMENT[1:], "-o", "x", *FAST, "--cache", "new"), 1, "its image"),
        ("image gone", EVALUATE, 1, "scan the folder again"),
        ("folder without images", ("predict", "seg", "text", "-o", "x"), 2, "holds no image"),
        ("no image", ("predict", "seg", "page.jpg", "-o", "x"), 1, "page.jpg"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, tuple) else None,
)
def test_damaged_inputs_print_one_line(
    user_folder: Path, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    how: str, arguments: tuple[str, ...], code: int, message: str,
) -> None:  # fmt: skip
    for name in ("lesions", "ssl", "seg"):
        shutil.copytree(user_folder / name, tmp_path / name)
    shutil.copy(user_folder / "derm.parquet", tmp_path)
    monkeypatch.chdir(tmp_path)
    _break(tmp_path, how)
    exit_code, out, err = run(*arguments, "--quiet")
    assert (exit_code, out) == (code, ""), err
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not (tmp_path / "x" / "adapter.safetensors").exists()
    assert not (tmp_path / "x" / "predictions.csv").exists()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_features_are_a_table_of_class_tokens(user_folder: Path, run, tmp_path: Path) -> None:
    out = tmp_path / "feats.parquet"
    code, text, err = run(
        "features", user_folder / "derm.parquet", "--backbone", user_folder / "ssl", "-o", out, "--json"
    )
    assert code == 0, err
    assert json.loads(text)["dimension"] == 32
    table = pq.read_table(out)
    assert table.column_names == ["image", "sha256", "feature"]
    assert str(table.schema.field("feature").type).startswith("fixed_size_list<")
    manifest = read_manifest(user_folder / "derm.parquet")
    assert table["image"].to_pylist() == manifest.column("image")
    backbone = load_backbone(user_folder / "ssl")
    image = backbone.preprocessing(read_image(manifest.path(7)))
    expected = backbone(image[None])[0].cls[0].numpy()
    assert np.array(table["feature"][7].as_py(), np.float32) == pytest.approx(expected, abs=2e-6)  # another batch size
    assert list(tmp_path.iterdir()) == [out]  # the shards are gone
    code, _, err = run("features", user_folder / "derm.parquet", "--backbone", user_folder / "ssl", "-o", out)
    assert code == 2
    assert "--overwrite" in err


def test_features_of_a_folder_skip_broken_files(user_folder: Path, run, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    shutil.copytree(user_folder / "lesions" / "images", pictures)
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8\xff no")
    out = tmp_path / "feats.parquet"
    code, text, err = run(
        "features", pictures, "--backbone", user_folder / "ssl", "-o", out, "--tokens", "cls+mean", "--json"
    )
    assert code == 1, err
    report = json.loads(text)
    assert (report["images"], report["unreadable"], report["dimension"]) == (60, 1, 64)
    assert "broken.jpg" in (tmp_path / "feats.unreadable.csv").read_text()
    assert "warning" in err


def test_features_with_a_weights_file_and_a_name(user_folder: Path, run, tmp_path: Path) -> None:
    from dinomed.backbones.variants import build_vit

    torch.save(build_vit("vit_micro_patch16").state_dict(), tmp_path / "weights.pth")
    manifest = user_folder / "derm.parquet"
    options = ("--weights", tmp_path / "weights.pth", "--image-size", 32, "-o", tmp_path / "feats.parquet")
    code, _, err = run("features", manifest, "--backbone", "vit_micro_patch16", *options)
    assert code == 0, err
    assert len(pq.read_table(tmp_path / "feats.parquet")) == 60
    # and an adapter on it, which finds the file again
    chosen = ("--backbone", "vit_micro_patch16", "--weights", tmp_path / "weights.pth")
    fit_options = ("--set", "image_size=32", "--cache", tmp_path / "cache", *FAST)
    code, _, err = run("train", "classify", *chosen, "--data", manifest, "-o", tmp_path / "cls", *fit_options)
    assert code == 0, err
    code, _, err = run("evaluate", tmp_path / "cls", "--data", manifest)
    assert code == 0, err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("probe", "ssl/backbone", "--data", "derm.parquet", "--untrained"), 2, "keeps no untrained backbone"),
        (("probe", "nowhere", "--data", "derm.parquet"), 2, "no known name and no existing path"),
        (("probe", "ssl", "--data", "none.parquet"), 2, "none.parquet does not exist"),
        (("probe", "ssl", "--data", "derm.parquet", "--label", "lable"), 2, "no labels in a column 'lable'"),
        (("probe", "ssl", "--data", "derm.parquet", "--split", "tset"), 2, "--split tset"),
        (("probe", "nowhere", "--data", "derm.parquet", "--split", "train"), 2, "measured on itself; give val or test"),
        (("train", "classify", "-b", "ssl", "--data", "lesions", "-o", "x"), 2, "no labels"),
        ((*SEGMENT, "-o", "x", "--set", "fit.lr=1"), 2, "fit.lr"),
        ((*CLASSIFY, "--label", ","), 2, "--label ',' names no column"),
        ((*CLASSIFY, "--label", "label,label"), 2, "column 'label' is named twice"),
        ((*CLASSIFY, "--label", "group"), 2, "column 'group' holds no labels"),
        ((*CLASSIFY, "--label", "label,nothere"), 2, "no column 'nothere' for labels label, nothere"),
        ((*CLASSIFY, "--label", "label,sex"), 2, "each holds 1 (yes), 0 (no) or nothing (not known)"),
        ((*CLASSIFY, "--label", "a,b", "--separator", "|"), 2, "a separator is for one column"),
        ((*CLASSIFY, "--unit", "patient"), 2, "'image' or 'group'"),
        (
            (*SEGMENT, "-o", "x", "--set", "image_size=33"),
            2,
            "nearest: 32",
        ),
        ((*SEGMENT, "-o", "lesions"), 2, "lesions is not empty"),
        ((*SEGMENT, "-o", "x", "-c", "no.yaml"), 2, "no.yaml"),
        ((*SEGMENT, "-o", "x", "--set", "head.blocks=[9]"), 2, "blocks 0 to 2"),
        (("evaluate", "ssl", "--data", "derm.parquet"), 2, "is no adapter"),
        (("features", "derm.parquet", "-b", "ssl", "-o", "feats.csv"), 2, "a .parquet file"),
        (("features", "derm.parquet", "-b", "ssl", "-o", "feats.parquet", "--tokens", "cs"), 2, "'cls'"),
        (("features", "derm.parquet", "-b", "ssl", "-o", "derm.parquet", "--overwrite"), 2, "no table of features"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else None,
)
def test_mistakes_print_one_line(
    user_folder: Path, run, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, message: str
) -> None:
    monkeypatch.chdir(user_folder)
    exit_code, out, err = run(*arguments)
    assert (exit_code, out) == (code, ""), err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (user_folder / "x" / "adapter.json").exists()


def test_an_interrupted_replacement_is_not_taken_for_a_complete_evaluation(
    user_folder: Path, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = ("--data", user_folder / "derm.parquet"), tmp_path / "out"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    few_shot = ("probe", user_folder / "ssl", *data, "--few-shot", "1", "--seeds", 2)
    for words, marker in ((("evaluate", user_folder / "cls", *data), "metrics.json"), (few_shot, "few_shot.json")):
        assert run(*words, "-o", out / marker)[0] == 0
        with monkeypatch.context() as patch:
            patch.setattr("dinomed.io.files.write_json", interrupted)  # after the new page was written
            assert run(*words, "-o", out / marker, "--overwrite")[0] == 130
        assert not (out / marker / marker).exists()
        assert run(*words, "-o", out / marker)[0] == 0
        assert (out / marker / marker).exists()
