"""`dinomed scan --videos`: frames of videos as rows that are read from the video."""

import json
import os
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dinomed
from dinomed.apps.api.data.datasets import scan_with_report
from dinomed.apps.cli import main
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.pixels import read_row
from dinomed.datasets.splits import RATIOS
from dinomed.datasets.synthetic.endoscopy import write_endoscopy
from dinomed.errors import UsageError
from dinomed.images.frames import FrameReference, frame_path, parse_frame
from dinomed.images.intensity import IntensityConfig
from dinomed.images.read import UnreadableImage, read_header, read_image
from dinomed.images.unchanged import check_unchanged
from dinomed.isolation.images import read_image_isolated
from dinomed.video.video import Video

VIDEO_TESTS = Path(__file__).parents[2] / "video"
write_dicom = runpy.run_path(str(VIDEO_TESTS / "cine.py"))["write_dicom"]
FRAMES, number_in, write_numbered = (
    runpy.run_path(str(VIDEO_TESTS / "numbered.py"))[name] for name in ("FRAMES", "number_in", "write_numbered")
)
COUNT = 50
EVERY = {"fps": 0, "duplicate_bits": -1, "min_sharpness": 0, "min_tissue": 0, "min_luminance": 0}


@pytest.fixture(scope="module")
def endoscopy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos") / "syn"
    write_endoscopy(folder, videos=2, count=COUNT, size=(72, 96))
    shutil.rmtree(folder / "masks")
    return folder


@pytest.fixture
def one(endoscopy: Path, tmp_path: Path) -> Path:
    """A folder with one video, which a test may change."""
    folder = tmp_path / "one"
    folder.mkdir()
    shutil.copy(endoscopy / "SYN_0.avi", folder / "a.avi")
    return folder


def check_rows(manifest: Manifest) -> None:
    for row, stamp in enumerate(manifest.stamps()):
        check_unchanged(manifest.path(row), *stamp)


def test_rows_are_the_frames_that_dinomed_frames_writes_bit_for_bit(endoscopy: Path, tmp_path: Path) -> None:
    before = sorted(endoscopy.rglob("*"))
    dinomed.scan(endoscopy, videos=True, fps=5, out=tmp_path / "m.csv")
    assert sorted(endoscopy.rglob("*")) == before
    manifest = dinomed.open_dataset(tmp_path / "m.csv")
    written = dinomed.frames(endoscopy, tmp_path / "frames", fps=5)
    for name in ("width", "height", "channels", "bits", "frame", "time_s"):
        assert manifest.column(name) == written.manifest.column(name), name
    assert manifest.column("image")[0] == frame_path("SYN_0.avi", int(written.manifest.column("frame")[0]))
    assert set(manifest.column("video")) == {"SYN_0.avi", "SYN_1.avi"}
    assert len(set(zip(manifest.column("video"), manifest.column("group"), strict=True))) == 2
    deep = IntensityConfig(bits=16)
    for row in range(len(manifest)):
        path, file = manifest.path(row), written.manifest.path(row)
        assert np.array_equal(read_image(path), read_image(file))
        assert np.array_equal(read_image(path, channels=1), read_image(file, channels=1))
        assert np.array_equal(read_image(path, intensity=deep), read_image(file, intensity=deep))
    assert np.array_equal(read_image_isolated(manifest.path(0)), read_image(manifest.path(0)))
    check_rows(manifest)
    assert read_header(manifest.path(0)).width == 96
    dropped = (tmp_path / "m.dropped.csv").read_text().splitlines()
    assert dropped[:2] == ["video,frame,time_s,reason", "SYN_0.avi,0,0.000,out of body"]


