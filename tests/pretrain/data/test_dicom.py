"""From a folder of DICOM files to a backbone: scan, window, and the same reading in later commands."""

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from dinomed.apps import cli
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import read_manifest
from dinomed.images.read import IntensityConfig
from dinomed.isolation.images import read_image_isolated
from dinomed.pretrain.data import stream as data

ROOT = Path(__file__).resolve().parents[3]
WINDOW = (-1350.0, 150.0)
TINY = [
    "run.steps=2", "run.batch_size=4", "run.workers=0", "run.checkpoint_every=1", "backbone.depth=1",
    "crops.modality=xray", "images.window=[-1350, 150]", "images.bits=16",
]  # fmt: skip


def _write_slice(path: Path, seed: int) -> np.ndarray:
    """A CT slice of 60x64 px, Hounsfield units -1024 to 1000 stored with an offset; returns them."""
    units = np.random.default_rng(seed).integers(-1024, 1000, (60, 64)).astype(np.int16)
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = CTImageStorage
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PatientName = 1, "MONOCHROME2", "Planted^Marker"
    file.Rows, file.Columns, file.BitsAllocated, file.BitsStored, file.HighBit = 60, 64, 16, 12, 11
    file.PixelRepresentation, file.RescaleSlope, file.RescaleIntercept = 0, 1, -1024
    file.WindowCenter, file.WindowWidth = 40, 400
    file.PixelData = (units + 1024).astype(np.uint16).tobytes()
    file.save_as(path, enforce_file_format=True)
    return units


def _run(*words: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in words])
    return int(end.value.code or 0)


def test_a_run_and_its_backbone_read_slices_with_the_window(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slices = tmp_path / "slices"
    slices.mkdir()
    units = [_write_slice(slices / f"{index}", index) for index in range(8)]  # scanners give no suffix
    assert _run("scan", slices, "-o", tmp_path / "m.parquet", "--split", "none") == 0
    manifest = read_manifest(tmp_path / "m.parquet")
    assert (set(manifest.column("channels")), set(manifest.column("bits"))) == ({1}, {12})
    capsys.readouterr()

    settings = [word for setting in TINY for word in ("--set", setting)]
    words = ["pretrain", ROOT / "configs" / "pretrain" / "vit_tiny_cpu.yaml", "--data", slices, *settings]
    words += ["--set", "backbone.in_channels=1", "-o", tmp_path / "run", "--device", "cpu"]
    assert _run(*words, "--dry-run") == 0
    assert "- -1350.0" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()

    seen: list[np.ndarray] = []

    def read(*arguments: object, **options: object) -> np.ndarray:
        seen.append(read_image_isolated(*arguments, **options))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(data, "read_image_isolated", read)
    assert _run(*words) == 0
    captured = capsys.readouterr()
    assert "Planted" not in captured.out + captured.err
    wanted = [np.clip((values - WINDOW[0]) / (WINDOW[1] - WINDOW[0]), 0, 1) for values in units]
    assert len(seen) == 8  # two steps of four: each slice once
    for image in seen:
        assert any(np.allclose(image[..., 0], values, atol=1e-6) for values in wanted)  # float32

    kept = load_backbone(tmp_path / "run").preprocessing
    assert (kept.channels, kept.intensity) == (1, IntensityConfig(bits=16, window=WINDOW))
