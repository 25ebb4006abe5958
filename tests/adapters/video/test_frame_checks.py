"""The columns `unlike_training` and `abstained` of videos: equal to those of the same frames as images."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dinomed
from dinomed.adapters.video.checks import FrameChecks
from dinomed.errors import UsageError
from dinomed.features.familiarity.reference import Familiarity
from dinomed.metrics.uncertainty.abstention import AbstentionRule, AbstentionTable
from dinomed.video.write import writing_video

tools = runpy.run_path(str(Path(__file__).with_name("written.py")))
Dark, rows_of, masks_in, only = tools["Dark"], tools["rows_of"], tools["masks_in"], tools["only"]
SIZE, COUNT, ODD = (40, 48), 12, 8
CHECKS = ("abstained", "unlike_training", "distance_percentile")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def video(user_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four lesions, then green and violet boards, as no lesion is."""
    folder = tmp_path_factory.mktemp("videos")
    board = np.indices(SIZE).sum(axis=0) // 4 % 2
    odd = np.array([[20, 255, 20], [200, 0, 255]], np.uint8)[board]
    lesions = sorted((user_folder / "lesions" / "images").iterdir())[: COUNT - ODD]
    frames = [np.asarray(Image.open(path).convert("RGB").resize(SIZE[::-1])) for path in lesions]
    with writing_video(folder / "a.avi", SIZE, 10) as append:
        for frame in [*frames, *[odd] * ODD]:
            append(frame)
    return folder / "a.avi"


@pytest.mark.parametrize("adapter", ["cls", "seg"])
def test_frames_are_judged_as_images_are(user_folder: Path, video: Path, tmp_path: Path, adapter: str) -> None:
    options: dict[str, Any] = {"backbone": user_folder / "ssl", "abstain": 0.3}
    done = dinomed.predict(user_folder / adapter, video, tmp_path / "video", **options)
    every = {"fps": 0, "duplicate_bits": -1, "min_luminance": 0, "min_sharpness": 0, "min_tissue": 0}
    manifest = dinomed.scan(video.parent, out=tmp_path / "frames.parquet", videos=True, **every)  # type: ignore[arg-type]
    dinomed.predict(user_folder / adapter, manifest, tmp_path / "images", sheet=False, **options)
    frames, images = rows_of(only(tmp_path / "video")), rows_of(tmp_path / "images")
    assert len(frames) == len(images) == COUNT
    for frame, image in zip(frames, images, strict=True):
        assert [frame[name] for name in CHECKS[:2]] == [image[name] for name in CHECKS[:2]]
        assert float(frame["distance_percentile"]) == pytest.approx(float(image["distance_percentile"]), abs=0.2)
    assert [row["unlike_training"] for row in frames[-ODD:]] == ["yes"] * ODD
    answer = json.loads((only(tmp_path / "video") / "summary.json").read_text())
    unlike, abstained = ([row[name] == "yes" for row in frames] for name in ("unlike_training", "abstained"))
    assert answer["frames_unlike_training"] == sum(unlike)
    assert answer["unlike_training"] is True
    assert answer["frames_abstained"] == done.abstained == sum(abstained)
    assert answer["abstained"] is (answer["confidence"] < answer["abstention_threshold"])
    if adapter == "cls":
        highest = max(answer["probabilities"].values())
        assert answer["confidence"] == pytest.approx(highest, abs=2e-6)  # both have 6 decimals


class Sure(Dark):  # type: ignore[valid-type, misc]
    """A stand-in whose confidence is the median probability of a frame: 1 for black, 0 for white."""

    def __init__(self) -> None:
        super().__init__()
        table = {"thresholds": (0.5, 0.1), "coverages": (0.7, 1.0), "risks": (0.1, 0.2)}
        self.abstention = AbstentionTable(loss="loss", **table)

    def confidence(self, probabilities: np.ndarray) -> float:
        return float(np.median(probabilities))


GRAYS = {"a.avi": [0, 0, 200, 0, 220], "b.avi": [200, 0, 200, 210]}
"""Gray value of each frame of two videos, with a black corner; above 127 a frame is abstained at the threshold 0.5."""


@pytest.fixture(scope="module")
def gray_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gray")
    for name, grays in GRAYS.items():
        with writing_video(folder / name, SIZE, 10, lossless=True) as append:
            for gray in grays:
                frame = np.full(SIZE, gray, np.uint8)
                frame[:8, :8] = 0  # a lesion
                append(frame)
    return folder


def test_abstained_frames_keep_their_rows_and_masks_and_are_counted(gray_videos: Path, tmp_path: Path) -> None:
    done: Any = dinomed.predict(Sure(), gray_videos, tmp_path / "out", abstain=0.3)
    expected = {"a.avi": (["no", "no", "yes", "no", "yes"], False), "b.avi": (["yes", "no", "yes", "yes"], True)}
    for path, group in done.groups.items():
        (answer,) = (answer for answer in done.answers if answer["video"] == group)
        (cells, abstained), grays = expected[Path(path).name], GRAYS[Path(path).name]
        assert [row["abstained"] for row in rows_of(done.folder / group)] == cells
        masks = masks_in(done.folder / group / "mask.avi")
        assert [mask.all() for mask in masks] == [gray < 128 for gray in grays]
        assert all(mask[:8, :8].all() for mask in masks)  # of abstained frames too
        assert (answer["frames"], answer["frames_abstained"]) == (len(cells), cells.count("yes"))
        assert answer["confidence"] == pytest.approx(1 - np.mean(grays) / 255, abs=1e-6)  # 6 decimals
        assert answer["abstained"] is abstained
    assert (done.images, done.abstained, done.abstained_videos) == (9, 5, 1)
    report = done.report()
    assert (report["frames"], report["abstained_frames"], report["abstained_videos"]) == (9, 5, 1)
    assert done.abstained_text().startswith("Abstained: 5 of 9 frames, 1 of 2 videos. A frame is abstained if")