def test_rows_of_a_table_name_videos_and_frames_and_a_mask_belongs_to_a_frame(endoscopy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "drawn").mkdir(parents=True)
    for name in ("SYN_0.avi", "SYN_1.avi"):
        shutil.copy(endoscopy / name, folder / name)
    mask = np.zeros((72, 96), np.uint8)
    mask[10:30, 20:50] = 255
    Image.fromarray(mask).save(folder / "drawn" / "m.png")
    table = tmp_path / "t.csv"
    table.write_text(
        "image,label,patient,mask\nSYN_0.avi,polyp,P1,\nSYN_0.avi/frame_000001,outside,,drawn/m.png\nSYN_1,none,P1,\n"
    )
    manifest = dinomed.scan(folder, table, group="patient", videos=True, fps=5, keep_ids=True)
    rows = {row["image"]: row for row in manifest.table.to_pylist()}
    first = rows.pop("SYN_0.avi/frame_000001")  # the rule drops it as out of body; the table names it
    assert (first["label"], first["group"], first["mask"]) == ("outside", "P1", "drawn/m.png")
    assert {(row["video"], row["label"], row["group"]) for row in rows.values()} == {
        ("SYN_0.avi", "polyp", "P1"), ("SYN_1.avi", "none", "P1"),
    }  # fmt: skip
    assert len(set(manifest.column("split"))) == 1  # of one patient
    table.write_text("image,label,mask\nSYN_0.avi/frame_0000001,outside,drawn/m.png\n")  # another number of zeros
    rows = {row["image"]: row for row in dinomed.scan(folder, table, videos=True, fps=5).table.to_pylist()}
    first = rows["SYN_0.avi/frame_000001"]
    assert (first["label"], first["mask"]) == ("outside", "drawn/m.png")
    table.write_text("image,label\nSYN_0.avi/frame_0000001,a\nSYN_0.avi/frame_000001,b\n")
    with pytest.raises(UsageError, match="in rows 2 and 3; keep one"):
        dinomed.scan(folder, table, videos=True)
    table.write_text("image,mask\nSYN_0.avi,drawn/m.png\n")
    with pytest.raises(UsageError, match=r"a mask belongs to a frame.*: name the frame"):
        dinomed.scan(folder, table, videos=True)
    table.write_text("image,label\nSYN_0.avi/frame_000001,a\nSYN_0.avi/frame_000999,b\n")
    dinomed.scan(folder, table, videos=True, out=tmp_path / "m.csv")
    listed = (tmp_path / "m.unreadable.csv").read_text()
    assert 'SYN_0.avi/frame_000999,"in the table of labels, but has no frame 999: it has 50 frames"' in listed


def test_dicom_frames_are_rows_on_request_and_keep_their_own_intensity(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 200, (24, 32)).astype(np.uint8) for _ in range(4)]
    (tmp_path / "in").mkdir()
    path = write_dicom(tmp_path / "in" / "us.dcm", frames)
    assert dinomed.scan(tmp_path / "in").column("image") == ["us.dcm"]
    manifest = dinomed.scan(tmp_path / "in", videos=True, **EVERY)
    assert manifest.column("image") == [frame_path("us.dcm", number) for number in range(4)]
    assert (set(manifest.column("format")), set(manifest.column("channels"))) == ({"DICOM"}, {1})
    for number in range(4):
        assert np.array_equal(read_row(manifest, number), Video(path).read(number).pixels)
    windowed = IntensityConfig(window=(50, 60))
    assert set(np.unique(read_row(manifest, 2, intensity=windowed, channels=1))) > {0, 255}
    assert np.array_equal(
        read_image_isolated(manifest.path(2), intensity=windowed), read_row(manifest, 2, intensity=windowed)
    )
    manifest = Manifest(manifest.table, manifest.root)  # as read from a file: the content is compared
    check_rows(manifest)
    write_dicom(path, [frames[0], *frames[:3]])
    with pytest.raises(UnreadableImage, match="changed since the scan"):
        check_rows(manifest)
    with pytest.raises(UnreadableImage, match="has no frame 4: it has 4 frames"):
        read_image(frame_path(str(path), 4))


def test_a_frame_of_several_videos_joins_no_videos_and_is_in_no_new_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    card, *frames = (rng.integers(0, 200, (24, 32)).astype(np.uint8) for _ in range(25))
    (tmp_path / "in").mkdir()
    for video in range(8):
        write_dicom(tmp_path / "in" / f"{video}.dcm", [*frames[3 * video : 3 * video + 3], card])
    shutil.copy(tmp_path / "in" / "0.dcm", tmp_path / "in" / "copy.dcm")
    result = scan_with_report(tmp_path / "in", videos=True, ratios=RATIOS, **EVERY)
    rows = result.manifest.table.to_pylist()
    assert {row["split"] for row in rows if row["frame"] == "3"} == {None}
    splits = {row["video"]: row["split"] for row in rows if row["frame"] != "3"}
    assert set(splits.values()) == {"train", "val", "test"}
    assert splits["0.dcm"] == splits["copy.dcm"]
    assert any(line.startswith("9 frames are identical in videos of different groups") for line in result.notes)
    (tmp_path / "t.csv").write_text("image,patient\n" + "".join(f"{video}.dcm,P\n" for video in [*range(8), "copy"]))
    one = dinomed.scan(tmp_path / "in", tmp_path / "t.csv", group="patient", videos=True, ratios=RATIOS, **EVERY)
    assert len(set(one.column("split"))) == 1  # of one patient


