"""The table of features: only files of dinomed are removed beside it."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import read_manifest
from dinomed.errors import DinomedError, UsageError
from dinomed.features.extract import extract
from dinomed.features.table import check_table_output, write_feature_table
from dinomed.io.output_folder import locked


def test_shards_are_removed_and_files_of_the_user_stay(
    tiny_backbone: Path, lesion_manifest: Path, tmp_path: Path
) -> None:
    backbone, manifest = load_backbone(tiny_backbone), read_manifest(lesion_manifest).take(range(5))
    out, parts = tmp_path / "f.parquet", tmp_path / "f.parts"
    mine = [parts / "photo.jpg", parts / ("0" * 16) / "notes.txt", parts / "0123456789abcdef0" / "00000.cls.npy"]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("of the user")
    extract(backbone, manifest.take(range(2)), cache=parts)  # as a run on other images would have left it
    check_table_output(out)
    assert write_feature_table(backbone, manifest, out).images == 5
    assert sorted(path for path in parts.rglob("*") if path.is_file()) == sorted(mine)


def test_no_files_are_left_beside_a_table(tiny_backbone: Path, lesion_manifest: Path, tmp_path: Path) -> None:
    backbone, manifest = load_backbone(tiny_backbone), read_manifest(lesion_manifest).take(range(5))
    write_feature_table(backbone, manifest, tmp_path / "f.parquet", shard_size=2)
    assert [path.name for path in tmp_path.iterdir()] == ["f.parquet"]
    with pq.ParquetFile(tmp_path / "f.parquet") as file:
        vectors = np.array(file.read()["feature"].to_pylist())
    assert vectors == pytest.approx(extract(backbone, manifest, cache=tmp_path / "s", shard_size=2).cls, abs=2e-6)


def test_a_file_with_the_name_of_the_shard_folder_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "f.parts").write_text("of the user")
    with pytest.raises(UsageError, match=r"f.parts is a file"):
        check_table_output(tmp_path / "f.parquet")


def test_a_table_that_another_process_writes_is_in_use(
    tiny_backbone: Path, lesion_manifest: Path, tmp_path: Path
) -> None:
    backbone, manifest = load_backbone(tiny_backbone), read_manifest(lesion_manifest).take(range(2))
    with locked(tmp_path / "f.parts"), pytest.raises(DinomedError, match=r"f\.parts is in use by another process"):
        write_feature_table(backbone, manifest, tmp_path / "f.parquet")
    write_feature_table(backbone, manifest, tmp_path / "f.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["f.parquet"]


def test_a_failed_table_leaves_no_empty_folder(tiny_backbone: Path, lesion_manifest: Path, tmp_path: Path) -> None:
    backbone, manifest = load_backbone(tiny_backbone), read_manifest(lesion_manifest).take(range(2))
    lost = type(manifest)(manifest.table, tmp_path)  # its images are elsewhere
    with pytest.raises(DinomedError, match="does not exist"):
        write_feature_table(backbone, lost, tmp_path / "f.parquet")
    assert list(tmp_path.iterdir()) == []
