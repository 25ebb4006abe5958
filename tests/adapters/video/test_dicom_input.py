"""DICOM files as the input of a prediction: videos, images, damaged files, and intensity settings of the adapter."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import MPEG4HP41

import dinomed
from dinomed.adapters.tasks.areas import PixelAreas
from dinomed.adapters.video.request import find_input_videos
from dinomed.datasets.open import open_dataset
from dinomed.datasets.scan.videos import find_videos
from dinomed.datasets.scan.walk import _Walker
from dinomed.errors import DinomedError
from dinomed.images.dicom.spacing import read_frame_spacings
from dinomed.images.intensity import IntensityConfig
from dinomed.video import facts
from dinomed.video.write import writing_video

tools = runpy.run_path(str(Path(__file__).with_name("written.py")))
Dark = tools["Dark"]
cine = runpy.run_path(str(Path(__file__).parents[2] / "video" / "cine.py"))
write_dicom, write_dicom_video = cine["write_dicom"], cine["write_dicom_video"]
FRAME = np.arange(48 * 64, dtype=np.uint32).reshape(48, 64).astype(np.uint8)


def write_too_large(path: Path) -> Path:
    """Write a file of one frame whose header states a size over the limit."""
    data = dcmread(write_dicom(path, [FRAME]))
    data.Rows = data.Columns = 60_000
    data.save_as(path)
    return path


def test_a_file_of_unknown_kind_is_a_video_only_beside_one(tmp_path: Path) -> None:
    single = write_too_large(tmp_path / "single.dcm")
    assert find_input_videos(single) is None
    assert find_input_videos(tmp_path) is None
    with pytest.raises(DinomedError, match=r"single\.dcm: .*over the limit"):
        open_dataset(single)
    video = write_dicom(tmp_path / "video.dcm", [FRAME, FRAME])
    assert find_input_videos(tmp_path) == [single, video]  # reported, since it may be a video


def test_a_folder_is_listed_once_and_each_header_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, headers = list[str](), list[str]()
    enter, read_header = _Walker.enter, facts.read_dicom_header

    def count_listing(walker: _Walker, folder: str) -> None:
        listed.append(folder)
        enter(walker, folder)

    def count_header(path: Path) -> object:
        headers.append(path.name)
        return read_header(path)

    damaged = write_too_large(tmp_path / "damaged.dcm")
    video = write_dicom(tmp_path / "video.dcm", [FRAME, FRAME])
    empty = dcmread(write_dicom(tmp_path / "empty.dcm", [FRAME, FRAME]))
    del empty.Rows
    empty.save_as(tmp_path / "empty.dcm")
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "out" / "1").mkdir(parents=True)
    (tmp_path / "out" / "predictions.json").write_text('{"format": "dinomed.predictions/1"}')
    write_dicom(tmp_path / "out" / "1" / "written.dcm", [FRAME])
    monkeypatch.setattr(_Walker, "enter", count_listing)
    monkeypatch.setattr(facts, "read_dicom_header", count_header)
    assert find_input_videos(tmp_path) == [damaged, tmp_path / "text.mp4", video]
    assert sorted(listed) == ["", "out", "out/1"]
    assert sorted(headers) == ["damaged.dcm", "empty.dcm", "video.dcm"]
    assert find_videos([tmp_path]) == [damaged, tmp_path / "text.mp4", video]


@pytest.mark.parametrize("name", ["a.dcm", "z.dcm"])
def test_a_warning_counts_the_files_of_which_the_first_frame_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    for video in ("b.dcm", "c.dcm"):
        write_dicom(tmp_path / video, [FRAME, FRAME])
    write_dicom(tmp_path / name, [FRAME])
    assert find_input_videos(tmp_path) is None
    open_dataset(tmp_path, allow_unreadable=True)
    (warning,) = (record.getMessage() for record in caplog.records if "several frames" in record.getMessage())
    assert "with several frames: 2; the first frame of each is used" in warning


@pytest.mark.parametrize("settings", [{"window": (-1350, 150)}, {"percentiles": (1, 99)}, {"bits": 16}])
def test_frames_are_not_read_without_the_intensity_settings_of_the_adapter(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    predictor = Dark()
    predictor.backbone = SimpleNamespace(
        fingerprint="dark", preprocessing=SimpleNamespace(intensity=IntensityConfig.model_validate(settings))
    )
    path = write_dicom(tmp_path / "a.dcm", [FRAME, FRAME])
    with pytest.raises(DinomedError, match="the adapter has intensity settings"):
        dinomed.predict(predictor, path, tmp_path / "out")
    assert (predictor.seen, (tmp_path / "out").exists()) == (0, False)


def test_a_video_stream_in_a_dicom_file_is_predicted_as_its_plain_file(tmp_path: Path) -> None:
    plain = tmp_path / "plain.avi"
    with writing_video(plain, FRAME.shape, 10) as append:
        for number in range(12):
            append(np.roll(FRAME, 4 * number, 1))
    stream = write_dicom_video(tmp_path / "in.dcm", [plain.read_bytes()], MPEG4HP41, FRAME.shape, 12)
    done = [dinomed.predict(Dark(), path, tmp_path / path.stem) for path in (plain, stream)]
    assert [result.images for result in done] == [12, 12]
    first, second = (tools["only"](tmp_path / path.stem) for path in (plain, stream))
    rows = tools["rows_of"](second)
    assert {row.pop("area_mm2") for row in rows} == {""}  # its file states no spacing
    assert not any("mm2" in name for path in (first, second) for name in tools["read_json"](path / "summary.json"))
    assert rows == tools["rows_of"](first)
    assert (first / "mask.avi").read_bytes() == (second / "mask.avi").read_bytes()


def test_a_damaged_spacing_leaves_the_areas_empty_and_loses_no_frame(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    measures, group = Dataset(), Dataset()
    measures.add_new("PixelSpacing", "LO", ["wide", "high"])
    group.PixelMeasuresSequence = [measures]
    video = write_dicom(tmp_path / "in.dcm", [FRAME] * 3, PerFrameFunctionalGroupsSequence=[group] * 3, FrameTime=40)
    result = dinomed.predict(Dark(), video, tmp_path / "out")
    assert result.images == 3
    assert {row["area_mm2"] for row in tools["rows_of"](tools["only"](tmp_path / "out"))} == {""}
    (warning,) = (line for line in caplog.messages if "pixel spacing" in line)
    assert "area_mm2 is left empty" in warning


def test_the_largest_area_of_an_ultrasound_is_that_of_masks_inside_its_regions(tmp_path: Path) -> None:
    region = Dataset()
    region.RegionSpatialFormat, region.PhysicalUnitsXDirection, region.PhysicalUnitsYDirection = 1, 3, 3
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 0, 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 31, 47
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.05, 0.02  # cm
    frames = [np.full(FRAME.shape, 220, np.uint8) for _ in range(3)]
    frames[0][10:20, 5:15] = 20  # in the region
    frames[1][10:40, 20:40] = 20  # larger, and partly outside
    video = write_dicom(tmp_path / "in.dcm", frames, SequenceOfUltrasoundRegions=[region], FrameTime=40)
    dinomed.predict(Dark(), video, tmp_path / "out")
    folder = tools["only"](tmp_path / "out")
    assert [row["area_mm2"] for row in tools["rows_of"](folder)] == ["10.00", "", "0.00"]
    answer = tools["read_json"](folder / "summary.json")
    assert (answer["largest_area_px"], answer["largest_area_frame"]) == (600, 1)
    assert (answer["largest_area_mm2"], answer["largest_area_mm2_frame"]) == (10.0, 0)
    assert answer["frames_with_area_mm2"] == 2
    names = ("frames_with_area_mm2", "largest_area_mm2", "largest_area_mm2_frame")
    for numbers, expected in (([1, 2], None), ([2, 2], [2, 0.0, None])):  # all lesions outside of it; no lesion
        write_dicom(video, [frames[k] for k in numbers], SequenceOfUltrasoundRegions=[region], FrameTime=40)
        dinomed.predict(Dark("a", "b"), video, tmp_path / "out", overwrite=True)
        answer = tools["read_json"](tools["only"](tmp_path / "out") / "summary.json")
        for part in (answer, *answer["classes"].values()):
            found = [part[name] for name in names] if names[0] in part else None
            assert (found, "largest_area_mm2" in part) == (expected, expected is not None)


def test_a_file_of_very_many_ultrasound_regions_has_no_areas(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    regions = [Dataset() for _ in range(65)]
    video = write_dicom(tmp_path / "in.dcm", [FRAME] * 2, SequenceOfUltrasoundRegions=regions, FrameTime=40)
    assert dinomed.predict(Dark(), video, tmp_path / "out").images == 2
    assert {row["area_mm2"] for row in tools["rows_of"](tools["only"](tmp_path / "out"))} == {""}
    assert "cannot be read (more than 64 ultrasound regions)" in caplog.text
    write_dicom(video, [FRAME] * 2, SequenceOfUltrasoundRegions=regions[1:])
    assert read_frame_spacings(video) is not None


def test_areas_of_frames_are_those_of_the_spacing_of_each_frame(tmp_path: Path) -> None:
    groups = []
    for spacing in (0.5, 2.0, None):
        measures, group = Dataset(), Dataset()
        if spacing is not None:
            measures.PixelSpacing = [spacing, 1.0]
        group.PixelMeasuresSequence = [measures]
        groups.append(group)
    video = write_dicom(tmp_path / "in.dcm", [FRAME] * 3, PerFrameFunctionalGroupsSequence=groups, FrameTime=40)
    dinomed.predict(Dark(), video, tmp_path / "out")
    rows = tools["rows_of"](tools["only"](tmp_path / "out"))
    (pixels,) = {int(row["area_px"]) for row in rows}
    assert pixels > 0
    assert [row["area_mm2"] for row in rows] == [f"{pixels * 0.5:.2f}", f"{pixels * 2:.2f}", ""]
    answer = tools["read_json"](tools["only"](tmp_path / "out") / "summary.json")
    names = ("frames_with_area_mm2", "largest_area_mm2", "largest_area_mm2_frame", "largest_area_mm2_time_s")
    assert [answer[name] for name in names] == [2, pixels * 2, 1, 0.04]
    assert answer["largest_area_frame"] == 0  # all frames have the same pixels
    several = Dark("a", "b")
    dinomed.predict(several, video, tmp_path / "several")
    rows = tools["rows_of"](tools["only"](tmp_path / "several"))
    assert rows[0]["area_mm2 b"] == f"{int(rows[0]['area_px b']) * 0.5:.2f}"
    answer = tools["read_json"](tools["only"](tmp_path / "several") / "summary.json")
    assert answer["largest_area_mm2"] == answer["classes"]["b"]["largest_area_mm2"] == pixels * 2
    rule = {"fps": 0, "duplicate_bits": -1, "min_sharpness": 0, "min_tissue": 0, "min_luminance": 0}
    (tmp_path / "folder").mkdir()
    video.rename(tmp_path / "folder" / "in.dcm")
    areas = PixelAreas(dinomed.scan(tmp_path / "folder", videos=True, **rule))
    mask = np.ones(FRAME.shape, np.uint8)
    assert [areas.cell(row, mask) for row in range(3)] == [f"{mask.size * 0.5:.2f}", f"{mask.size * 2:.2f}", None]
