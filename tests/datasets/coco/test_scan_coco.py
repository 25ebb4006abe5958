"""`scan --coco`: masks are those that pycocotools draws; a damaged file gives one line and leaves nothing."""

import contextlib
import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import dinomed
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.adapters.tasks.segment.mask_schema import MaskSchema, build_mask_schema
from dinomed.apps.api.data import datasets
from dinomed.apps.api.data.datasets import scan_with_report
from dinomed.config import load_config
from dinomed.datasets.coco.masks import SETTINGS_FILE
from dinomed.datasets.coco.rle import parse_runs
from dinomed.datasets.manifest import Manifest, read_manifest
from dinomed.errors import UsageError
from dinomed.io.output_folder import open_output_folder

Write = Callable[[Any], Path]


def masks_of_pycocotools(file: Path, image: int) -> dict[str, np.ndarray]:
    """Category -> the union of its objects, drawn by pycocotools."""
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(file))
    masks: dict[str, np.ndarray] = {}
    for entry in coco.loadAnns(coco.getAnnIds(imgIds=[image])):
        name = coco.cats[entry["category_id"]]["name"]
        masks[name] = masks.get(name, 0) | coco.annToMask(entry)
    return masks


def schema_of(folder: Path) -> MaskSchema:
    """The mask schema of the settings that a scan wrote."""
    settings = load_config(SegmentConfig, folder / "segment.yaml")
    schema = build_mask_schema(settings.kind, settings.classes)
    assert schema is not None
    return schema


def check_masks(manifest: Manifest, schema: MaskSchema, file: Path) -> None:
    for row, image in enumerate(manifest.column("image")):
        planes = dict(zip(schema.names, schema.planes(schema.read(manifest, row)), strict=True))
        expected = masks_of_pycocotools(file, 10 + int(Path(image).stem))
        for k in schema.reported:
            np.testing.assert_array_equal(planes[schema.names[k]], expected.get(schema.names[k], 0))


