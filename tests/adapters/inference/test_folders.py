"""Prediction of folders: every image has its file, unreadable images are listed, other files are untouched."""

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinomed.adapters.fit import fit_head
from dinomed.adapters.fitting.config import FitConfig
from dinomed.adapters.inference import folder as folders
from dinomed.adapters.inference.folder import predict_collection
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.adapters.tasks.classify.predict import ClassifyPredictor
from dinomed.adapters.tasks.classify.writer import SET_COLUMN, ClassifyWriter
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.adapters.tasks.segment.predict import SegmentPredictor, summarize
from dinomed.adapters.tasks.segment.writer import SegmentWriter
from dinomed.apps.examine.results import examine_predictions
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import read_manifest
from dinomed.datasets.open import open_dataset
from dinomed.errors import DinomedError, UsageError
from dinomed.features.loading import load_batches
from dinomed.images.read import read_image, read_mask
from dinomed.io.files import file_names

QUICK = FitConfig(epochs=2, batch_size=16, min_steps=0, learning_rate=0.02)


@pytest.fixture(scope="module")
def predictors(
    tiny_backbone: Path, lesion_manifest: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SegmentPredictor, ClassifyPredictor]:
    folder = tmp_path_factory.mktemp("bundles")
    backbone, manifest = load_backbone(tiny_backbone), read_manifest(lesion_manifest)
    fit_head(backbone, manifest, folder / "seg", SegmentConfig(fit=QUICK, image_size=32), cache=folder / "cache")
    fit_head(backbone, manifest, folder / "cls", ClassifyConfig(fit=QUICK), cache=folder / "cache")
    seg, cls = load_adapter(folder / "seg"), load_adapter(folder / "cls")
    assert isinstance(seg, SegmentPredictor)
    assert isinstance(cls, ClassifyPredictor)
    return seg, cls


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Images of several sizes and kinds, two of one stem, and one that is cut off."""
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in [("a.jpg", (50, 30)), ("a.png", (41, 67)), ("sub/a.jpg", (20, 20)), ("ü b.png", (9, 200))]:
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(folder / name)
    Image.new("L", (31, 17), 90).save(folder / "gray.tif")
    (folder / "broken.jpg").write_bytes((folder / "a.jpg").read_bytes()[:200])
    return folder


def table(out: Path, name: str = "predictions.csv") -> list[dict[str, str]]:
    with open(out / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_image_gets_a_mask_of_its_own_size(
    predictors: tuple[SegmentPredictor, ClassifyPredictor], pictures: Path, tmp_path: Path
) -> None:
    manifest = open_dataset(pictures, allow_unreadable=True)
    done = predict_collection(predictors[0], manifest, tmp_path / "out", unreadable=manifest.unreadable)
    assert done.images == 5
    assert [path for path, _ in done.unreadable] == ["broken.jpg"]
    masks = {row["image"]: row["mask"] for row in table(tmp_path / "out")}
    assert masks == {
        "a.jpg": "a.jpg.png",
        "a.png": "a.png.png",
        "gray.tif": "gray.png",
        "sub/a.jpg": "sub/a.png",
        "ü b.png": "ü b.png",
    }
    for row in table(tmp_path / "out"):
        image = read_image(pictures / row["image"])
        mask = read_mask(tmp_path / "out" / row["mask"], size=image.shape[:2])
        # one image alone gives what it gives in a batch, up to pixels at the threshold itself
        alone = predictors[0].probability(image)
        sure = np.abs(alone - predictors[0].threshold) > 1e-5
        assert (mask == (alone >= predictors[0].threshold))[sure].all()
        assert int(row["area_px"]) == mask.sum()
    assert table(tmp_path / "out", "unreadable.csv")[0]["image"] == "broken.jpg"


def test_a_classifier_writes_one_table(
    predictors: tuple[SegmentPredictor, ClassifyPredictor], pictures: Path, tmp_path: Path
) -> None:
    manifest = open_dataset(pictures, allow_unreadable=True)
    predict_collection(predictors[1], manifest, tmp_path / "out")
    rows = table(tmp_path / "out")
    columns = ["image", "predicted", *predictors[1].classes, SET_COLUMN, *folders.FAMILIARITY_COLUMNS]
    assert list(rows[0]) == columns
    for row in rows:
        values = [float(row[name]) for name in predictors[1].classes]
        assert sum(values) == pytest.approx(1, abs=1e-5)  # six decimals of each
        assert row["predicted"] == predictors[1].classes[int(np.argmax(values))]
        sets = predictors[1].answer.prediction_sets(np.array([values]))
        assert sets is not None
        assert row[SET_COLUMN].split("|") == list(predictors[1].names_of_set(sets[0]))
    assert not list((tmp_path / "out").rglob("*.png"))


def test_only_files_of_an_earlier_prediction_are_replaced_and_only_on_request(
    predictors: tuple[SegmentPredictor, ClassifyPredictor], pictures: Path, tmp_path: Path
) -> None:
    manifest = open_dataset(pictures, allow_unreadable=True)
    out = tmp_path / "out"
    predict_collection(predictors[0], manifest, out)
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="add `overwrite=True`"):
        predict_collection(predictors[0], manifest, out)
    predict_collection(predictors[0], manifest.take([0]), out, overwrite=True)
    assert {path.name for path in out.rglob("*.png")} == {"a.png"}  # the masks of the first run are gone
    assert (out / "mine.txt").exists()
    with pytest.raises(UsageError, match="is the folder of the images"):
        predict_collection(predictors[0], manifest, pictures)


def test_other_files_are_never_replaced(
    predictors: tuple[SegmentPredictor, ClassifyPredictor], pictures: Path, tmp_path: Path
) -> None:
    manifest = open_dataset(pictures, allow_unreadable=True)
    out = tmp_path / "out"
    predict_collection(predictors[0], manifest.take([0]), out)
    (out / "sub").mkdir()
    (out / "sub" / "a.png").write_text("mine")
    with pytest.raises(UsageError, match=r"sub/a\.png is in the way"):
        predict_collection(predictors[0], manifest, out, overwrite=True)
    assert (out / "sub" / "a.png").read_text() == "mine"
    assert (out / "a.png").exists()  # the earlier result is whole
    assert json.loads((out / "predictions.json").read_text())["complete"] is True


def test_an_output_among_the_images_is_not_read_as_input(
    predictors: tuple[SegmentPredictor, ClassifyPredictor], pictures: Path
) -> None:
    first = open_dataset(pictures, allow_unreadable=True)
    predict_collection(predictors[0], first, pictures / "sub" / "out")
    (pictures / "sub" / "out" / "cut.png").write_bytes(b"\x89PNG")
    again = open_dataset(pictures, allow_unreadable=True)
    assert again.fingerprint == first.fingerprint
    assert again.unreadable == first.unreadable
    with pytest.raises(UsageError, match="only files of an earlier prediction"):
        open_dataset(_only(pictures / "sub", "out"), allow_unreadable=True)


def test_masks_beside_the_images_are_no_inputs_and_need_not_match(pictures: Path) -> None:
    (pictures / "broken.jpg").unlink()
    Image.new("L", (3, 3)).save(pictures / "gray_mask.png")
    manifest = open_dataset(pictures, allow_unreadable=True)
    assert (len(manifest), manifest.unreadable) == (5, ())


def _only(folder: Path, keep: str) -> Path:
    for path in folder.iterdir():
        if path.name != keep:
            path.unlink()
    return folder


def objects_of(out: Path, name: str, classes: int) -> np.ndarray:
    """The union of the objects of an image, as pycocotools reads and draws the written results."""
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        images = COCO(str(out / "coco_images.json"))
        (number,) = (key for key, image in images.imgs.items() if image["file_name"] == name)
        assert len(images.getCatIds()) == classes
        results = images.loadRes(str(out / "coco_results.json"))
    entries = results.loadAnns(results.getAnnIds(imgIds=[number]))
    assert all(0 < entry["score"] <= 1 for entry in entries)
    size = images.imgs[number]["height"], images.imgs[number]["width"]
    return np.any([np.zeros(size, bool), *(results.annToMask(entry).astype(bool) for entry in entries)], axis=0)


def test_coco_results_give_the_written_masks_also_after_an_interruption(
    predictors: tuple[SegmentPredictor, ClassifyPredictor],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("pycocotools")
    manifest = open_dataset(pictures, allow_unreadable=True)
    monkeypatch.setattr(folders, "load_batches", lambda data, preprocessing, _: load_batches(data, preprocessing, 2))
    predict_collection(predictors[0], manifest, tmp_path / "whole", coco=True)
    written = (tmp_path / "whole/coco_results.json").read_text()
    assert json.loads(written)  # the untrained segmenter finds something in the noise
    names = [row["image"] for row in table(tmp_path / "whole")]
    for row in table(tmp_path / "whole"):
        mask = read_mask(tmp_path / "whole" / row["mask"])
        np.testing.assert_array_equal(objects_of(tmp_path / "whole", row["image"], 1), mask.astype(bool))
    assert not (tmp_path / "whole/coco.partial.jsonl").exists()

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # after the results, before the plan is complete
        patch.setattr(folders, "finish", end)
        with pytest.raises(KeyboardInterrupt):
            predict_collection(predictors[0], manifest, tmp_path / "late", coco=True)
    predict_collection(predictors[0], manifest, tmp_path / "late", coco=True)
    assert (tmp_path / "late/coco_results.json").read_text() == written

    write_batch, calls = SegmentWriter.write_batch, []

    def stop(self: SegmentWriter, *arguments: Any) -> Any:
        calls.append(1)
        rows = write_batch(self, *arguments)
        if len(calls) > 1:
            raise KeyboardInterrupt  # after the objects, before the rows
        return rows

    with monkeypatch.context() as patch:
        patch.setattr(SegmentWriter, "write_batch", stop)
        with pytest.raises(KeyboardInterrupt):
            predict_collection(predictors[0], manifest, tmp_path / "cut", coco=True)
    with open(tmp_path / "cut/coco.partial.jsonl", "a") as file:
        file.write('\n["half a li')
    predict_collection(predictors[0], manifest, tmp_path / "cut", coco=True)
    assert (tmp_path / "cut/coco_results.json").read_text() == written

    listed = [{"id": 70 + i, "file_name": name, "width": 1, "height": 1} for i, name in enumerate(names)]
    (tmp_path / "ids.json").write_text(json.dumps({"images": listed, "categories": [{"id": 4, "name": "polyp"}]}))
    predict_collection(predictors[0], manifest, tmp_path / "own", coco=True, coco_ids=tmp_path / "ids.json")
    own = json.loads((tmp_path / "own/coco_results.json").read_text())
    assert {entry["category_id"] for entry in own} == {4}
    assert [entry["image_id"] for entry in own] == [entry["image_id"] + 69 for entry in json.loads(written)]
    (tmp_path / "ids.json").write_text(json.dumps({"images": listed[1:], "categories": [{"id": 4, "name": "polyp"}]}))
    with pytest.raises(UsageError, match=f"no id for 1 of 5 images, such as {names[0]}"):
        predict_collection(predictors[0], manifest, tmp_path / "no", coco=True, coco_ids=tmp_path / "ids.json")
    with pytest.raises(UsageError, match="is for segmenters"):
        predict_collection(predictors[1], manifest, tmp_path / "no", coco=True)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("task", ["segment", "classify"])
@pytest.mark.parametrize("cut", ["", "half a line", "lost mask"])
def test_an_interrupted_prediction_is_resumed(
    predictors: tuple[SegmentPredictor, ClassifyPredictor],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    cut: str,
) -> None:
    predictor = predictors[0] if task == "segment" else predictors[1]
    manifest = open_dataset(pictures, allow_unreadable=True)
    whole, out = tmp_path / "whole", tmp_path / "out"
    monkeypatch.setattr(folders, "load_batches", lambda data, preprocessing, _: load_batches(data, preprocessing, 2))
    predict_collection(predictor, manifest, whole, unreadable=manifest.unreadable)
    seen: list[int] = []

    def stop_in_the_second(*arguments: Any) -> Any:
        seen.append(len(arguments[1]))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return write_rows(*arguments)

    writer = SegmentWriter if task == "segment" else ClassifyWriter
    write_rows = writer.write_batch
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_batch", stop_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            predict_collection(predictor, manifest, out)
    assert json.loads((out / "predictions.json").read_text())["complete"] is False
    assert not (out / "predictions.csv").exists()
    kept = 2
    if cut == "half a line":
        with open(out / "predictions.partial.jsonl", "a") as file:
            file.write('["gray.tif", "gray')
    elif cut == "lost mask" and task == "segment":
        (out / "a.jpg.png").unlink()
        kept = 1
    with pytest.raises(UsageError, match="unfinished prediction by another adapter or of other images"):
        predict_collection(predictor, manifest.take([0]), out)
    done = predict_collection(predictor, manifest, out, unreadable=manifest.unreadable)
    assert (done.images, done.kept) == (5, kept)
    assert _content(out) == _content(whole)
    with pytest.raises(UsageError, match="already holds a result"):
        predict_collection(predictor, manifest, out)


def _content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_plan_with_files_outside_the_folder_is_refused(
    predictors: tuple[SegmentPredictor, ClassifyPredictor], pictures: Path, tmp_path: Path
) -> None:
    manifest = open_dataset(pictures, allow_unreadable=True)
    out, precious = tmp_path / "out", tmp_path / "precious.png"
    predict_collection(predictors[0], manifest, out)
    precious.write_text("mine")
    plan = json.loads((out / "predictions.json").read_text())
    (out / "predictions.json").write_text(json.dumps(plan | {"masks": ["../precious.png"]}))
    with pytest.raises(DinomedError, match="no plan of this version"):
        predict_collection(predictors[0], manifest, out, overwrite=True)
    assert precious.exists()


def test_an_image_that_breaks_later_is_listed_and_the_others_are_predicted(
    predictors: tuple[SegmentPredictor, ClassifyPredictor], pictures: Path, tmp_path: Path
) -> None:
    manifest = open_dataset(pictures, allow_unreadable=True)
    (pictures / "a.png").write_bytes(b"")
    done = predict_collection(predictors[0], manifest, tmp_path / "out")
    assert done.images == 4
    assert [path for path, _ in done.unreadable] == ["a.png"]
    assert examine_predictions(tmp_path / "out").sound


def test_names_never_collide() -> None:
    assert file_names(["a.jpg", "b/a.jpg"]) == ["a.png", "b/a.png"]
    assert file_names(["a.jpg", "A.png"]) == ["a.jpg.png", "A.png.png"]  # one file where case does not count
    tricky = ["a.jpg", "a.png", "a.jpg.tif"]  # the third wants the name that the first gets
    names = file_names(tricky)
    assert len(set(names)) == 3
    assert names == ["a.jpg.png", "a.png.png", "a.jpg.tif.png"]


def test_a_mask_is_summarized() -> None:
    probability = np.array([[0.9, 0.7], [0.2, 0.1]], np.float32)
    summary = summarize(probability, probability >= 0.7)
    assert (summary.area_px, summary.area_fraction) == (2, 0.5)
    assert summary.confidence == pytest.approx(0.8, abs=1e-7)
    nothing = summarize(probability, probability >= 0.95)
    assert (nothing.area_px, nothing.confidence) == (0, None)
    assert nothing.highest == pytest.approx(0.9)
