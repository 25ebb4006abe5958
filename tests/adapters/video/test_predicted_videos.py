"""`predict` on videos: exact mask videos, one row a frame, one answer a video, and one clear line for bad input."""

import json
import runpy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dinomed
from dinomed.adapters.tasks.segment.predict import MaskPrediction
from dinomed.adapters.video.result import VideoPredictionResult
from dinomed.datasets.synthetic.endoscopy import draw_endoscopy
from dinomed.errors import DinomedError, UsageError
from dinomed.features.finite import NotFiniteError
from dinomed.images.decode import UnreadableImage
from dinomed.video.video import Video
from dinomed.video.write import writing_video

tools = runpy.run_path(str(Path(__file__).with_name("written.py")))
rows_of, masks_in, only = tools["rows_of"], tools["masks_in"], tools["only"]
Dark = tools["Dark"]
write_dicom = runpy.run_path(str(Path(__file__).parents[2] / "video" / "cine.py"))["write_dicom"]
COUNT, SIZE, FPS = 40, (48, 64), 12.5
MASKS = [frame.mask for frame in draw_endoscopy(COUNT, SIZE)]  # some are empty


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """White frames in which the polyp of a synthetic endoscopy is black."""
    path = tmp_path_factory.mktemp("videos") / "Planted Name.avi"
    with writing_video(path, SIZE, FPS) as append:
        for mask in MASKS:
            append(255 * (1 - mask))
    return path


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_mask_video_equals_the_masks_pixel_for_pixel(video: Path, tmp_path: Path) -> None:
    done = dinomed.predict(Dark(), video, tmp_path / "out")
    folder = only(tmp_path / "out")
    masks, rows = masks_in(folder / "mask.avi"), rows_of(folder)
    assert len(masks) == len(rows) == done.images == COUNT
    for number, (mask, row) in enumerate(zip(masks, rows, strict=True)):
        assert np.array_equal(mask, 255 * MASKS[number])
        assert (int(row["frame"]), int(row["area_px"])) == (number, MASKS[number].sum())
        assert float(row["time_s"]) == pytest.approx(number / FPS, abs=1e-3)
        assert float(row["area_fraction"]) == pytest.approx(MASKS[number].mean(), abs=1e-6)
        assert (row["confidence"] == "") == (not MASKS[number].any())
    areas = [int(mask.sum()) for mask in MASKS]
    largest = int(np.argmax(areas))
    answer = json.loads((folder / "summary.json").read_text())
    assert "research use" in answer["notice"]
    assert (answer["frames"], answer["frames_without_prediction"], answer["problems"]) == (COUNT, 0, [])
    assert answer["frames_with_lesion"] == sum(area > 0 for area in areas) < COUNT
    assert (answer["largest_area_px"], answer["largest_area_frame"]) == (areas[largest], largest)
    assert answer["largest_area_time_s"] == pytest.approx(largest / FPS, abs=1e-3)
    assert answer["mean_area_fraction"] == pytest.approx(np.mean(MASKS), abs=1e-6)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["videos"] == [answer]


def test_the_overlay_has_the_outline_and_the_plot_the_areas(video: Path, tmp_path: Path) -> None:
    dinomed.predict(Dark(), video, tmp_path / "out")
    overlay = [frame.pixels.astype(int) for frame in Video(only(tmp_path / "out") / "overlay.avi").stream()]
    coloured = [int((frame.max(axis=2) - frame.min(axis=2) > 40).sum()) for frame in overlay]  # the video is gray
    assert not any(count for count, mask in zip(coloured, MASKS, strict=True) if not mask.any())
    assert min(count for count, mask in zip(coloured, MASKS, strict=True) if mask.sum() > 40) > 20
    plot = (only(tmp_path / "out") / "area.svg").read_text()
    (line,) = [part for part in plot.split("<polyline ")[1:] if 'stroke-width="1.5"' in part]
    heights = [float(point.split(",")[1]) for point in line.split('"')[1].split()]
    areas = np.array([mask.sum() for mask in MASKS])
    assert np.allclose(
        heights, max(heights) - areas / areas.max() * (max(heights) - min(heights)), atol=0.1
    )  # 1 decimal


