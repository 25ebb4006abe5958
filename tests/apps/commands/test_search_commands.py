"""Commands index and search: output, exit codes and hostile input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinomed.datasets.manifest import read_manifest


def pictures(user_folder: Path) -> list[Path]:
    return sorted((user_folder / "lesions" / "images").iterdir())


def test_an_image_finds_similar_ones_of_other_groups(user_folder: Path, run) -> None:
    options = ("--index", user_folder / "idx", "-k", 4, "--exclude-same-group", "--json", "--quiet")
    code, out, err = run("search", pictures(user_folder)[0], *options)
    assert code == 0, err
    answer = json.loads(out)
    (query,) = answer["queries"]
    query_group = read_manifest(user_folder / "derm.parquet").column("group")[0]
    assert [result["rank"] for result in query["results"]] == [1, 2, 3, 4]
    assert query_group not in [result["group"] for result in query["results"]]
    assert query["group_known"]
    first = query["results"][0]
    assert first["similarity"] + first["distance"] == pytest.approx(1)
    rows = read_manifest(user_folder / "derm.parquet")
    assert first["label"] == rows.column("label")[rows.column("image").index(first["image"])]
    assert {"age", "sex"} <= first["columns"].keys()
    assert answer["purpose"] == "for research use only, not for diagnosis"


def test_a_folder_filtered_with_evidence_and_pictures(user_folder: Path, run, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    for path in pictures(user_folder)[:2]:
        shutil.copy(path, folder)
    options = ("--index", user_folder / "idx", "-k", 3, "--where", "sex=female", "--where", "age>=40", "--evidence")
    code, out, err = run("search", folder, *options, "-o", tmp_path / "out", "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert answer == json.loads((tmp_path / "out" / "results.json").read_text())
    for number, query in enumerate(answer["queries"], 1):
        for result in query["results"]:
            assert result["columns"]["sex"] == "female"
            assert float(result["columns"]["age"]) >= 40
            evidence = result["evidence"]
            for pair in evidence["pairs"]:
                assert 0 < pair["query"][0] < 48  # pictures are 48 x 36 px
                assert 0 < pair["query"][1] < 36
                assert pair["similarity"] >= evidence["min_similarity"]
            assert np.asarray(Image.open(tmp_path / "out" / evidence["picture"])).shape[1] > 2 * 2 * 320
            assert evidence["picture"] == f"{number:04d}_{result['rank']:02d}.jpg"
    code, _, err = run("search", folder, *options, "-o", tmp_path / "out")
    assert code == 2
    assert "add --overwrite" in err
    code, out, _ = run(
        "search", pictures(user_folder)[0], "--index", user_folder / "idx", "-o", tmp_path / "out", "--overwrite"
    )
    assert code == 0
    assert "research use only" in out
    assert not list((tmp_path / "out").glob("*.jpg"))


def test_an_interrupted_replacement_is_not_taken_for_a_complete_search(
    user_folder: Path, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, out = user_folder / "lesions/images/SYN_00000_a.jpg", tmp_path / "out"
    words = ("search", query, "--index", user_folder / "idx", "-k", 1, "--evidence", "-o", out)
    assert run(*words)[0] == 0

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dinomed.apps.api.retrieval.draw_matches", interrupted)
        assert run(*words, "--overwrite")[0] == 130
    assert not (out / "results.json").exists()
    assert run(*words)[0] == 0
    assert sorted(path.name for path in out.iterdir()) == ["0001_01.jpg", "results.json"]


def test_an_unknown_group_and_a_too_large_k_are_reported(user_folder: Path, run, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(tmp_path / "new.png")
    code, out, err = run(
        "search", tmp_path / "new.png", "--index", user_folder / "idx", "-k", 999, "--exclude-same-group", "--json"
    )
    assert code == 0
    answer = json.loads(out)
    assert len(answer["queries"][0]["results"]) == 60
    assert "the index holds 60 images" in err
    assert "the group of 1 of 1 images is not known" in err
    assert len(answer["notes"]) == 2


def test_broken_files_are_named_and_the_others_are_searched(user_folder: Path, run, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    shutil.copy(pictures(user_folder)[0], folder / "good.jpg")
    (folder / "bad.jpg").write_bytes(pictures(user_folder)[0].read_bytes()[:300])
    (folder / "empty.png").write_bytes(b"")
    code, out, err = run("search", folder, "--index", user_folder / "idx", "--json", "-k", 1)
    assert code == 1
    assert {row["image"] for row in json.loads(out)["unreadable"]} == {"bad.jpg", "empty.png"}
    assert [row["image"] for row in json.loads(out)["queries"]] == ["good.jpg"]
    assert "2 images could not be used" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "{p}/none.png", "--index", "{p}/idx"], "does not exist"),
        (["search", "{t}/empty", "--index", "{p}/idx"], "{t}/empty"),
        (["search", "{p}/lesions/labels.csv", "--index", "{p}/idx"], "not a manifest"),
        (["search", "{p}/lesions", "--index", "{p}/nowhere"], "does not exist; make one: dinomed index"),
        (["search", "{p}/lesions", "--index", "{p}/ssl"], "is no index"),
        (["search", "{p}/lesions", "--index", "{p}/idx", "--where", "sax=male"], "did you mean 'sex'"),
        (["search", "{p}/lesions", "--index", "{p}/idx", "--where", "sex=mal"], "did you mean 'male'"),
        (["search", "{p}/lesions", "--index", "{p}/idx", "-k", "0"], "-k"),
        (["search", "{p}/lesions", "--index", "{p}/idx", "--split", "val"], "--split and --label are for --evaluate"),
        (["search", "{p}/lesions", "--index", "{p}/idx", "--backbone", "{p}/nothing"], "no known name"),
        (["search", "{p}/lesions", "--index", "{p}/idx", "--where", "sex=mal", "-o", "{t}/new"], "did you mean 'male'"),
        (["index", "{p}/derm.parquet", "-b", "{p}/ssl", "-o", "{p}/idx"], "add --overwrite"),
        (["index", "{p}/derm.parquet", "-b", "{p}/ssl", "-o", "{p}/lesions"], "not empty"),
        (["index", "{p}/derm.parquet", "-b", "{p}/ssl", "-o", "{t}/new", "--kind", "tree"], "--kind 'tree'"),
        (["index", "{p}/derm.parquet", "-b", "{p}/ssl", "-o", "{t}/new", "--pool", "max"], "--pool 'max'"),
        (["index", "{p}/derm.parquet", "-b", "{p}/ssl", "-o", "{t}/new", "--whiten", "99"], "allow 1 to 32 dimensions"),
        (["index", "{p}/derm.parquet", "-b", "{p}/ssl", "-o", "{t}/new", "--where", "split=holdout"], "known: test"),
        (["index", "{t}/empty", "-b", "{p}/ssl", "-o", "{t}/new"], "{t}/empty"),
    ],
)
def test_a_wrong_request_gives_a_one_line_error_that_names_the_problem(
    user_folder: Path, run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()

    def fill(text: str) -> str:
        return text.replace("{t}", str(tmp_path)).replace("{p}", str(user_folder))

    code, out, err = run(*map(fill, arguments))
    assert code == 2, err
    assert fill(message) in err
    assert err.count("error:") == 1
    assert out == ""
    assert not (tmp_path / "new").exists()


def test_broken_files_are_named_when_a_folder_is_indexed(user_folder: Path, run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(pictures(user_folder)[0], tmp_path / "in" / "whole.png")
    (tmp_path / "in" / "cut.png").write_bytes(pictures(user_folder)[1].read_bytes()[:200])
    code, out, err = run("index", tmp_path / "in", "-b", user_folder / "ssl", "-o", tmp_path / "idx", "--json")
    assert code == 1, err
    assert json.loads(out)["unreadable"] == 1
    assert "1 image could not be used and is not in the index: cut.png: " in err


def test_only_a_part_of_a_manifest_is_indexed(user_folder: Path, run, tmp_path: Path) -> None:
    code, out, err = run(
        "index", user_folder / "derm.parquet", "-b", user_folder / "ssl", "-o", tmp_path / "part",
        "--where", "split=train", "--kind", "ivf", "--pool", "cls+mean", "--json",
    )  # fmt: skip
    assert code == 0, err
    made = json.loads(out)
    assert made["images"] == read_manifest(user_folder / "derm.parquet").column("split").count("train")
    assert (made["kind"], made["dimension"], made["pool"]) == ("ivf", 64, "cls+mean")


def test_an_index_is_evaluated(user_folder: Path, run) -> None:
    options = (
        "search",
        user_folder / "derm.parquet",
        "--index",
        user_folder / "idx",
        "--evaluate",
        "--where",
        "split=train",
    )
    code, out, err = run(*options, "--json")
    assert code == 0, err
    answer = json.loads(out)
    splits = read_manifest(user_folder / "derm.parquet").column("split")
    assert answer["metrics"]["n"] == splits.count("test")
    assert answer["index"]["searched"] == splits.count("train")
    assert 0 < answer["metrics"]["map"] < 1
    code, out, _ = run(*options)
    assert code == 0
    assert "research use only" in out
    for option in (("--evidence",), ("-k", "3")):
        code, _, err = run(*options, *option)
        assert code == 2
        assert "--evaluate gives metrics alone" in err


def test_images_are_padded_by_an_option_that_the_index_records(user_folder: Path, run, tmp_path: Path) -> None:
    backbone = ("-b", user_folder / "ssl")
    features = ("features", user_folder / "lesions" / "images", *backbone, "-o", tmp_path / "f.parquet")
    code, _, err = run(*features, "--aspect", "zoom")
    assert code == 2
    assert "--aspect zoom: give one of square, pad, keep" in err
    code, out, err = run(*features, "--aspect", "pad", "--json")
    assert (code, json.loads(out)["aspect"]) == (0, "pad"), err
    index = ("index", user_folder / "derm.parquet", *backbone, "-o", tmp_path / "idx")
    code, out, err = run(*index, "--aspect", "pad", "--json")
    assert (code, json.loads(out)["aspect"]) == (0, "pad"), err
    code, out, err = run("search", pictures(user_folder)[0], "--index", tmp_path / "idx", "-k", 1, "--json")
    assert code == 0, err
    (best,) = json.loads(out)["queries"][0]["results"]
    # the same image has the same vector only if the query is padded too
    assert (Path(best["image"]).name, best["similarity"]) == (pictures(user_folder)[0].name, pytest.approx(1, abs=1e-5))
