"""`keep`: what a curation does not keep is never trained on, in Parquet or in CSV."""

from pathlib import Path

import pytest

from dinomed.datasets.manifest import build_manifest, read_manifest, write_manifest
from dinomed.datasets.open import open_dataset
from dinomed.pretrain.data.select_images import select_images


@pytest.mark.parametrize("name", ["curated.parquet", "curated.csv"])
def test_only_kept_images_are_used(lesion_manifest: Path, tmp_path: Path, name: str) -> None:
    manifest = read_manifest(lesion_manifest)
    columns = {column: manifest.column(column) for column in manifest.columns if column != "split"}
    columns["keep"] = [i % 3 != 0 for i in range(len(manifest))]
    write_manifest(build_manifest(columns, manifest.root), tmp_path / name)

    assert read_manifest(tmp_path / name).column("keep") == columns["keep"]  # the file has every row
    kept = open_dataset(tmp_path / name)
    wanted = [image for image, keep in zip(columns["image"], columns["keep"], strict=True) if keep]
    assert kept.column("image") == wanted
    train, aside = select_images(kept, 4, 8)
    assert set(train.column("image")) | set(aside.column("image")) == set(wanted)


def test_an_emptied_cell_keeps_nothing(lesion_manifest: Path, tmp_path: Path) -> None:
    manifest = read_manifest(lesion_manifest)
    columns = {name: manifest.column(name) for name in manifest.columns} | {"keep": [True] * len(manifest)}
    write_manifest(build_manifest(columns, manifest.root), tmp_path / "curated.csv")
    lines = (tmp_path / "curated.csv").read_text(encoding="utf-8").splitlines()
    place = lines[0].split(",").index("keep")
    cells = lines[1].split(",")
    lines[1] = ",".join([*cells[:place], "", *cells[place + 1 :]])
    (tmp_path / "curated.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert len(open_dataset(tmp_path / "curated.csv")) == len(manifest) - 1
