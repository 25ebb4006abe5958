"""Rows of `dinomed scan --videos` in the other commands: each decodes the frames from the videos."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dinomed
from dinomed.datasets.manifest import Manifest, write_manifest
from dinomed.datasets.synthetic.endoscopy import write_endoscopy
from dinomed.errors import UsageError
from dinomed.images.read import read_image, read_mask

COUNT, STEP = 40, 5
SPLITS = ("train", "train", "val", "test")
ALL = {"duplicate_bits": -1, "min_tissue": 0, "min_sharpness": 0, "min_luminance": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos; ``frames.parquet`` has every fifth frame, with its mask, a label and the split of its video."""
    folder = tmp_path_factory.mktemp("rows")
    write_endoscopy(folder / "in", videos=len(SPLITS), count=COUNT, size=(72, 96), faults=False)
    with open(folder / "table.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "mask", "label", "split"])
        for video, split in enumerate(SPLITS):
            for number in range(0, COUNT, STEP):
                mask = f"masks/SYN_{video}/{number:06}.png"
                label = "polyp" if read_mask(folder / "in" / mask).any() else "none"
                table.writerow([f"SYN_{video}.avi/frame_{number:06}", mask, label, split])
    rule = ALL | {"fps": 0.001}
    scanned = dinomed.scan(folder / "in", folder / "table.csv", videos=True, keep_ids=True, **rule)
    frames = [row for row, video in enumerate(scanned.column("video")) if video is not None]  # the others: masks
    write_manifest(scanned.take(frames), folder / "frames.parquet")
    return folder


@pytest.fixture
def rows(folder: Path) -> Manifest:
    return dinomed.open_dataset(folder / "frames.parquet")


def test_features_are_those_of_the_written_frames(
    folder: Path, rows: Manifest, tiny_backbone: Path, tmp_path: Path
) -> None:
    assert len(rows) == len(SPLITS) * COUNT // STEP
    written = dinomed.frames(folder / "in" / "SYN_3.avi", tmp_path / "frames", fps=0, **ALL)
    files = written.manifest.take(range(0, COUNT, STEP))
    test = rows.select(split="test")
    from_video = dinomed.extract_features(tiny_backbone, test, cache=tmp_path / "a", device="cpu")
    from_files = dinomed.extract_features(tiny_backbone, files, cache=tmp_path / "b", device="cpu")
    assert np.array_equal(np.asarray(from_video.cls), np.asarray(from_files.cls))


@pytest.mark.long
def test_predictions_and_similar_images_name_the_frames(
    folder: Path, rows: Manifest, tiny_backbone: Path, tmp_path: Path
) -> None:
    data = folder / "frames.parquet"
    dinomed.train("classify", tiny_backbone, data, out=tmp_path / "cls", head="logistic", device="cpu")
    dinomed.predict(tmp_path / "cls", data, out=tmp_path / "out", device="cpu")
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        assert [line["image"] for line in csv.DictReader(file)] == rows.column("image")

    dinomed.build_index(tiny_backbone, data, out=tmp_path / "index", device="cpu")
    Image.fromarray(read_image(rows.path(7))).save(tmp_path / "query.png")
    hits = dinomed.search(tmp_path / "query.png", tmp_path / "index", k=1, evidence=True, device="cpu")
    first = hits["queries"][0]["results"][0]
    assert (first["image"], first["columns"]["frame"]) == (rows.column("image")[7], rows.column("frame")[7])
    assert first["similarity"] == pytest.approx(1)
    with pytest.raises(UsageError, match="is a frame of a video; give a manifest that holds it"):
        dinomed.search(rows.path(7), tmp_path / "index", device="cpu")


def test_data_workers_pretrain_on_frames_of_videos(folder: Path, tiny_pretraining: Path, tmp_path: Path) -> None:
    data, workers = folder / "frames.parquet", {"run.workers": 2}
    dinomed.pretrain(tiny_pretraining, data, out=tmp_path / "run", settings=workers, device="cpu")
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert '"step": 2' in log
    assert "cannot be read" not in log
    assert "changed since" not in log


@pytest.mark.long
def test_segmentation_curation_and_audit_read_frames_of_videos(
    folder: Path, rows: Manifest, tiny_backbone: Path, tmp_path: Path
) -> None:
    data, small = folder / "frames.parquet", {"fit.epochs": 1, "fit.min_steps": 5, "image_size": 32}
    dinomed.train("segment", tiny_backbone, data, out=tmp_path / "seg", settings=small, device="cpu")
    dinomed.evaluate(tmp_path / "seg", data, split="test", out=tmp_path / "report", device="cpu")
    assert (tmp_path / "report" / "metrics.json").is_file()
    dinomed.predict(tmp_path / "seg", data, out=tmp_path / "out", device="cpu")
    for image in rows.column("image"):
        assert read_mask(tmp_path / "out" / f"{image}.png").shape == (72, 96)
    dinomed.curate(data, out=tmp_path / "curated.parquet")
    assert set(dinomed.open_dataset(tmp_path / "curated.parquet").column("image")) <= set(rows.column("image"))
    audit = dinomed.audit(data)
    assert (audit["train_images"], audit["unreadable"]) == (2 * COUNT // STEP, 0)
