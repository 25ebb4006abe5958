"""The label-efficiency table: nested draws by group, sources kept apart, runs within their time, and resuming."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pytest

from dinomed.datasets.manifest import Manifest, read_manifest, write_manifest
from dinomed.errors import UsageError


@pytest.fixture(scope="module")
def bench(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("label_efficiency")


@pytest.fixture
def two_sites(lesion_manifest: Path, tmp_path: Path) -> Path:
    """The lesions with a column `site`: every third group comes from site b."""
    manifest = read_manifest(lesion_manifest)
    names = sorted(set(manifest.units()))
    site = pa.array(["b" if names.index(unit) % 3 == 0 else "a" for unit in manifest.units()])
    path = tmp_path / "sites.parquet"
    write_manifest(Manifest(manifest.table.append_column("site", site), manifest.root), path)
    return path


def test_no_test_group_is_drawn_and_the_other_source_is_never_trained_on(bench: ModuleType, two_sites: Path) -> None:
    sources = bench.split_sources(read_manifest(two_sites), "site=b", None, 8)
    assert set(sources.pool.column("site")) == {"a"}
    assert set(sources.other.column("site")) == {"b"}
    assert not {*sources.pool.units()} & {*sources.same.units(), *sources.other.units()}
    assert len(sources.other) == 8
    with pytest.raises(UsageError, match="0 of 60 images"):
        bench.split_sources(read_manifest(two_sites), "site=c", None, 8)


def test_images_of_the_other_source_that_pretraining_may_have_seen_are_told_apart(
    bench: ModuleType, script: Callable[[str], ModuleType], two_sites: Path
) -> None:
    manifest = read_manifest(two_sites)
    place = manifest.table.schema.get_field_index("split")
    first = next(row for row in range(len(manifest)) if manifest.column("site")[row] == "b")
    splits = [
        "" if row == first else split for row, split in enumerate(manifest.column("split"))
    ]  # none: pretraining takes it
    manifest = Manifest(manifest.table.set_column(place, "split", pa.array(splits)), manifest.root)
    sources = bench.split_sources(manifest, "site=b", None, 60)
    tests = sources.test(lambda rows, _: {"values": rows.column("image"), "groups": rows.units()})
    split_of = dict(zip(manifest.column("image"), manifest.column("split"), strict=True))
    assert {split_of[image] for image in tests["other"]["values"]} > {"train", ""}
    assert tests["unseen"]["values"] == [
        image for image in tests["other"]["values"] if split_of[image] in ("val", "test")
    ]
    assert len(tests["unseen"]["groups"]) == len(tests["unseen"]["values"])
    only_test = bench.split_sources(manifest, None, manifest, 60)
    assert "unseen" not in only_test.test(lambda rows, _: {"values": [0.5] * len(rows)})

    report = script("label_efficiency_report")
    rows = [row_of("linear", 0, [0.2, 0.4, 0.6, 0.8]) | {"unseen": {"values": [0.3, 0.5], "groups": ["a", "b"]}}]
    columns, table = report.build_cells(rows, ["25"])
    assert columns[3] == "25: another source, val and test"
    assert table[0][3].startswith("0.400")


def row_of(head: str, draw: int, values: list[float]) -> dict[str, object]:
    test = {"values": values, "groups": ["a", "a", "b", "c"]}
    return {"head": head, "count": "25", "draw": draw, "same": test, "other": test, "spent": {"fit": 1.0}}


def test_differences_are_those_of_the_same_images_in_draws_that_both_have(
    bench: ModuleType, script: Callable[[str], ModuleType]
) -> None:
    report, scratch = script("label_efficiency_report"), bench.SCRATCH["segment"]
    rows = [
        row_of("linear", 0, [0.2, 0.4, 0.6, 0.8]),
        row_of("linear", 1, [0.9, 0.9, 0.9, 0.9]),  # no network from scratch has this draw
        row_of(scratch, 0, [0.1, 0.3, 0.5, 0.7]),
        row_of("other", 2, [0.5, 0.5, 0.5, 0.5]),
    ]
    columns, table = report.build_differences(rows, ["25"])
    assert len(columns) == 3
    # 0.1 better in each image, so the interval has no width, though the images differ by 0.6
    assert table == [["linear", "+0.100 (+0.100 to +0.100)", "+0.100 (+0.100 to +0.100)"]]
    assert report.build_differences(rows[:2], ["25"])[1] == []


@pytest.mark.long
def test_runs_keep_their_time_are_resumed_and_give_a_table_and_a_page(
    bench: ModuleType, two_sites: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = [
        two_sites, "-b", tiny_backbone, "--other", "site=b", "--heads", "linear", "--draws", 2, "--seconds", 2,
        "--unet-size", 32, "--test-images", 4, "--set", "image_size=32", "--set", "augment=dermoscopy", "-o", out,
    ]  # fmt: skip
    words = [str(word) for word in words]
    bench.main([*words, "--counts", "10"])
    lines = (out / "results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["head"], row["draw"]) for row in rows] == [
        (head, seed) for seed in (0, 1) for head in ("linear", "U-Net from scratch")
    ]
    assert not any("failed" in row for row in rows)
    assert all(len(row["same"]["values"]) == len(row["other"]["values"]) == 4 for row in rows)
    # The first draw also loads libraries. A step and a validation may end after the time: below a second each
    # on a quiet machine, with the choice of a threshold.
    assert all(sum(row["spent"].values()) < 2 + 6 for row in rows if row["draw"] == 1)
    bench.main([*words, "--counts", "10", "12"])
    assert (out / "results.jsonl").read_text().splitlines()[:4] == lines  # not run again
    assert "| U-Net from scratch |" in (out / "results.md").read_text()
    page = (out / "index.html").read_text()
    assert "<svg" in page
    assert "another source" in page
    assert "lesions/" not in page  # no names of images
    curves = sorted(path.name for path in out.glob("*.svg"))
    assert curves == [f"{two_sites.stem}_segment_2s_{source}.svg" for source in ("other", "same")]
    assert "U-Net from scratch" in (out / curves[0]).read_text()