def test_categories_apart_become_label_maps_that_a_segmenter_reads(
    images: Path, content: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    file = write(content)
    result = scan_with_report(images, coco=file, out=tmp_path / "out/m.parquet")
    assert result.masks == {"masks": 4, "empty": 1, "full": 0}
    assert any("reach out of their images" in line for line in result.warnings)
    assert any("left out: unused" in line for line in result.notes)
    manifest = read_manifest(tmp_path / "out/m.parquet")
    assert manifest.root.resolve() == tmp_path.resolve()  # contains the images and the masks
    assert all(manifest.path(row).is_file() for row in range(4))
    schema = schema_of(tmp_path / "out/m.coco")
    assert schema == MaskSchema("multiclass", ("background", "polyp", "tool"), (0, 2, 7))
    check_masks(manifest, schema, file)
    assert len(schema.usable(manifest)) == 4


def test_categories_that_overlap_become_a_column_each(
    images: Path, content: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    content["annotations"][1]["segmentation"] = [[3, 3, 25, 3, 25, 10]]
    file = write(content)
    manifest = dinomed.scan(images, coco=file, out=images / "m.csv")  # a manifest within its folder of images
    assert manifest.column("image")[0] == "images/0.png"
    schema = schema_of(images / "m.coco")
    assert (schema.kind, schema.columns) == ("multilabel", ("mask polyp", "mask tool"))
    check_masks(manifest, schema, file)
    # Scanned again, the masks are not taken for images, and those of other columns disappear.
    content["annotations"] = content["annotations"][:1]
    again = dinomed.scan(images, coco=write(content), out=images / "m.csv", overwrite=True)
    assert len(again) == 4
    assert schema_of(images / "m.coco") == MaskSchema("binary", ("polyp",), (1,))
    check_masks(again, schema_of(images / "m.coco"), tmp_path / "annotations.json")
    assert sorted(path.name for path in (images / "m.coco").rglob("*.png")) == [f"{i}.png" for i in range(4)]


def test_a_scan_that_is_killed_while_it_replaces_masks_leaves_none_of_the_old_ones(
    images: Path, content: dict[str, Any], write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    content["annotations"][1]["segmentation"] = [[3, 3, 25, 3, 25, 10]]  # masks in folders of their categories
    dinomed.scan(images, coco=write(content), out=images / "m.csv")
    content["annotations"] = content["annotations"][:1]
    move, settings = os.replace, images / "m.coco" / SETTINGS_FILE

    def killed(source: Path, target: Path) -> None:
        if Path(target) == settings:
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        dinomed.scan(images, coco=write(content), out=images / "m.csv", overwrite=True)
    monkeypatch.undo()
    assert not settings.exists()
    with pytest.raises(UsageError, match="already holds"), open_output_folder(settings.parent, marker=SETTINGS_FILE):
        pass
    assert schema_of(settings.parent) == MaskSchema("binary", ("polyp",), (1,))
    assert sorted(path.name for path in settings.parent.rglob("*.png")) == [f"{i}.png" for i in range(4)]


def test_masks_of_a_scan_that_is_killed_before_its_manifest_never_stand_beside_the_old_manifest(
    images: Path, content: dict[str, Any], write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, first = images / "m.csv", write(content)
    dinomed.scan(images, coco=first, out=out)
    second = tmp_path / "second.json"
    second.write_text(json.dumps(content | {"annotations": content["annotations"][:1]}))
    (broken := tmp_path / "broken.json").write_text("{")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(UsageError, match=r"broken\.json"):  # a refused call leaves the old result as it was
        dinomed.scan(images, coco=broken, out=out, overwrite=True)
    check_masks(read_manifest(out), schema_of(images / "m.coco"), first)
    monkeypatch.setattr(datasets, "write_manifest", killed)
    with pytest.raises(KeyboardInterrupt):
        dinomed.scan(images, coco=second, out=out, overwrite=True)
    monkeypatch.undo()
    for file, overwrite in ((second, False), (broken, True)):
        with pytest.raises(UsageError):
            dinomed.scan(images, coco=file, out=out, overwrite=overwrite)
        assert not out.exists()
        assert schema_of(images / "m.coco").names == ("background", "polyp", "tool")  # as before the killed call
    again = dinomed.scan(images, coco=second, out=out, overwrite=True)
    check_masks(again, schema_of(images / "m.coco"), second)


def test_class_folders_and_splits_of_a_table_go_with_annotations(
    images: Path, content: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    (images / "nevus").mkdir()
    (images / "images/3.png").rename(images / "nevus/3.png")
    manifest = dinomed.scan(images, "folders", coco=write(content), out=tmp_path / "m.parquet")
    assert dict(zip(manifest.column("image"), manifest.column("label"), strict=True))["data/nevus/3.png"] == "nevus"
    (images / "table.csv").write_text(
        "image,group,depth\n" + "".join(f"images/{i}.png,L{i % 2},nevus/3.png\n" for i in range(3))
    )
    grouped = dinomed.scan(images, "table.csv", coco=write(content), out=tmp_path / "n.parquet", allow_unreadable=True)
    assert set(grouped.column("depth")) == {"data/nevus/3.png"}  # a path of a file, from the new root too
    groups = dict(zip(grouped.column("image"), grouped.column("group"), strict=True))
    assert groups["data/images/0.png"] == groups["data/images/2.png"] != groups["data/images/1.png"]


def test_images_of_the_file_alone_are_refused_or_left_out(
    images: Path, content: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    content["images"].append({"id": 99, "file_name": "gone.png", "width": 40, "height": 30})
    file, out = write(content), tmp_path / "m.parquet"
    with pytest.raises(UsageError, match=r"names 1 images that .* does not hold.*'gone.png'"):
        dinomed.scan(images, coco=file, out=out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations.json", "data"]
    result = scan_with_report(images, coco=file, out=out, allow_unreadable=True)
    assert result.unreadable == [("gone.png", "in annotations.json, but no such image file exists")]
    assert len(result.manifest) == 4


def polygon(*values: float) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["annotations"][0].update(segmentation=[list(values)])


def runs(counts: Any, size: tuple[int, int] = (30, 40)) -> Callable[[dict[str, Any]], None]:
    segmentation = {"size": list(size), "counts": counts}
    return lambda content: content["annotations"][0].update(segmentation=segmentation)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (polygon(100, 100, 120, 100, 110, 120), "annotation 1 of image '0.png': a polygon lies outside"),
        (polygon(1, 2, 3, 4), "a polygon has 4 numbers"),
        (polygon(1, 2, 3, float("nan"), 5, 6), "a value that is no number"),
        (polygon(1, 2, 1e300, 4, 5, 6), "an outline of 2e[+]300 px; the limit is"),
        (polygon(1, 2, 10**400, 4, 5, 6), "annotation 1 of image '0.png': a polygon has a value that is no number, or"),
        (polygon(*[10**300, -(10**300), 5, 5] * 100), "an outline of .* px; the limit is|lies outside"),
        (polygon(*[0, 0, 40, 30] * 30_000), "an outline of .* px; the limit is"),
        (runs([5, 2**40]), "the runs cover .* pixels, the image has 1200"),
        (runs([-5, 1205]), "not whole numbers of at least 0"),
        (runs("5220\N{SNOWMAN}"), "the run lengths are damaged"),
        (runs("o" * 50), "the run lengths are damaged"),
        (runs([1200], (2**20, 2**20)), r"of size \[1048576, 1048576\], the image of \[30, 40\]"),
        (lambda c: c["annotations"][0].update(segmentation=[]), "it has no segmentation"),
        (lambda c: c["annotations"][1].update(id=1), "annotation id 1 occurs twice"),
        (lambda c: c["images"][1].update(id=10), "image id 10 occurs twice"),
        (lambda c: c["images"][1].update(file_name="0.png"), "images has file_name '0.png' twice"),
        (lambda c: c["images"][1].update(file_name="images/0.png"), "'0.png' and 'images/0.png' are both the file"),
        (lambda c: c["images"][1].update(width=2**40), "image 11 has the size"),
        (lambda c: c["images"][3].update(width=41), "image '3.png' has 41 x 30 px, the file 40 x 30"),
        (lambda c: c["categories"][1].update(name="polyp"), "categories has name 'polyp' twice"),
        (lambda c: c["annotations"][0].update(image_id=77), "annotation 1 is of image 77, which images does not list"),
        (lambda c: c["annotations"][0].update(category_id=77), "annotation 1 is of category 77"),
        (lambda c: c.update(annotations=[]), "has no object in the images of the folder"),
        (lambda c: c.pop("images"), "is no COCO file; it needs the lists"),
    ],
)  # fmt: skip
def test_a_damaged_file_gives_one_line_and_writes_nothing(
    images: Path, content: dict[str, Any], write: Write, tmp_path: Path, damage: Callable[..., Any], message: str
) -> None:
    damage(content)
    file = write(content)
    with pytest.raises(UsageError, match=message) as caught:
        dinomed.scan(images, coco=file, out=tmp_path / "m.parquet")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations.json", "data"]


REMEDY = "; give an annotation file in the COCO format: JSON in UTF-8, not compressed"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no JSON", f"not valid JSON, line 1: Expecting value{REMEDY}"),
        (b'{"images": [],\n"annotations" []}', f"not valid JSON, line 2: Expecting ':' delimiter{REMEDY}"),
        (b"\n", f"it is empty{REMEDY}"),
        (b"\x89PNG\r\n\x1a\n\0\0", f"it is not UTF-8 text{REMEDY}"),
        (gzip.compress(b"{}"), f"it is not UTF-8 text{REMEDY}"),
        ('{"images": []}'.encode("utf-16"), f"it is not UTF-8 text{REMEDY}"),
        (b"[" * 100_000, f"its values are nested too deeply{REMEDY}"),
        (b"1" * 5000, "not valid JSON (Exceeds the limit"),
        (b"[]", "it holds results alone"),
    ],
    ids=["no JSON", "cut", "empty", "a picture", "compressed", "UTF-16", "deep", "a long number", "results"],
)
def test_another_file_is_refused(images: Path, tmp_path: Path, content: bytes, message: str) -> None:
    pytest.importorskip("pycocotools")
    file = tmp_path / "annotations.json"
    file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        dinomed.scan(images, coco=file, out=tmp_path / "m.parquet")
    assert message in str(caught.value)
    assert str(caught.value).startswith((f"COCO file {file} cannot be read: ", f"{file} is no COCO file"))
    assert "\n" not in str(caught.value)
    assert "codec" not in str(caught.value)
    assert not (tmp_path / "m.coco").exists()


def test_a_byte_order_mark_is_skipped(images: Path, content: dict[str, Any], write: Write, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    file = write(content)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert dinomed.scan(images, coco=file, out=tmp_path / "m.parquet")


def test_options_that_contradict_annotations_are_refused(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    for options, message in [
        ({"out": None}, "masks are written beside the manifest"),
        ({"mask": "mask"}, "the masks come from `coco`"),
        ({"label_maps": True}, "the masks come from `coco`"),
        ({}, r"COCO file gone.json does not exist"),
    ]:
        with pytest.raises(UsageError, match=message):
            dinomed.scan(images, coco="gone.json", **{"out": tmp_path / "m.parquet", **options})
    assert not (tmp_path / "m.coco").exists()


def test_run_lengths_of_text_are_those_of_pycocotools() -> None:
    coco_mask = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for density in (0.001, 0.3, 0.99):
        mask = rng.random((211, 97)) < density
        packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        runs = parse_runs(packed["counts"].decode())
        values = np.repeat(np.arange(len(runs)) % 2, runs)
        np.testing.assert_array_equal(values.reshape(97, 211).T, mask)


def test_regions_of_overlapping_classes_are_objects_with_their_mean_probability(
    images: Path, content: dict[str, Any], write: Write
) -> None:
    from dinomed.adapters.tasks.segment.coco import CocoResults
    from dinomed.datasets.coco.rle import check_runs
    from dinomed.datasets.open import open_dataset

    schema, manifest = MaskSchema("multilabel", ("polyp", "tool"), ("a", "b")), open_dataset(images)
    planes = np.zeros((2, 30, 40), np.uint8)
    planes[0, 2:5, 3:6] = planes[0, 5, 6] = planes[0, 20, 39] = 1  # two regions: one touches itself at a corner
    planes[1, 0:30, 0:40] = 1
    probabilities = np.full((2, 30, 40), 0.25, np.float32)
    probabilities[0, 20, 39] = 0.875
    results = CocoResults(manifest, schema, write(content))
    results.save(images, "images/2.png", planes, probabilities)
    results.write(images, ["images/2.png"])
    listed = yaml.safe_load((images / "coco_images.json").read_text())
    assert listed["images"] == [{"id": 12, "file_name": "images/2.png", "width": 40, "height": 30}]
    assert listed["categories"] == [{"id": 2, "name": "polyp"}, {"id": 7, "name": "tool"}]
    objects = yaml.safe_load((images / "coco_results.json").read_text())
    assert [(entry["image_id"], entry["category_id"], entry["score"]) for entry in objects] == [
        (12, 2, 0.25), (12, 2, 0.875), (12, 7, 0.25)
    ]  # fmt: skip
    drawn = [check_runs(parse_runs(entry["segmentation"]["counts"]), 30, 40) for entry in objects]
    assert drawn[1] == [39 * 30 + 20, 1, 9]
    assert drawn[2] == [0, 1200]