def test_a_changed_a_missing_and_a_cut_off_video_are_one_line_each(one: Path, endoscopy: Path) -> None:
    scanned = dinomed.scan(one, videos=True, fps=5, keep_ids=True)
    manifest = Manifest(scanned.table, scanned.root)
    content = (one / "a.avi").read_bytes()
    (one / "a.avi").write_bytes((endoscopy / "SYN_1.avi").read_bytes())
    with pytest.raises(UnreadableImage, match=r"a.avi/frame_\d+: changed since the scan; scan again"):
        check_rows(manifest)
    (one / "a.avi").write_bytes(content)
    check_rows(manifest)
    os.utime(one / "a.avi")
    check_rows(scanned)  # another time, the same frames
    (one / "a.avi").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableImage, match=r"frame_\d+: has no frame \d+.*cut off or damaged"):
        read_image(manifest.path(len(manifest) - 1))
    (one / "a.avi").unlink()
    with pytest.raises(UnreadableImage, match=r"frame_\d+: its video .*a.avi does not exist"):
        read_image(manifest.path(0))


def test_a_damaged_video_is_listed_and_its_good_frames_are_kept(
    one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (one / "a.avi").read_bytes()
    (one / "cut.avi").write_bytes(content[: len(content) // 2])
    (one / "text.mp4").write_text("no video")
    with pytest.raises(SystemExit) as end:
        main(["scan", str(one), "--videos", "--fps", "5", "-o", str(tmp_path / "m.csv"), "--json"])
    assert end.value.code == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["videos"], report["unreadable"]) == (3, 2)
    assert report["dropped"] > 0
    listed = (tmp_path / "m.unreadable.csv").read_text()
    assert "cut off or damaged: its header announces 50 frames" in listed
    assert "not a video" in listed
    assert any(line.startswith("cut.avi: cut off or damaged") for line in report["warnings"])
    assert "cut.avi" in set(dinomed.open_dataset(tmp_path / "m.csv").column("video"))


def test_without_the_option_videos_are_left_out_and_its_settings_are_refused(one: Path, endoscopy: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no image; 1 video is left out \(a.avi\); `dinomed scan FOLDER --v"):
        dinomed.scan(one)
    with pytest.raises(UsageError, match=r"`fps=5` selects frames of videos; add `videos=True`"):
        dinomed.scan(one, fps=5)
    with pytest.raises(UsageError, match="holds no image; 50 frames of videos are left out: 50 blurred"):
        dinomed.scan(one, videos=True, **EVERY | {"min_sharpness": 1e9})


def test_classes_by_folder_are_those_of_the_videos(endoscopy: Path, tmp_path: Path) -> None:
    for name in ("polyp", "normal"):
        (tmp_path / "in" / name).mkdir(parents=True)
        shutil.copy(endoscopy / "SYN_0.avi", tmp_path / "in" / name / f"{name}.avi")
    shutil.copy(endoscopy / "SYN_1.avi", tmp_path / "in" / "alone.avi")
    manifest = dinomed.scan(tmp_path / "in", "folders", videos=True, fps=2)
    pairs = set(zip(manifest.column("video"), manifest.column("label"), strict=True))
    assert pairs == {("polyp/polyp.avi", "polyp"), ("normal/normal.avi", "normal"), ("alone.avi", None)}


def test_a_real_file_is_never_taken_for_a_frame(tmp_path: Path) -> None:
    (tmp_path / "a.avi").mkdir()
    Image.fromarray(np.full((4, 5, 3), 7, np.uint8)).save(tmp_path / "a.avi" / "frame_000001", "PNG")
    assert parse_frame(tmp_path / "a.avi" / "frame_000001") is None
    assert read_image(tmp_path / "a.avi" / "frame_000001")[0, 0, 0] == 7
    assert [parse_frame("frame_000001"), parse_frame("v.avi/frame_1")] == [None, None]
    assert parse_frame("v.avi/frame_000001") == FrameReference("v.avi", 1)


@pytest.mark.parametrize(("suffix", "codec", "noted"), [("avi", "MJPG", False), ("mpg", "PIM1", True)])
def test_frames_are_exact_in_any_order_and_a_scan_says_where_frames_are_counted(
    suffix: str, codec: str, noted: bool, tmp_path: Path
) -> None:
    if not write_numbered(tmp_path / f"v.{suffix}", codec):
        pytest.skip("this build of OpenCV cannot encode it")
    result = scan_with_report(tmp_path, videos=True, **EVERY)
    manifest = result.manifest
    assert len(manifest) == FRAMES
    assert (
        any("has no index: each read of a frame decodes the frames before it" in line for line in result.notes) == noted
    )
    for row in np.random.default_rng(0).permutation(FRAMES)[:12]:
        assert number_in(read_row(manifest, int(row))) == int(manifest.column("frame")[row])
