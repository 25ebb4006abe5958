"""Videos predicted by depth estimators and by classifiers for groups: exact maps, one answer from several frames."""

import csv
import json
import runpy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import dinomed
from dinomed.adapters.tasks.depth.maps import DepthSource
from dinomed.adapters.tasks.depth.predict import DepthPrediction, DepthPredictor
from dinomed.errors import UsageError
from dinomed.images.decode import UnreadableImage
from dinomed.video.video import Video
from dinomed.video.write import writing_video

tools = runpy.run_path(str(Path(__file__).with_name("written.py")))
rows_of, only = tools["rows_of"], tools["only"]
COUNT, SIZE = 30, (31, 45)  # odd sides
LOW, HIGH, SCALE = 0.5, 8.0, 1e-3


class Gray(DepthPredictor):
    """A stand-in with a known rule: the depth grows with the mean of the frame, and from row to row."""

    def __init__(self) -> None:
        self.task, self.classes, self.backbone = "depth", (), tools["BACKBONE"]
        self.low, self.high, self.source = LOW, HIGH, DepthSource("depth", SCALE, "cm")
        self.metadata = {"weights_sha256": "0" * 64}
        self.check = self.abstention = None

    def predict(self, images: Iterable[Any]) -> list[DepthPrediction]:
        return [DepthPrediction(depth_of(image), "cm") for image in images]


def depth_of(frame: np.ndarray) -> np.ndarray:
    rows = np.linspace(0, 1, frame.shape[0], dtype=np.float32)[:, None]
    depth: np.ndarray = LOW + 3 * frame.mean() / 255 + rows * np.ones(frame.shape[:2], np.float32)
    return depth


def stored_maps(path: Path) -> list[np.ndarray]:
    """The values of a video of 16 bits, as the documentation reads them."""
    capture = cv2.VideoCapture(str(path))
    capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)
    maps = []
    while (read := capture.read())[0]:
        maps.append(read[1].squeeze())
    return maps


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames that become brighter until frame 20, and are black from there on."""
    path = tmp_path_factory.mktemp("videos") / "a.avi"
    with writing_video(path, SIZE, 10) as append:
        for number in range(COUNT):
            append(np.full(SIZE, 12 * number if number <= 20 else 0, np.uint8))
    return path


def test_a_depth_video_has_the_exact_maps_in_the_unit_of_training(video: Path, tmp_path: Path) -> None:
    done = dinomed.predict(Gray(), video, tmp_path / "out", step=5)
    folder = only(tmp_path / "out")
    answer, rows = json.loads((folder / "summary.json").read_text()), rows_of(folder)
    frames = [frame.pixels for frame in Video(video).stream(5)]
    maps = stored_maps(folder / "depth.avi")
    assert len(maps) == len(frames) == len(rows) == done.images == 6
    for stored, frame, row in zip(maps, frames, rows, strict=True):
        depth, (height, width) = depth_of(frame), frame.shape[:2]
        assert stored.dtype == np.uint16
        assert np.abs(stored[:height, :width] * answer["maps"]["scale"] - depth).max() <= SCALE / 2 + 1e-6
        assert not stored[height:].any()  # the added row is unknown
        for name, value in (("min", depth.min()), ("median", np.median(depth)), ("max", depth.max())):
            assert float(row[f"{name}_depth"]) == pytest.approx(value, rel=1e-5)
    assert (answer["unit"], answer["maps"]["file"], answer["maps"]["scale"]) == ("cm", "depth.avi", SCALE)
    assert (answer["largest_depth_frame"], answer["smallest_depth_frame"]) == (20, 0)
    assert answer["largest_depth"] == pytest.approx(max(depth_of(frame).max() for frame in frames), rel=1e-5)
    assert answer["median_depth"] == pytest.approx(
        np.median([np.median(depth_of(frame)) for frame in frames]), rel=1e-5
    )
    colours = [frame.pixels.astype(int) for frame in Video(folder / "depth_colours.avi").stream()]
    brightness = [frame[: SIZE[0], : SIZE[1]].mean() for frame in colours]
    assert np.argmax(brightness) == 4  # frame 20 is the deepest
    assert "cm" in (folder / "depth.svg").read_text()
    assert "median" in (folder / "depth.svg").read_text()


def test_a_lost_frame_of_a_depth_video_is_unknown(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Video._read

    def lose_some(self: Video, start: int, stop: int, step: int) -> Any:
        frames, following = read(self, start, stop, step)
        return [frame for frame in frames if frame.number != 10], following

    with monkeypatch.context() as patch:
        patch.setattr(Video, "_read", lose_some)
        dinomed.predict(Gray(), video, tmp_path / "out", step=5)
    maps, rows = stored_maps(only(tmp_path / "out") / "depth.avi"), rows_of(only(tmp_path / "out"))
    assert [bool(stored.any()) for stored in maps] == [True, True, False, True, True, True]
    assert [row["problem"] for row in rows] == ["", "", "cannot be decoded", "", "", ""]


def test_a_depth_estimator_has_no_text_to_mask_and_does_not_abstain(video: Path, tmp_path: Path) -> None:
    for option, words in (({"mask_text": True}, "writes no overlay videos"), ({"abstain": 0.1}, "has no thresholds")):
        with pytest.raises(UsageError, match=words):
            dinomed.predict(Gray(), video, tmp_path / "out", **option)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory, user_folder: Path) -> Path:
    """A folder with a video of 11 lesions, and one of 5, which are fewer than the frames of a group."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("lesions")
    files = sorted((user_folder / "lesions" / "images").iterdir())
    for name, part in (("a.avi", files[:11]), ("b.avi", files[20:25])):
        with writing_video(folder / name, (40, 48), 10) as append:
            for file in part:
                append(np.asarray(Image.open(file).convert("RGB").resize((48, 40))))
    return folder


