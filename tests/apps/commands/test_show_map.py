"""`dinomed show map`: the page, its privacy, the columns that colour it, and what it leaves out."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dinomed
from dinomed.datasets.manifest import build_manifest, read_manifest, write_manifest


def data_of(page: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(page.partition('id="map-data">')[2].partition("</script>")[0])
    return data


def test_a_page_without_names_holds_rows_and_thumbnails(
    run, lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "map.html"
    words = ["show", "map", lesion_manifest, "-b", tiny_backbone, "-o", out, "--cache", tmp_path / "cache"]
    code, text, err = run(*words, "--star", read_manifest(lesion_manifest).path(3), "--method", "pca", "--json")
    assert code == 0, err
    report = json.loads(text)
    assert (report["images"], report["color"]) == (60, "label")
    assert sum(report["groups"].values()) == 60
    page = out.read_text()
    data = data_of(page)
    assert data["rows"] == list(range(60))
    assert len(data["points"]) == 120
    assert data["manifest"] is None
    assert {"label", "split", "group"} <= set(data["columns"])
    # the image of the star is row 3, so it lies there
    assert np.allclose(data["star"], np.array(data["points"][6:8]) / 65535, atol=1e-4)
    manifest = read_manifest(lesion_manifest)
    for name in manifest.column("image"):
        assert Path(name).stem not in page
    assert str(manifest.root) not in page
    assert re.search(r"script-src 'sha256-", page)
    assert not re.findall(r'(?:src|href)="(?!data:)', page)


def test_names_of_groups_are_in_a_page_with_names_only(
    lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    lesions = read_manifest(lesion_manifest).take(range(12))
    columns = {name: lesions.column(name) for name in lesions.columns}
    patients = build_manifest(columns | {"group": ["DOE^JANE"] * 5 + ["ROE^RICHARD"] * 7}, lesions.root)
    for names in (False, True):
        out = tmp_path / f"{names}.html"
        shown = dinomed.show_map(
            tiny_backbone, patients, out=out, color="group", names=names, method="pca", cache=tmp_path / "cache"
        )
        assert ("DOE^JANE" in out.read_text()) is names
        assert sorted(shown.groups.values()) == [5, 7]


def test_names_of_videos_and_files_are_in_a_page_with_names_only(
    lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    frames = read_manifest(lesion_manifest).take(range(12))
    images = frames.column("image")
    columns = {name: frames.column(name) for name in frames.columns}
    columns |= {"video": ["DOE_JANE.mp4"] * 12, "frame": [str(row) for row in range(12)], "depth": [images[0]] * 12}
    frames = build_manifest(columns, frames.root)
    for names in (False, True):
        out = tmp_path / f"{names}.html"
        dinomed.show_map(tiny_backbone, frames, out=out, names=names, method="pca", cache=tmp_path / "cache")
        for name in ("DOE_JANE", Path(images[0]).stem):
            assert (name in out.read_text()) is names
        assert "frame" in data_of(out.read_text())["columns"]


def test_a_selection_of_a_page_with_names_is_a_manifest(
    lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "map.html"
    dinomed.show_map(
        tiny_backbone, lesion_manifest, out=out, names=True, method="pca", cache=tmp_path / "cache", device="cpu"
    )
    columns = data_of(out.read_text())["manifest"]
    chosen = [5, 17, 40]  # as the script writes them
    with open(tmp_path / "selection.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in chosen:
            writer.writerow("" if values[row] is None else values[row] for values in columns.values())
    selection = dinomed.open_dataset(tmp_path / "selection.csv")
    whole = read_manifest(lesion_manifest)
    assert selection.column("image") == [whole.column("image")[row] for row in chosen]
    assert selection.column("label") == [whole.column("label")[row] for row in chosen]
    assert selection.path(0).is_file()


def test_removed_images_of_a_curation_are_shown_with_their_reasons(
    lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    whole = read_manifest(lesion_manifest)
    columns = {name: whole.column(name) for name in whole.columns}
    columns["keep"] = [row % 3 > 0 for row in range(60)]
    columns["reason"] = [None if row % 3 else "near copy" for row in range(60)]
    write_manifest(build_manifest(columns, whole.root), tmp_path / "curated.parquet")
    shown = dinomed.show_map(tiny_backbone, tmp_path / "curated.parquet", color="reason", method="pca", device="cpu")
    assert shown.groups == {"near copy": 20, "unknown": 40}
    assert len(shown.points) == 60


def test_errors_of_a_classifier_colour_the_map(lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    whole = read_manifest(lesion_manifest)
    labels, classes = whole.column("label"), whole.classes()
    lines = ["image,predicted"]
    for row, (image, label) in enumerate(zip(whole.column("image"), labels, strict=True)):
        if row < 50:
            lines.append(f"{image},{label if row % 5 else classes[(classes.index(label) + 1) % len(classes)]}")
    (tmp_path / "predictions.csv").write_text("\n".join(lines) + "\n")
    options: dict[str, Any] = {"method": "pca", "cache": tmp_path / "cache", "device": "cpu"}
    table = tmp_path / "predictions.csv"
    shown = dinomed.show_map(tiny_backbone, lesion_manifest, predictions=table, color="error", **options)
    assert shown.groups == {"correct": 40, "wrong": 10, "unknown": 10}


def test_a_damaged_image_of_a_folder_is_left_out(
    lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path, run
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for path in [read_manifest(lesion_manifest).path(row) for row in range(6)]:
        shutil.copy(path, folder)
    damaged = sorted(folder.iterdir())[2]
    damaged.write_bytes(damaged.read_bytes()[:600])
    out = tmp_path / "map.png"
    code, text, err = run("show", "map", folder, "-b", tiny_backbone, "-o", out, "--method", "pca", "--json")
    assert code == 0, err
    assert json.loads(text)["images"] == 5
    assert Image.open(out).size[0] > 1000


def test_a_sample_is_taken_above_the_limit(lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"limit": 20, "method": "pca", "cache": tmp_path / "cache", "device": "cpu"}
    first = dinomed.show_map(tiny_backbone, lesion_manifest, seed=1, **options)
    again = dinomed.show_map(tiny_backbone, lesion_manifest, seed=1, **options)
    assert len(first.points) == 20
    assert np.array_equal(first.points, again.points)
    assert len(set(first.manifest.column("image"))) == 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--color", "lable"], "--color 'lable': the images have no such column; did you mean 'label'?"),
        (["--method", "mds"], "--method 'mds' is unknown; use tsne, umap, pca"),
        (["--predictions", "PLAIN"], "has no column 'predicted'"),
    ],
)
def test_a_wrong_request_is_one_line(
    words: list[str], message: str, run, lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    (tmp_path / "plain.csv").write_text("image,label\na.png,x\n")
    words = [str(tmp_path / "plain.csv") if word == "PLAIN" else word for word in words]
    code, _, err = run("show", "map", lesion_manifest, "-b", tiny_backbone, "-o", tmp_path / "map.html", *words)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
