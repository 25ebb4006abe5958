"""`dinomed predict ADAPTER VIDEO`: a trained segmenter and a trained classifier, from the command to the files."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

import dinomed
from dinomed.adapters.tasks.classify.predict import ClassPrediction
from dinomed.apps.cli import main
from dinomed.datasets.synthetic.endoscopy import write_endoscopy
from dinomed.video.video import Video

tools = runpy.run_path(str(Path(__file__).with_name("written.py")))
rows_of, masks_in, only = tools["rows_of"], tools["masks_in"], tools["only"]


def exit_code(*words: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(map(str, words)))
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def endoscopy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_endoscopy(tmp_path_factory.mktemp("videos") / "syn", count=30, size=(48, 64))[0]


def test_the_command_predicts_a_video_by_a_segmenter(
    user_folder: Path, endoscopy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("predict", user_folder / "seg", endoscopy, "-o", tmp_path / "out", "--step", "2", "--backbone")
    assert exit_code(*words, user_folder / "ssl", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["frames"], report["videos"]) == (15, {str(endoscopy): only(tmp_path / "out").name})
    predictor = dinomed.load_adapter(user_folder / "seg", backbone=user_folder / "ssl")
    frames = [frame.pixels for frame in Video(endoscopy).stream(2)]
    masks = masks_in(only(tmp_path / "out") / "mask.avi")
    for mask, expected in zip(masks, predictor.predict(frames), strict=True):
        assert np.array_equal(mask, 255 * expected.mask)
    assert sorted(path.name for path in (only(tmp_path / "out")).iterdir()) == [
        "area.svg", "mask.avi", "overlay.avi", "predictions.csv", "summary.json",
    ]  # fmt: skip
    cut = tmp_path / "cut.avi"
    cut.write_bytes(endoscopy.read_bytes()[: endoscopy.stat().st_size * 2 // 3])
    assert exit_code("predict", user_folder / "seg", cut, "-o", tmp_path / "kept", "--fps", "5", "--coco") == 2
    assert "--coco is for images" in " ".join(capsys.readouterr().err.split())
    words = ("predict", user_folder / "seg", cut, "-o", tmp_path / "kept", "--fps", "5", "--backbone")
    assert exit_code(*words, user_folder / "ssl") == 1
    printed = capsys.readouterr()
    assert "cut off or damaged" in " ".join(printed.err.split())
    assert "frames_with_lesion" in printed.out
    assert (only(tmp_path / "kept") / "mask.avi").is_file()


def test_the_command_predicts_a_video_by_a_classifier(
    user_folder: Path, endoscopy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("predict", user_folder / "cls", endoscopy, "-o", tmp_path / "out", "--backbone", user_folder / "ssl")
    assert exit_code(*words) == 0
    predictor = dinomed.load_adapter(user_folder / "cls", backbone=user_folder / "ssl")
    results: list[ClassPrediction] = predictor.predict([frame.pixels for frame in Video(endoscopy).stream()])
    rows = rows_of(only(tmp_path / "out"))
    assert [row["predicted"] for row in rows] == [result.label for result in results]
    answer = json.loads((only(tmp_path / "out") / "summary.json").read_text())
    for name in predictor.classes:
        values = [result.probabilities[name] for result in results]
        assert [float(row[name]) for row in rows] == pytest.approx(values, abs=1e-4)  # other batches
        assert answer["probabilities"][name] == pytest.approx(np.mean(values), abs=1e-4)
    assert answer["predicted"] == max(answer["probabilities"], key=answer["probabilities"].get)
    assert answer["rule"] == "mean of the probabilities over the frames"
    plot = (only(tmp_path / "out") / "probability.svg").read_text()
    assert all(f">{name}</text>" in plot for name in predictor.classes)
    assert sorted(path.name for path in (only(tmp_path / "out")).iterdir()) == [
        "predictions.csv", "probability.svg", "summary.json",
    ]  # fmt: skip
