"""`dinomed frames`: the frames of videos by rate, without black, blurred, outside and doubled ones."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dinomed
from dinomed.apps.cli import main
from dinomed.datasets.manifest import write_manifest
from dinomed.datasets.open import open_dataset
from dinomed.datasets.scan.scan import scan
from dinomed.datasets.synthetic.endoscopy import DARK, OUTSIDE, draw_endoscopy, write_endoscopy
from dinomed.errors import DinomedError, UsageError
from dinomed.images.decode import UnreadableImage
from dinomed.images.read import read_image
from dinomed.pretrain.curation.frames.measures import tissue_share
from dinomed.video.facts import VideoFrame
from dinomed.video.video import Video
from dinomed.video.write import writing_video

COUNT = 100
KINDS = [frame.kind for frame in draw_endoscopy(COUNT, (72, 96))]


@pytest.fixture(scope="module")
def endoscopy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos") / "syn"
    write_endoscopy(folder, videos=2, count=COUNT, size=(72, 96))
    return folder


def dropped_rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "dropped.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_fault_is_dropped_with_its_reason_and_the_rest_is_written(endoscopy: Path, tmp_path: Path) -> None:
    written = dinomed.frames(endoscopy / "SYN_0.avi", tmp_path / "out", fps=0, duplicate_bits=-1, min_sharpness=60)
    numbers = [int(number) for number in written.manifest.column("frame")]
    assert numbers == [number for number, kind in enumerate(KINDS) if kind == "inside"]
    reasons = {"black": DARK, "out of body": OUTSIDE, "blurred": "blurred"}
    rows = dropped_rows(written.folder)
    assert {int(row["frame"]): reasons[row["reason"]] for row in rows} == {
        number: kind for number, kind in enumerate(KINDS) if kind != "inside"
    }
    video = Video(endoscopy / "SYN_0.avi")
    for row in (0, len(numbers) // 2):
        assert np.array_equal(read_image(written.manifest.path(row)), video.read(numbers[row]).pixels)
    assert float(written.manifest.column("time_s")[0]) == pytest.approx(numbers[0] / 25, abs=1e-3)


def test_the_manifest_is_one_of_dinomed_and_each_video_is_a_group(endoscopy: Path, tmp_path: Path) -> None:
    written = dinomed.frames(endoscopy, tmp_path / "out", fps=5)
    manifest = open_dataset(tmp_path / "out" / "manifest.csv")
    assert set(manifest.column("group")) == set(written.groups.values())
    assert len(written.groups) == 2
    assert "SYN" not in (tmp_path / "out" / "manifest.csv").read_text()  # the name of a video may identify a patient
    scanned = scan(tmp_path / "out").manifest
    assert dict(zip(scanned.column("image"), scanned.column("sha256"), strict=True)) == dict(
        zip(manifest.column("image"), manifest.column("sha256"), strict=True)
    )
    named = dinomed.frames(endoscopy, tmp_path / "named", fps=1, keep_ids=True)
    assert set(named.groups.values()) == {"SYN_0", "SYN_1"}


@pytest.mark.parametrize("fps", [1, 4, 12.5])  # 4 does not divide 25
def test_frames_are_taken_at_the_rate_that_is_asked_for(endoscopy: Path, tmp_path: Path, fps: float) -> None:
    written = dinomed.frames(
        endoscopy / "SYN_0.avi", tmp_path / "out", fps=fps, duplicate_bits=-1, min_luminance=0, min_sharpness=0,
        min_tissue=0,
    )  # fmt: skip
    times = [float(time) for time in written.manifest.column("time_s")]
    assert len(times) == round(COUNT / 25 * fps)
    assert np.allclose(times, np.arange(len(times)) / fps, atol=0.0201)  # half a frame of 25 a second, rounded to ms


def test_near_duplicates_are_dropped_and_scene_changes_are_taken(tmp_path: Path) -> None:
    scenes = [next(iter(draw_endoscopy(1, (72, 96), seed, faults=False))).pixels for seed in (1, 2)]
    with writing_video(tmp_path / "still.avi", (72, 96), 10) as append:
        for number in range(30):
            append(scenes[0] if number < 17 else np.ascontiguousarray(scenes[1][::-1, ::-1]))
    every = dinomed.frames(tmp_path / "still.avi", tmp_path / "every", fps=0)
    assert every.manifest.column("frame") == ["0", "17"]
    assert every.dropped == {"near-duplicate": 28}
    assert dropped_rows(every.folder)[-1]["reason"] == "near-duplicate of frame 17"
    changes = dinomed.frames(tmp_path / "still.avi", tmp_path / "changes", fps=0.1, scene_change=5)
    assert changes.manifest.column("frame") == ["0", "17"]


def test_a_gray_frame_is_not_called_outside_of_the_body() -> None:
    gray = np.repeat(np.random.default_rng(0).integers(30, 200, (64, 64, 1), np.uint8), 3, axis=2)
    assert tissue_share(gray) is None
    assert tissue_share(np.full((64, 64, 3), (180, 100, 90), np.uint8) + gray // 10) == 1


def test_a_damaged_video_beside_a_good_one_is_reported_and_the_good_one_is_written(
    endoscopy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = (endoscopy / "SYN_0.avi").read_bytes()
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "cut.avi").write_bytes(content[: len(content) * 2 // 3])
    (folder / "text.mp4").write_text("no video")
    written = dinomed.frames(folder, tmp_path / "out", fps=5)
    assert len(written.manifest) > 5
    problems = {Path(video).name: reason for video, reason in written.problems}
    assert "cut off or damaged" in problems["cut.avi"]
    assert "not a video" in problems["text.mp4"]
    with pytest.raises(DinomedError, match="none of 1 videos can be read"):
        dinomed.frames(folder / "text.mp4", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_video_that_cannot_be_read_to_its_end_is_a_problem_and_ends_with_exit_code_1(
    endoscopy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.avi").write_bytes((endoscopy / "SYN_1.avi").read_bytes())
    (folder / "long.avi").write_bytes((endoscopy / "SYN_0.avi").read_bytes())
    read = Video._read

    def read_to_50(video: Video, start: int, stop: int, step: int) -> tuple[list[VideoFrame], int | None]:
        if video.path.name == "good.avi":
            return read(video, start, stop, step)
        if start >= 50:
            raise UnreadableImage(video.path, "over the limit")
        return read(video, start, min(stop, 50), step)

    monkeypatch.setattr(Video, "_read", read_to_50)
    words = ["frames", str(folder), "-o", str(tmp_path / "out"), "--fps", "5", "--json"]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 1
    report = json.loads(capsys.readouterr().out.split("\n{\n")[0])
    reason = "over the limit; its frames from 50 on are missing"
    assert [(Path(row["video"]).name, row["reason"]) for row in report["problems"]] == [("long.avi", reason)]
    assert reason in caplog.text
    kept = open_dataset(tmp_path / "out" / "manifest.csv")
    assert len(set(kept.column("group"))) == 2
    with pytest.raises(SystemExit) as end:
        main([*words[:-1], "--overwrite"])
    assert end.value.code == 1
    printed = capsys.readouterr()
    assert "problem: over the limit" in " ".join(printed.out.split())
    assert "1 of 2 videos are damaged or cannot be read to their end (the first:" in " ".join(printed.err.split())
    with pytest.raises(SystemExit) as end:
        main(["frames", str(folder / "good.avi"), "-o", str(tmp_path / "good"), "--fps", "1"])
    assert not end.value.code


def test_a_video_of_which_no_frame_can_be_read_is_not_a_matter_of_thresholds(
    endoscopy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_nothing(video: Video, *_: int) -> None:
        raise UnreadableImage(video.path, "over the limit")

    monkeypatch.setattr(Video, "_read", read_nothing)
    with pytest.raises(DinomedError, match=r"none of 1 videos can be read \(the first: .*SYN_0.avi: over the limit"):
        dinomed.frames(endoscopy / "SYN_0.avi", tmp_path / "out")


def test_a_damaged_dicom_beside_a_video_is_reported_and_a_report_is_not(endoscopy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.avi").write_bytes((endoscopy / "SYN_0.avi").read_bytes())
    (folder / "report.dcm").write_bytes(dicom_start() + b"\x08\0\x16\0UI\x02\x001\0")
    assert not dinomed.frames(folder, tmp_path / "one", fps=1).problems
    cine = dicom_start() + b"\x28\0\x08\0IS\x02\x00x " + b"\x28\0\x10\0US\x02\0\x20\0\x28\0\x11\0US\x02\0\x20\0"
    (folder / "cine.dcm").write_bytes(cine)
    problems = dinomed.frames(folder, tmp_path / "two", fps=1).problems
    assert [(Path(video).name, reason) for video, reason in problems] == [("cine.dcm", "damaged or truncated DICOM")]


def dicom_start() -> bytes:
    """The first bytes of a DICOM file, up to its meta information."""
    syntax = b"\x02\0\x10\0UI\x14\x001.2.840.10008.1.2.1\0"
    return bytes(128) + b"DICM" + b"\x02\0\0\0UL\x04\0" + len(syntax).to_bytes(4, "little") + syntax


def test_a_second_result_replaces_the_first_one_only_with_overwrite(endoscopy: Path, tmp_path: Path) -> None:
    first = dinomed.frames(endoscopy / "SYN_0.avi", tmp_path / "out", fps=5)
    with pytest.raises(UsageError, match="already holds a result"):
        dinomed.frames(endoscopy / "SYN_1.avi", tmp_path / "out")
    second = dinomed.frames(endoscopy / "SYN_1.avi", tmp_path / "out", overwrite=True)
    assert len(second.manifest) < len(first.manifest)
    images = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")}
    assert images == set(second.manifest.column("image"))


def test_overwrite_refuses_a_folder_that_another_command_filled(endoscopy: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "0").mkdir(parents=True)
    for name in ("a.png", "0/000000.png"):
        Image.new("RGB", (40, 30), (200, 90, 80)).save(data / name)
    write_manifest(scan(data).manifest, data / "manifest.csv")
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=r"is not empty and holds no dropped.csv; choose another folder"):
        dinomed.frames(endoscopy / "SYN_0.avi", data, overwrite=True)
    (data / ".unfinished").mkdir()  # as an interrupted call of another command leaves it
    with pytest.raises(UsageError, match=r"holds a manifest.csv that `dinomed frames` did not write"):
        dinomed.frames(endoscopy / "SYN_0.avi", data, overwrite=True)
    before[data / "dropped.csv"] = b"reason\n"
    (data / "dropped.csv").write_bytes(b"reason\n")
    with pytest.raises(UsageError, match=r"holds a manifest.csv that `dinomed frames` did not write"):
        dinomed.frames(endoscopy / "SYN_0.avi", data, overwrite=True)
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before


def test_overwrite_removes_frames_and_their_folders_and_nothing_else(endoscopy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = dinomed.frames(endoscopy, out, fps=1, keep_ids=True)
    Image.new("RGB", (40, 30)).save(out / "SYN_1" / "mine.png")
    rows = (out / "manifest.csv").read_text().replace(first.manifest.column("image")[-1], "SYN_1/mine.png")
    (out / "manifest.csv").write_text(rows)
    kept = out / first.manifest.column("image")[-1]
    dinomed.frames(endoscopy / "SYN_0.avi", out, fps=1, overwrite=True)
    assert not (out / "SYN_0").exists()  # the name of a video may identify a patient
    assert sorted((out / "SYN_1").iterdir()) == sorted([out / "SYN_1" / "mine.png", kept])


def test_a_group_is_called_unlike_the_tables_and_unlike_another_group(endoscopy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("manifest.csv.avi", "Dropped.csv.avi", "ready.json.avi", "a.avi", "A.mp4"):
        (folder / name).write_bytes((endoscopy / "SYN_0.avi").read_bytes())
    written = dinomed.frames(folder, tmp_path / "out", fps=0.5, keep_ids=True)
    assert sorted(set(written.groups.values())) == ["A", "Dropped.csv_2", "a_2", "manifest.csv_2", "ready.json_2"]
    assert all(written.manifest.path(row).is_file() for row in range(len(written.manifest)))


def test_scan_says_which_videos_it_leaves_out_and_names_the_command(endoscopy: Path, tmp_path: Path) -> None:
    notes = " ".join(scan(endoscopy, mask="none").notes)
    assert "2 videos are left out (SYN_0.avi, SYN_1.avi); `dinomed scan FOLDER --videos`" in notes
    with pytest.raises(UsageError, match=r"is a video; give a manifest of its frames: dinomed scan .* --videos"):
        open_dataset(endoscopy / "SYN_0.avi")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.avi").write_bytes((endoscopy / "SYN_0.avi").read_bytes())
    with pytest.raises(UsageError, match=r"holds no image; 1 video is left out \(a.avi\)"):
        scan(tmp_path / "in")
