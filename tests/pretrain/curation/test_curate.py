"""`dinomed curate` on a pool in which everything is planted that it has to find; and what it refuses."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinomed.apps import cli
from dinomed.datasets.manifest import read_manifest
from dinomed.datasets.open import open_dataset
from dinomed.pretrain.curation.output.read import CurationResult, load_result

DROPPED = {
    "black.png": "black",
    "blank.png": "blank",
    "tiny.png": "too small",
    "gone.png": "unreadable",
    "x.png": "denied",
    "leak.png": "copy of an excluded image",
    "copy_crop.png": "copy of an excluded image",
    "copy_flip.png": "copy of an excluded image",
    "copy_text.png": "copy of an excluded image",
    "sibling.png": "group of an excluded image",
}


def dinomed(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main([*map(str, arguments)])
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    manifest = read_manifest(path)
    names = [Path(image).name for image in manifest.column("image")]
    columns = {name: manifest.column(name) for name in manifest.columns}
    return {name: {key: values[row] for key, values in columns.items()} for row, name in enumerate(names)}


@pytest.fixture(scope="module")
def curated(raw: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pool, curated with `x.png` denied and everything clean kept."""
    output = tmp_path_factory.mktemp("curated") / "curated.parquet"
    settings = ["--set", 'rules.deny={image: ["denied/*"]}', "--set", "retrieval.mode=all", "-q"]
    with pytest.raises(SystemExit) as end:
        cli.main(["curate", *raw.arguments, "-o", str(output), *settings])
    assert not end.value.code
    return output


def reuse(curated: Path, output: Path) -> Path:
    """What has been computed once need not be again: `output`, with the stages of another run beside it."""
    shutil.copytree(curated.with_suffix(".stages"), output.with_suffix(".stages"))
    return output


def test_everything_planted_is_found_and_nothing_else(curated: Path) -> None:
    rows = rows_of(curated)
    assert {name: rows[name]["reason"] for name in DROPPED} == DROPPED
    copies = {"03.png": "same.png", "04.png": "small_copy.png", "05.png": "mirror.png"}
    for original, copy in copies.items():
        kept, gone = (original, copy) if rows[original]["keep"] else (copy, original)
        assert rows[kept]["keep"]
        assert not rows[gone]["keep"]
        assert Path(rows[gone]["duplicate_of"]).name == kept
        assert rows[gone]["component"] == rows[kept]["component"]
    expected = {f"{seed:02d}.png" for seed in range(24)} | {f"t{seed}.png" for seed in range(100, 110)}
    assert {name for name, row in rows.items() if row["keep"]} | set(copies.values()) == expected | set(copies.values())
    assert {rows[f"t{seed}.png"]["source"] for seed in range(100, 110)} == {"as is"}
    assert len(rows) == 24 + 9 + 4 + 10


def test_the_result_is_what_pretraining_takes(curated: Path) -> None:
    kept = open_dataset(curated)
    assert len(kept) == 24 + 10
    assert all(kept.path(row).is_file() for row in range(len(kept)))


def test_the_result_describes_every_removed_image(curated: Path) -> None:
    outcome: CurationResult = load_result(curated)
    assert sum(outcome.counts.values()) == len(outcome.manifest) == outcome.summary["images"]
    assert outcome.counts["kept"] == int(outcome.keep.sum())
    removed = outcome.removed
    assert len(removed) == 4 + 3
    assert ((removed.duplicate_of >= 0) != (removed.reference >= 0)).all()
    assert (np.diff(removed.similarity) <= 0).all()
    assert outcome.references is not None
    by_name = {Path(outcome.manifest.column("image")[row]).name: n for n, row in enumerate(removed.row)}
    leak = by_name["leak.png"]
    assert removed.how[leak] == "exact"
    assert outcome.references.column("image")[removed.reference[leak]] == "e203.png"
    assert outcome.summary["copies"]["descriptor"] == "composed"
    assert np.isfinite(outcome.points[outcome.keep]).all()


