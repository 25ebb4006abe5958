"""The label-efficiency table: nested draws by group, sources kept apart, runs within their time, and resuming."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
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


def test_draws_are_nested_by_group_with_a_fifth_for_validation(bench: ModuleType, lesion_manifest: Path) -> None:
    pool = read_manifest(lesion_manifest)
    small, large = (bench.draw(pool, count, 0) for count in (10, 25))
    assert (len(small), len(large)) == (10, 25)
    assert set(small.column("image")) < set(large.column("image"))
    split_of = dict(zip(large.column("image"), large.column("split"), strict=True))
    assert [split_of[name] for name in small.column("image")] == small.column("split")
    assert 3 <= large.column("split").count("val") <= 7
    assert not {*large.select(split="train").units()} & {*large.select(split="val").units()}
    assert set(bench.draw(pool, 10, 1).column("image")) != set(small.column("image"))
    assert len(bench.draw(pool, None, 0)) == len(pool)


def test_small_draws_of_classes_hold_every_class(bench: ModuleType, lesion_manifest: Path) -> None:
    pool = read_manifest(lesion_manifest)
    drawn = bench.draw(pool, 10, 0, "label")
    assert set(drawn.select(split="train").column("label")) == set(pool.column("label"))


def test_no_test_group_is_drawn_and_the_other_source_is_never_trained_on(bench: ModuleType, two_sites: Path) -> None:
    sources = bench.split_sources(read_manifest(two_sites), "site=b", None, 8)
    assert set(sources.pool.column("site")) == {"a"}
    assert set(sources.other.column("site")) == {"b"}
    assert not {*sources.pool.units()} & {*sources.same.units(), *sources.other.units()}
    assert len(sources.other) == 8
    with pytest.raises(UsageError, match="0 of 60 images"):
        bench.split_sources(read_manifest(two_sites), "site=c", None, 8)


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
    # A step and a validation may end after the time; they take well below a second here, choosing a threshold too.
    assert all(sum(row["spent"].values()) < 2 + 6 for row in rows)
    bench.main([*words, "--counts", "10", "12"])
    assert (out / "results.jsonl").read_text().splitlines()[:4] == lines  # not run again
    assert "| U-Net from scratch |" in (out / "results.md").read_text()
    page = (out / "index.html").read_text()
    assert "<svg" in page
    assert "another source" in page
    assert "lesions/" not in page  # no names of images


def test_the_interval_covers_draws_and_groups(script: Callable[[str], ModuleType]) -> None:
    report = script("label_efficiency_report")
    groups = [str(number) for number in range(50)]
    values = np.random.default_rng(0).uniform(0.5, 1, 50).tolist()
    mean, low, high, number = report.summarize([{"values": values, "groups": groups}])
    assert number == 1
    assert low < mean < high
    shifted = [{"values": [value + step for value in values], "groups": groups} for step in (-0.2, 0.0, 0.2)]
    wide = report.summarize(shifted)
    assert wide[0] == pytest.approx(mean)
    assert wide[2] - wide[1] > high - low
