"""Files in the output folder of a prediction of videos: its own are replaced, those of others never."""

import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

import dinomed
from dinomed.adapters.inference.plan import PredictionPlan, begin
from dinomed.adapters.video.frames import choose_step
from dinomed.adapters.video.result import VideoPredictionResult
from dinomed.adapters.video.run import RESERVED
from dinomed.datasets.scan.videos import find_videos, name_groups
from dinomed.errors import UsageError
from dinomed.video.write import writing_video

Dark = runpy.run_path(str(Path(__file__).with_name("written.py")))["Dark"]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "a.avi"
    with writing_video(path, (48, 64), 10) as append:
        for grey in (0, 255, 0, 255):
            append(np.full((48, 64), grey, np.uint8))
    return path


def test_files_of_others_are_neither_removed_nor_replaced(video: Path, tmp_path: Path) -> None:
    out, group = tmp_path / "out", name_groups([video])[0]
    mine = ("predictions.csv", "unreadable.csv", "predictions.partial.jsonl")
    dinomed.predict(Dark(), video, out, step=2)
    for name in mine:
        (out / name).write_text("mine")
    dinomed.predict(Dark(), video, out, step=4, overwrite=True)
    assert {(out / name).read_text() for name in mine} == {"mine"}
    plan = PredictionPlan({"images": "of a folder"}, ())
    for name in mine:
        with pytest.raises(UsageError, match=f"{name} is in the way"):
            begin(out, plan, overwrite=True)
        assert (out / name).read_text() == "mine"
        (out / name).unlink()
    begin(out, plan, overwrite=True)
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["predictions.json"]
    taken = "summary.json", f"{group}/predictions.csv", group
    for name in taken:
        shutil.rmtree(out / group)
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
        predictor = Dark()
        with pytest.raises(UsageError, match=f"{name} is in the way"):
            dinomed.predict(predictor, video, out, overwrite=True)
        assert (predictor.seen, (out / name).read_text()) == (0, "mine")
        (out / name).unlink()
        (out / group).mkdir(exist_ok=True)
    dinomed.predict(Dark(), video, out, step=2, overwrite=True)


def test_no_folder_of_a_video_has_the_name_of_a_file_of_a_prediction(video: Path, tmp_path: Path) -> None:
    names = ("predictions.csv", "unreadable.csv", "index.html", "summary.json", "predictions.partial.jsonl")
    for name in names:
        (tmp_path / f"{name}.avi").write_bytes(video.read_bytes())
    assert not set(name_groups(find_videos([tmp_path]), True, RESERVED)) & set(names)


def test_doctor_knows_the_files_of_a_result(video: Path, tmp_path: Path) -> None:
    dinomed.predict(Dark(), video, tmp_path / "out")
    assert dinomed.doctor(tmp_path / "out").sound
    (tmp_path / "out" / name_groups([video])[0] / "predictions.csv").unlink()
    assert not dinomed.doctor(tmp_path / "out").sound


@pytest.mark.parametrize(
    ("rates", "step"), [((30, 21), 2), ((30, 23), 1), ((25, 10), 3), ((25, 100), 1), ((12.5, 6), 2)]
)
def test_the_step_gives_the_nearest_rate(rates: tuple[float, float], step: int) -> None:
    assert choose_step(*rates, None) == step


def test_the_printed_facts_have_each_value_that_any_video_has() -> None:
    answers = [{"video": "1", "largest_area_px": None}, {"video": "2", "largest_area_px": 7}]
    result = VideoPredictionResult(Path("out"), 2, 0, [], groups={"a": "1", "b": "2"}, answers=answers)
    assert result.facts() == [("file", "a", "b"), ("largest_area_px", None, 7)]