@pytest.fixture(scope="module", params=["mean", "concat"])
def groups(request: pytest.FixtureRequest, user_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("groups") / request.param
    settings = {"unit": "group", "pool": request.param, "fit.epochs": 2, "fit.min_steps": 0}
    dinomed.train("classify", user_folder / "ssl", user_folder / "derm.parquet", out, settings=settings, device="cpu")
    return out


def test_the_answer_for_a_video_is_that_for_the_group_of_its_frames(
    groups: Path, user_folder: Path, colours: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"backbone": user_folder / "ssl"}
    done: Any = dinomed.predict(groups, colours, tmp_path / "out", unit="group", **options)
    every = {"fps": 0, "duplicate_bits": -1, "min_luminance": 0, "min_sharpness": 0, "min_tissue": 0}
    manifest = dinomed.scan(colours, out=tmp_path / "frames.parquet", videos=True, keep_ids=True, **every)  # type: ignore[arg-type]
    dinomed.predict(groups, manifest, tmp_path / "groups", unit="group", **options)
    with open(tmp_path / "groups" / "predictions.csv", newline="") as file:
        expected = {Path(row["group"]).stem: row for row in csv.DictReader(file)}
    predictor = dinomed.load_adapter(groups, backbone=user_folder / "ssl")
    assert len(expected) == len(done.answers) == 2
    for path, group in done.groups.items():
        (answer,) = (answer for answer in done.answers if answer["video"] == group)
        row, rows = expected[Path(path).stem], rows_of(tmp_path / "out" / group)
        assert answer["predicted"] == row["predicted"]
        assert answer["prediction_set"] == row["prediction_set"]
        for name in predictor.classes:
            assert answer["probabilities"][name] == pytest.approx(float(row[name]), abs=2e-5)
        assert answer["frames"] == len(rows) == int(row["images"])  # no others are decoded and predicted
        assert f"{len(rows)} evenly spaced frames" in answer["rule"]
        assert (answer["unlike_training"], row["unlike_training"]) in ((False, "no"), (True, "yes"), (False, "yes"))
    numbers = [int(row["frame"]) for row in rows_of(tmp_path / "out" / done.groups[str(colours / "a.avi")])]
    assert numbers == [(2 * i + 1) * 11 // 16 for i in range(8)]


def test_abstention_is_of_the_whole_video_and_compares_its_confidence(
    user_folder: Path, colours: Path, tmp_path: Path
) -> None:
    settings = {"unit": "group", "fit.epochs": 2, "fit.min_steps": 0}
    data = user_folder / "derm.parquet"
    adapter = dinomed.train("classify", user_folder / "ssl", data, tmp_path / "g", settings=settings, device="cpu")
    options: dict[str, Any] = {"backbone": user_folder / "ssl", "abstain": 0.5}
    done: Any = dinomed.predict(adapter, colours, tmp_path / "out", **options)
    for answer in done.answers:
        confidence = max(answer["probabilities"].values())
        assert answer["confidence"] == pytest.approx(confidence, abs=2e-6)  # both have 6 decimals
        assert answer["abstained"] is (confidence < answer["abstention_threshold"])
        assert "frames_abstained" not in answer
        assert "abstained" not in rows_of(tmp_path / "out" / answer["video"])[0]
    assert done.abstained_videos == sum(answer["abstained"] for answer in done.answers)
    assert (done.abstained, "abstained_frames" in done.report()) == (0, False)
    assert done.abstained_text().startswith(
        f"Abstained: {done.abstained_videos} of {len(done.answers)} videos. A video is abstained if the confidence of "
        "its answer is below"
    )
    assert "of the validation groups reach" in done.report()["abstention"]


def test_a_lost_frame_is_left_out_of_the_group(
    user_folder: Path, groups: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Video.read

    def lose_one(self: Video, number: int) -> Any:
        if number == 2:
            raise UnreadableImage(self.path, "frame 2 cannot be decoded")
        return read(self, number)

    monkeypatch.setattr(Video, "read", lose_one)
    done: Any = dinomed.predict(groups, colours / "a.avi", tmp_path / "out", backbone=user_folder / "ssl")
    (answer,) = done.answers
    assert (answer["frames"], answer["frames_without_prediction"]) == (7, 1)
    assert "7 evenly spaced frames" in answer["rule"]
    assert [row["problem"] for row in rows_of(only(tmp_path / "out"))][1] == "frame 2 cannot be decoded"


def test_a_classifier_for_images_refuses_the_unit_of_groups(user_folder: Path, colours: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`unit=group` is for images"):
        dinomed.predict(user_folder / "cls", colours, tmp_path / "out", unit="group", backbone=user_folder / "ssl")


def test_a_task_without_videos_names_the_way_by_frames(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dinomed.adapters.tasks.depth.task import DepthTask

    monkeypatch.setattr(DepthTask, "video_answer", "")
    with pytest.raises(UsageError, match="a depth estimator predicts no videos; write frames by `dinomed frames"):
        dinomed.predict(Gray(), video, tmp_path / "out")