def test_abstained_frames_of_finished_videos_are_counted_after_an_interruption(
    gray_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = Sure.predict

    def stop(self: Any, images: Any) -> Any:
        if self.seen >= len(GRAYS["a.avi"]):
            raise KeyboardInterrupt
        return predict(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(Sure, "predict", stop)
        with pytest.raises(KeyboardInterrupt):
            dinomed.predict(Sure(), gray_videos, tmp_path / "out", abstain=0.3)
    for other in ({}, {"abstain": 0}):
        with pytest.raises(UsageError, match="holds an unfinished prediction"):
            dinomed.predict(Sure(), gray_videos, tmp_path / "out", **other)
    done: Any = dinomed.predict(Sure(), gray_videos, tmp_path / "out", abstain=0.3)
    assert (done.kept, done.images, done.abstained, done.abstained_videos) == (1, 9, 5, 1)


@pytest.mark.parametrize(
    ("adapter", "whole"), [("cls", "the confidence of its answer"), ("seg", "the mean confidence of its frames")]
)
def test_the_command_counts_abstained_frames_and_videos_and_says_the_rule_of_both(
    user_folder: Path, video: Path, tmp_path: Path, run: Run, adapter: str, whole: str
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.avi", "b.avi"):
        (tmp_path / "in" / name).write_bytes(video.read_bytes())
    words = ("predict", user_folder / adapter, tmp_path / "in", "--backbone", user_folder / "ssl")
    code, out, _ = run(*words, "-o", tmp_path / "out", "--abstain", 0.3, "--json")
    assert code == 0
    report = json.loads(out)
    frames, videos = (sum(answer[name] for answer in report["answers"]) for name in ("frames_abstained", "abstained"))
    assert (report["abstained_frames"], report["abstained_videos"]) == (frames, videos)
    assert (report["frames"], report["kept_videos"], "abstained" in report) == (2 * COUNT, 0, False)
    threshold = report["answers"][0]["abstention_threshold"]
    assert report["abstention"].startswith(f"A frame is abstained if its confidence is below {threshold:.4g}, which ")
    assert "of the validation images reach" in report["abstention"]
    assert report["abstention"].endswith(f"A video is abstained if {whole} is below it.")
    code, out, _ = run(*words, "-o", tmp_path / "table", "--abstain", 0.3)
    printed = " ".join(out.split())
    assert f"Abstained: {frames} of {2 * COUNT} frames, {videos} of 2 videos. A frame is abstained if" in printed
    (tmp_path / "in" / "c.mp4").write_text("no video")
    code, out, err = run(*words, "-o", tmp_path / "plain")
    assert (code, "bstained" in out) == (1, False)
    assert "1 of 3 videos have a problem (the first:" in " ".join(err.split())


def test_the_two_options_of_abstention_exclude_each_other(
    user_folder: Path, video: Path, tmp_path: Path, run: Run
) -> None:
    words = ("predict", user_folder / "cls", video, "-o", tmp_path / "out", "--backbone", user_folder / "ssl")
    code, _, err = run(*words, "--abstain", 0.3, "--max-risk", 0.2)
    assert (code, "exclude each other" in err) == (2, True)


def test_a_video_is_unlike_by_half_of_its_frames_and_abstained_by_their_mean_confidence() -> None:
    like, unlike = Familiarity(1.0, 40.0, False), Familiarity(9.0, 100.0, True)
    checks = FrameChecks(AbstentionRule(0.5, 0.8, 0.1, "loss"))
    assert checks.columns == list(CHECKS)
    assert checks.add(like, 0.4) == ["yes", "no", "40.0"]
    assert checks.add(unlike, 0.6) == ["no", "yes", "100.0"]
    half = checks.summarize(lambda: None)
    assert (half["unlike_training"], half["abstained"], half["distance_percentile"]) == (True, False, 70.0)
    assert (half["frames_abstained"], half["confidence"]) == (1, 0.5)  # the mean reaches the threshold
    checks.add(like, 0.5)
    assert checks.summarize(lambda: None)["unlike_training"] is False  # one of three
    checks.add(unlike, 0.1)
    checks.add(unlike, 0.5)
    most = checks.summarize(lambda: None)
    assert (most["unlike_training"], most["frames_unlike_training"], most["confidence"]) == (True, 3, 0.42)
    assert (most["abstained"], most["frames_abstained"], most["abstention_threshold"]) == (True, 2, 0.5)
    sure = checks.summarize(lambda: 0.7)  # the confidence of an answer, as classifiers have it
    assert (sure["abstained"], sure["confidence"]) == (False, 0.7)


def test_without_a_check_and_without_a_rule_nothing_is_said() -> None:
    checks = FrameChecks(None)
    assert checks.add(None, None) == ["", ""]
    expected = {"unlike_training": None, "frames_unlike_training": None, "distance_percentile": None}
    assert checks.summarize(lambda: None) == expected