def test_no_file_carries_the_name_of_the_video_without_names(video: Path, tmp_path: Path) -> None:
    dinomed.predict(Dark(), video, tmp_path / "out")
    for name, content in files_below(tmp_path / "out").items():
        assert "Planted" not in name
        assert b"Planted" not in content, name
    dinomed.predict(Dark(), video, tmp_path / "named", names=True)
    assert (tmp_path / "named" / "Planted Name" / "mask.avi").is_file()


@pytest.mark.parametrize(("option", "step"), [({"step": 3}, 3), ({"fps": 6}, 2), ({"fps": 100}, 1)])
def test_fewer_frames_are_read_and_the_mask_video_has_their_rate(
    video: Path, tmp_path: Path, option: dict[str, Any], step: int
) -> None:
    dinomed.predict(Dark(), video, tmp_path / "out", **option)
    assert [int(row["frame"]) for row in rows_of(only(tmp_path / "out"))] == list(range(0, COUNT, step))
    for mask, expected in zip(masks_in(only(tmp_path / "out") / "mask.avi"), MASKS[::step], strict=True):
        assert np.array_equal(mask, 255 * expected)
    assert Video(only(tmp_path / "out") / "mask.avi").facts.fps == pytest.approx(FPS / step, rel=1e-3)


def test_several_classes_have_a_mask_video_each(video: Path, tmp_path: Path) -> None:
    dinomed.predict(Dark("polyp", "Polyp"), video, tmp_path / "out", step=10)
    answer = json.loads((only(tmp_path / "out") / "summary.json").read_text())
    assert answer["masks"] == {"polyp": "mask_polyp.avi", "Polyp": "mask_Polyp_2.avi"}
    row = rows_of(only(tmp_path / "out"))[0]
    assert {"area_px polyp", "area_fraction Polyp", "confidence polyp", "area_fraction", "uncertainty"} <= set(row)
    assert answer["classes"]["polyp"]["largest_area_px"] == answer["largest_area_px"]
    for file in answer["masks"].values():
        for mask, expected in zip(masks_in(only(tmp_path / "out") / file), MASKS[::10], strict=True):
            assert np.array_equal(mask, 255 * expected)


