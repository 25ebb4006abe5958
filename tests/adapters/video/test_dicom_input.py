"""DICOM files as the input of a prediction: videos, images, damaged files, and intensity settings of the adapter."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pydicom import dcmread

import dinomed
from dinomed.adapters.video.request import find_input_videos
from dinomed.datasets.open import open_dataset
from dinomed.errors import DinomedError
from dinomed.images.intensity import IntensityConfig

tools = runpy.run_path(str(Path(__file__).with_name("written.py")))
Dark, write_dicom = tools["Dark"], tools["write_dicom"]
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