def test_the_rule_decides_which_duplicate_is_kept(
    raw: Any, curated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = reuse(curated, tmp_path / "curated.csv")
    rule = ["--set", "duplicates.rule=[area]", "--set", "retrieval.mode=all"]  # the smallest
    assert dinomed(capsys, "curate", *raw.arguments, "-o", output, *rule, "-q")[0] == 0
    rows = rows_of(output)
    assert rows["small_copy.png"]["keep"]
    assert not rows["04.png"]["keep"]


def test_similar_images_of_the_pool_are_retrieved_for_query_sets(
    raw: Any, curated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = reuse(curated, tmp_path / "curated.parquet")
    mode = ["--set", "retrieval.mode=sample", "--set", "retrieval.k=1"]
    code, out, _ = dinomed(capsys, "curate", *raw.arguments, "-o", output, *mode, "--json", "-q")
    assert code == 0
    report = json.loads(out)
    sources = {(row["name"], row["mode"]): row for row in report["sources"]}
    sampled = sources["lesions", "sample"]["kept"]
    assert 1 <= sampled <= 10
    assert report["counts"]["kept"] == 10 + sampled
    assert {row["reason"] for row in rows_of(output).values()} >= {"not retrieved", None}
    assert "descriptor" in report["notes"][0]  # without a backbone


def test_without_a_query_set_the_pool_is_balanced(
    raw: Any, tiny_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "curated.parquet"
    arguments = [
        "--pool",
        raw.pool,
        *raw.settings,
        "--set",
        "descriptor.fit_images=8",
        "--set",
        "balance.images=9",
        "--backbone",
        tiny_backbone,
    ]
    code, _, errors = dinomed(capsys, "curate", *arguments, "-o", output)
    assert code == 0
    assert len(open_dataset(output)) == 9
    assert re.search(
        r"\d+ images are left out for balance; --set retrieval.mode=all keeps all", " ".join(errors.split())
    )
    assert {row["source"] for row in rows_of(output).values()} == {"balanced", None}
    assert load_result(output).clusters()
    code, _, errors = dinomed(capsys, "curate", *arguments, "-o", output, "--overwrite", "--set", "retrieval.mode=all")
    assert "not sampled" not in {row["reason"] for row in rows_of(output).values()}
    assert "for balance" not in errors


def test_an_index_measures_its_recall(
    raw: Any, curated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exact, approximate = tmp_path / "exact.parquet", tmp_path / "approximate.parquet"
    for output, options in (
        (exact, []),
        (approximate, ["--set", "search.exact_up_to=8", "--set", "search.recall=1.0"]),
    ):
        settings = ["--set", "retrieval.mode=all", *options, "-q"]
        reuse(curated, output)
        assert dinomed(capsys, "curate", *raw.arguments, "-o", output, *settings)[0] == 0
    assert load_result(exact).recall == []
    assert load_result(approximate).recall[0]["recall"] == 1.0
    assert rows_of(exact) == rows_of(approximate)


def test_a_damaged_and_a_foreign_piece_are_made_again(
    raw: Any, curated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = reuse(curated, tmp_path / "curated.parquet")
    stages = output.with_suffix(".stages")
    settings = ["--set", 'rules.deny={image: ["denied/*"]}', "--set", "retrieval.mode=all", "-q"]
    again = ["curate", *raw.arguments, "-o", output, *settings, "--overwrite"]
    assert dinomed(capsys, *again)[0] == 0
    first = output.read_bytes(), output.with_suffix(".json").read_bytes(), (stages / "rows.arrow").read_bytes()
    damaged = 0
    for path in sorted(stages.rglob("*")):
        if path.suffix in (".arrow", ".npy", ".safetensors") and path.parent != stages:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
            damaged += 1
    _, _, err = dinomed(capsys, *again)
    assert damaged > 10
    assert err.count("is damaged") == damaged
    for name in ("000000.arrow", "000000.arrow.json"):  # a whole piece, of other images
        shutil.copy(stages / "images" / name.replace("000000", "000001"), stages / "images" / name)
    assert dinomed(capsys, *again)[0] == 0
    assert first == (
        output.read_bytes(),
        output.with_suffix(".json").read_bytes(),
        (stages / "rows.arrow").read_bytes(),
    )


REFUSED = {
    "a threshold that is no cosine": (["--set", "duplicates.threshold=1.5"], "duplicates.threshold"),
    "a misspelt setting": (["--set", "retreival.k=3"], "did you mean 'retrieval'"),
    "a column that is not there": (["--set", 'rules.allow={scanner: ["a*"]}'], "no column 'scanner'"),
    "rules that leave nothing": (["--set", 'rules.allow={image: ["nowhere/*"]}'], "leave no image of the pool"),
    "settings for a set that is not there": (["--set", "retrieval.sets={lesion: {k: 2}}"], "did you mean 'lesions'"),
    "an engine that is not there": (["--engine", "spark"], "--engine 'spark'"),
    "an address without Ray": (["--ray-address", "auto"], "--engine ray"),
    "embeddings of nobody knows what": (["--embeddings", "none.parquet"], "--backbone"),
    "an output that is no manifest": (["-o", "out.txt"], ".parquet or .csv"),
    "a set that is not there": (["--trusted", "nowhere.parquet"], "--trusted: nowhere.parquet does not exist"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_refused_in_one_line(
    case: str, raw: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options, words = REFUSED[case]
    code, _, err = dinomed(capsys, "curate", *raw.arguments, "-o", "curated.parquet", *options, "-q")
    assert code in (1, 2)
    assert [line for line in err.splitlines() if line.startswith("error: ")]
    assert words in err
    assert "Traceback" not in err
    assert not Path("curated.parquet").exists()


def test_sets_that_make_no_sense_are_refused(raw: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "curated.parquet"
    code, _, err = dinomed(capsys, "curate", "--pool", raw.trusted, "--trusted", raw.trusted, "-o", output)
    assert (code, "nothing to retrieve" in err) == (2, True)
    empty = tmp_path / "empty.csv"
    empty.write_text("image,sha256,width,height,mode,format,bytes\n", encoding="utf-8")
    code, _, err = dinomed(capsys, "curate", "--pool", empty, "-o", output)
    assert (code, "no images" in err) == (2, True)
    labels = tmp_path / "labels.csv"
    labels.write_text("image,label\na.png,nevus\n", encoding="utf-8")
    code, _, err = dinomed(capsys, "curate", "--pool", raw.pool, "--trusted", labels, "-o", output)
    assert (code, "not a manifest" in err) == (2, True)
    twin = tmp_path / raw.trusted.name
    shutil.copy(raw.trusted, twin)
    (tmp_path / "keep.txt").write_text("mine", encoding="utf-8")
    code, _, err = dinomed(capsys, "curate", "--pool", raw.pool, "-o", tmp_path / "keep.txt", "--overwrite")
    assert code == 2


def test_embeddings_of_another_backbone_are_refused(
    raw: Any, tiny_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, output = tmp_path / "features.parquet", tmp_path / "curated.parquet"
    good = tmp_path / "good.csv"
    lines = open_dataset(raw.trusted)
    from dinomed.datasets.manifest import write_manifest

    write_manifest(lines, good)
    assert dinomed(capsys, "features", good, "--backbone", tiny_backbone, "-o", table, "-q")[0] == 0
    arguments = ["--pool", good, "--set", "retrieval.mode=all", *raw.settings, "-b", tiny_backbone, "-o", output, "-q"]
    assert dinomed(capsys, "curate", *arguments, "--embeddings", table)[0] == 0
    assert len(open_dataset(output)) == 10
    rows = pq.ParquetFile(table).read()
    metadata = {**rows.schema.metadata, b"fingerprint": b"0" * 64}
    pq.write_table(rows.replace_schema_metadata(metadata), table)
    code, _, err = dinomed(capsys, "curate", *arguments, "--embeddings", table, "--overwrite")
    assert (code, "of another backbone" in err) == (2, True)
    feature = pa.FixedSizeListArray.from_arrays(pa.array(np.full(10 * 32, np.nan, np.float32)), 32)
    broken = pa.table([rows["image"], rows["sha256"], feature], schema=rows.schema)
    pq.write_table(broken.replace_schema_metadata(rows.schema.metadata), table)
    code, _, err = dinomed(capsys, "curate", *arguments, "--embeddings", table, "--overwrite")
    assert (code, "not finite" in err) == (1, True)


def test_more_than_there_is_is_cut_with_a_word(
    raw: Any, curated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = reuse(curated, tmp_path / "curated.parquet")
    large = ["--set", "retrieval.mode=sample", "--set", "retrieval.k=1000", "--set", "duplicates.k=1000", "-q"]
    code, _, err = dinomed(capsys, "curate", *raw.arguments, "-o", output, *large)
    assert (code, "retrieval.k is 1,000" in err) == (0, True)
    assert "not retrieved" not in load_result(output).counts


def test_a_dry_run_writes_nothing(raw: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "curated.parquet"
    code, out, _ = dinomed(capsys, "curate", *raw.arguments, "-o", output, "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["images_to_read"] == 37 + 10 + 6
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry run"])
@pytest.mark.parametrize("suffix", [".html", ".json", ".stages", ".faces"])
def test_the_places_of_all_outputs_are_checked_before_the_images_are_read(
    raw: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str, dry: tuple[str, ...]
) -> None:
    place = tmp_path / f"curated{suffix}"
    place.mkdir() if suffix in (".html", ".json") else place.touch()
    code, _, err = dinomed(capsys, "curate", *raw.arguments, "-o", tmp_path / "curated.parquet", "-q", *dry)
    assert code == 2, err
    assert str(place) in err
    assert "choose another name" in err
    assert list(tmp_path.iterdir()) == [place]


def test_a_device_a_backbone_and_tables_are_checked_before_the_images_are_read(
    raw: Any, tiny_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "curated.parquet"
    (tmp_path / "table.parquet").write_bytes(b"no table")
    for options, message in (
        (("--device", "tpu"), "expected auto, cpu"),
        (("--backbone", raw.pool.parent), "holds no backbone"),
        (("--weights", "file"), "name it with --backbone"),
        (("--embeddings", tmp_path / "table.parquet"), "name the backbone that made them"),
        (("--backbone", tiny_backbone, "--embeddings", tmp_path / "table.parquet"), "cannot be read"),
    ):
        for dry in ((), ("--dry-run",)):
            code, out, err = dinomed(capsys, "curate", *raw.arguments, "-o", output, *options, *dry)
            assert (code, out) == (2, ""), err
            assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["table.parquet"]
    (tmp_path / "curated.parquet").touch()
    code, _, err = dinomed(capsys, "curate", *raw.arguments, "-o", output, "--dry-run")
    assert (code, "exists already; add --overwrite" in err) == (2, True)