def test_frames_are_predicted_in_batches_while_they_are_decoded(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, alive, most = Video._read, [0], [0]
    predictor = Dark()

    def counted(self: Video, start: int, stop: int, step: int) -> Any:
        frames, following = read(self, start, min(stop, start + 8), step)
        alive[0] += len(frames)
        most[0] = max(most[0], alive[0] - predictor.seen)
        return frames, following

    monkeypatch.setattr(Video, "_read", counted)
    dinomed.predict(predictor, video, tmp_path / "out")
    assert predictor.seen == COUNT
    assert most[0] <= 24  # a batch of 16 that waits for more, and the 8 frames that were just decoded


def test_an_interrupted_call_leaves_nothing_and_keeps_finished_videos(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.avi", "b.avi"):
        (folder / name).write_bytes(video.read_bytes())
    whole = dinomed.predict(Dark(), folder, tmp_path / "whole")
    predict = Dark.predict

    def stop(self: Any, images: Iterable[Any]) -> list[MaskPrediction]:
        if self.seen >= COUNT + 16:  # in the middle of the second video
            raise KeyboardInterrupt
        return predict(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(Dark, "predict", stop)
        with pytest.raises(KeyboardInterrupt):
            dinomed.predict(Dark(), folder, tmp_path / "cut")
    assert [path.name for path in (tmp_path / "cut").iterdir()] == [".unfinished"]
    assert not any(path.suffix == ".avi" for path in (tmp_path / "cut/.unfinished").glob("*-2/*"))
    predictor = Dark()
    done = dinomed.predict(predictor, folder, tmp_path / "cut")
    assert (predictor.seen, done.kept, done.images) == (COUNT, 1, whole.images)
    first, second = files_below(tmp_path / "whole"), files_below(tmp_path / "cut")
    assert first.keys() == second.keys()
    assert all(first[name] == second[name] for name in first if not name.endswith(".avi"))
    with monkeypatch.context() as patch:
        patch.setattr(Dark, "predict", stop)
        with pytest.raises(KeyboardInterrupt):
            dinomed.predict(Dark(), folder, tmp_path / "other")
    other = Dark()
    with pytest.raises(UsageError, match="holds an unfinished prediction"):
        dinomed.predict(other, folder, tmp_path / "other", step=2)
    with pytest.raises(UsageError, match="holds an unfinished prediction"):
        dinomed.predict(other, video, tmp_path / "other")
    dinomed.predict(other, folder, tmp_path / "other", step=2, overwrite=True)  # another setting: nothing is kept
    assert other.seen == COUNT


def test_overwrite_replaces_a_result_and_nothing_else(video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dinomed.predict(Dark("a", "b"), video, out, names=True)
    with pytest.raises(UsageError, match="already holds a result"):
        dinomed.predict(Dark(), video, out)
    (out / "mine.txt").write_text("mine")
    dinomed.predict(Dark(), video, out, overwrite=True)
    group = only(out).name
    assert "Planted" not in group
    assert {path.name for path in out.iterdir()} == {group, "mine.txt", "predictions.json", "summary.json"}
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "a.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"not empty and holds no predictions.json"):
        dinomed.predict(Dark(), video, tmp_path / "used", overwrite=True)


def test_written_videos_are_no_input_of_the_next_call(video: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.avi").write_bytes(video.read_bytes())
    dinomed.predict(Dark(), folder, folder / "out", step=20)
    assert dinomed.predict(Dark(), folder, tmp_path / "out", step=20).images == 2
    assert len(dinomed.frames(folder, tmp_path / "frames", fps=1, min_tissue=0, min_sharpness=0).groups) == 1


def test_a_truncated_video_keeps_its_frames_and_names_the_problem(video: Path, tmp_path: Path) -> None:
    content = video.read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) * 2 // 3])
    done = dinomed.predict(Dark(), tmp_path / "cut.avi", tmp_path / "out")
    assert 5 < done.images < COUNT
    assert "cut off or damaged: its header announces 40 frames" in done.unreadable[0][1]
    masks, rows = masks_in(only(tmp_path / "out") / "mask.avi"), rows_of(only(tmp_path / "out"))
    assert len(masks) == len(rows)
    for mask, row, expected in zip(masks, rows, MASKS, strict=False):
        assert np.array_equal(mask, 255 * expected * (row["problem"] == ""))  # the last one may be half a frame


def test_lost_frames_are_marked_in_the_table_and_black_so_that_the_others_keep_their_place(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, predict = Video._read, Dark.predict

    def lose_some(self: Video, start: int, stop: int, step: int) -> Any:
        if start >= 36:
            raise UnreadableImage(self.path, "over the limit")
        frames, following = read(self, start, min(stop, 36), step)
        return [frame for frame in frames if frame.number not in (20, 21)], following

    def not_finite(self: Any, images: Iterable[Any]) -> list[MaskPrediction]:
        images = list(images)
        bad = [row for row, image in enumerate(images) if (image[..., 0] < 128).sum() == MASKS[25].sum()]
        if bad:
            raise NotFiniteError(bad, "outputs")
        return predict(self, images)

    monkeypatch.setattr(Dark, "predict", not_finite)
    expected_bad = {n for n, mask in enumerate(MASKS[:36]) if mask.sum() == MASKS[25].sum()}
    with monkeypatch.context() as patch:
        patch.setattr(Video, "_read", lose_some)
        done = dinomed.predict(Dark(), video, tmp_path / "out")
    rows = rows_of(only(tmp_path / "out"))
    problems = {int(row["frame"]): row["problem"] for row in rows if row["problem"]}
    assert set(problems) == {20, 21, 36} | expected_bad
    assert problems[20] == problems[21] == "cannot be decoded"
    assert "not finite" in problems[25]
    assert [int(row["frame"]) for row in rows] == list(range(37))
    masks = masks_in(only(tmp_path / "out") / "mask.avi")
    assert len(masks) == 37
    for number, mask in enumerate(masks):
        assert np.array_equal(mask, 255 * MASKS[number] * (number not in problems))
    answer = json.loads((only(tmp_path / "out") / "summary.json").read_text())
    assert answer["frames_without_prediction"] == len(problems) == 37 - done.images
    reasons = " ".join(reason for _, reason in done.unreadable)
    assert "over the limit; its frames from 36 on are missing" in reasons
    assert f"{len(problems)} frames have no prediction" in reasons


def test_a_video_without_a_frame_is_refused_and_beside_a_good_one_it_is_a_problem(video: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DinomedError, match=r"text.mp4: not a video") as error:
        dinomed.predict(Dark(), tmp_path / "text.mp4", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    (tmp_path / "zgood.avi").write_bytes(video.read_bytes())
    done = dinomed.predict(Dark(), tmp_path, tmp_path / "out", step=20)
    assert isinstance(done, VideoPredictionResult)
    assert (done.images, [Path(path).name for path, _ in done.unreadable]) == (2, ["text.mp4"])
    listed = json.loads((tmp_path / "out/summary.json").read_text())["problems"]
    assert [problem["video"] for problem in listed] == [done.groups[str(tmp_path / "text.mp4")]]


def test_a_dicom_file_of_several_frames_has_a_mask_video(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, frames in (("a.dcm", MASKS[::8]), ("b.dcm", MASKS[1::8])):
        write_dicom(folder / name, [255 * (1 - mask) for mask in frames], FrameTime=50)
    done = dinomed.predict(Dark(), folder, tmp_path / "out")
    assert isinstance(done, VideoPredictionResult)
    for name, expected in (("a.dcm", MASKS[::8]), ("b.dcm", MASKS[1::8])):
        written = Video(tmp_path / "out" / done.groups[str(folder / name)] / "mask.avi")
        assert written.facts.fps == 20
        for mask, drawn in zip(masks_in(written.path), expected, strict=True):
            assert np.array_equal(mask, 255 * drawn)
    assert all(b"Planted" not in content for content in files_below(tmp_path / "out").values())


def test_what_does_not_fit_a_video_is_refused_in_one_line(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for options, words in (
        ({"coco": True}, "`coco=True` is for images"),
        ({"coco_ids": "a.json"}, "`coco_ids` is for images"),
        ({"dicom_seg": True}, "`dicom_seg=True` needs DICOM files, and 1 of 1 videos are not"),
        ({"unit": "group"}, "`unit=group` is for images"),
        ({"abstain": 0.1}, "`abstain=0.1`: the adapter has no thresholds"),
        ({"max_risk": 0.0}, "`max_risk=0`: the adapter has no thresholds"),
        ({"fps": 5, "step": 2}, "give one of the two"),
        ({"fps": 0}, "`fps=0` must be above 0"),
        ({"fps": 1e-9}, "`fps=1e-09` must be at least 0.001"),
        ({"step": 0}, "`step=0` must be at least 1"),
    ):
        with pytest.raises(UsageError, match=words):
            dinomed.predict(Dark(), video, out, **options)  # type: ignore[arg-type]
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="`step` is for videos"):
        dinomed.predict(Dark(), tmp_path / "a.png", out, step=2)
    (tmp_path / "b.avi").write_bytes(video.read_bytes())
    with pytest.raises(UsageError, match=r"holds videos and images \(b.avi and a.png\)"):
        dinomed.predict(Dark(), tmp_path, out)
    assert not out.exists()
