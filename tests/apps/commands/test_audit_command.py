"""`dinomed audit` as a user meets it: exit codes for CI, JSON, a page that fetches nothing."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinomed.adapters.evaluation import label_errors
from dinomed.adapters.evaluation.label_errors import RANKED_COLUMNS
from dinomed.apps import cli
from dinomed.apps.pages.audit import build_audit_page, describe_pair
from dinomed.datasets.manifest import build_manifest, read_manifest, write_manifest
from dinomed.datasets.scan.scan import scan
from dinomed.datasets.tables import read_csv
from dinomed.pretrain.curation.audit.audit import Audit, LeakedPair
from dinomed.pretrain.curation.audit.training_index import write_training_index

EXACT = ["--set", "near=false", "--quiet"]
FAST = ["--set", "descriptor.fit_images=16", "--set", "candidates=2", "--quiet"]


def dinomed(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main([*map(str, arguments)])
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.parquet, b.parquet (one image of a.parquet mirrored, one as it is), clean.parquet, split.parquet (all)."""
    root = tmp_path_factory.mktemp("audit")
    rng = np.random.default_rng(0)
    drawn = [np.kron(rng.integers(0, 256, (12, 16, 3)), np.ones((8, 8, 1))).astype(np.uint8) for _ in range(24)]
    folders = {
        "a": {f"a{n}.png": drawn[n] for n in range(10)},
        "b": {"mirrored.png": drawn[0][:, ::-1], "same.png": drawn[1], "own.png": drawn[10]},
        "clean": {f"c{n}.png": drawn[12 + n] for n in range(5)},
    }
    for name, images in folders.items():
        (root / name).mkdir()
        for file, pixels in images.items():
            Image.fromarray(np.ascontiguousarray(pixels)).save(root / name / file)
        write_manifest(scan(root / name, make_split=False).manifest, root / f"{name}.parquet")
    both = scan(root, make_split=False).manifest
    splits = ["train" if name.startswith("a/") else "test" for name in both.column("image")]
    columns = {name: both.column(name) for name in both.columns} | {"split": splits}
    write_manifest(build_manifest(columns, both.root), root / "split.parquet")
    return root


def test_a_leak_exits_with_one_and_names_both_images(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = dinomed(capsys, "audit", sets / "a.parquet", sets / "b.parquet", "--json", *FAST)
    report = json.loads(out)
    assert (code, err) == (1, "")
    assert report["counts"] == {"exact": 1, "near": 1, "group": 0}
    assert report["leaked_test_images"] == 2
    pairs = {pair["kind"]: pair for pair in report["pairs"]}
    assert (pairs["exact"]["train"], pairs["exact"]["test"]) == ("a1.png", "same.png")
    assert (pairs["near"]["train"], pairs["near"]["test"]) == ("a0.png", "mirrored.png")
    assert pairs["exact"]["similarity"] == 1
    assert 0.3 < pairs["near"]["similarity"] <= 1.001
    assert report["notes"][-1] == "for research use only, not for diagnosis"


def test_a_leak_is_told_in_words_too(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = dinomed(capsys, "audit", sets / "a.parquet", sets / "b.parquet", *EXACT)
    assert code == 1
    assert f"LEAK: 1 of 3 images of {sets / 'b.parquet'} (exact 1, near 0, group 0)" in " ".join(out.split())
    assert "points: keypoints that align" in " ".join(out.split())
    assert "same.png" in out


def test_no_leak_exits_with_zero(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = dinomed(capsys, "audit", sets / "a.parquet", sets / "clean.parquet", *FAST)
    assert code == 0
    assert f"no leak found: 0 of 5 images of {sets / 'clean.parquet'}" in " ".join(out.split())
    assert re.search(r"pairs: near\W+0\b", out)  # numbers in place of an empty table of pairs
    assert "test image" not in out


def test_folders_will_do(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = dinomed(capsys, "audit", sets / "a", sets / "b", "--json", *EXACT)
    assert (code, json.loads(out)["counts"]["exact"]) == (1, 1)


@pytest.mark.parametrize("twice", [True, False])
def test_one_manifest_is_audited_between_its_splits(
    sets: Path, twice: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    manifests = [sets / "split.parquet"] * (2 if twice else 1)
    code, out, err = dinomed(capsys, "audit", *manifests, "--json", *(EXACT if twice else FAST))
    assert (code, err) == (1, "")
    report = json.loads(out)
    assert (report["train_images"], report["test_images"]) == (10, 8)
    assert report["train"].endswith("split.parquet (train)")
    assert {pair["test"] for pair in report["pairs"]} == {"b/same.png"} | (set() if twice else {"b/mirrored.png"})


def test_splits_can_be_named(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = [sets / "split.parquet", sets / "clean.parquet", "--train-split", "train"]
    code, out, _ = dinomed(capsys, "audit", *chosen, "--json", *EXACT)
    assert (code, json.loads(out)["train_images"]) == (0, 10)


def test_a_run_answers_for_itself(sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_training_index(tmp_path, read_manifest(sets / "a.parquet"))
    page = tmp_path / "page.html"
    code, out, _ = dinomed(capsys, "audit", tmp_path, sets / "b.parquet", "--json", "-o", page, "--quiet")
    report = json.loads(out)
    assert code == 1
    assert report["counts"] == {"exact": 1, "near": 1, "group": 0}
    assert [pair["train"] for pair in report["pairs"]] == [None, None]
    assert "only its hash is kept" in page.read_text()
    assert dinomed(capsys, "audit", tmp_path, sets / "clean.parquet", "--quiet")[0] == 0


def test_the_page_shows_the_pairs_and_fetches_nothing(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "out" / "page.html"
    dinomed(capsys, "audit", sets / "a.parquet", sets / "b.parquet", "-o", page, *FAST)
    text = page.read_text()
    assert text.count("<img") == 4
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]*)"', text))
    assert not re.search(r"https?://|<script|<link|url\(", text)
    assert "train: a0.png" in text
    assert "test: mirrored.png" in text
    assert "For research use only" in text
    assert "hash_radius: 24" in text
    assert list(page.parent.iterdir()) == [page]
    assert "dinomed curate --pool POOL --exclude TEST" in text


def test_the_page_without_a_leak_proposes_no_removal(sets: Path) -> None:
    manifest = read_manifest(sets / "a.parquet")
    page = build_audit_page(Audit([], 10, 5), None, manifest, ("a", "b"), "")
    assert "--exclude" not in page
    assert "dinomed audit TRAIN --labels COLUMN" in page


def test_names_from_outside_are_escaped_on_the_page(sets: Path) -> None:
    manifest = read_manifest(sets / "a.parquet")
    leak_audit = Audit([LeakedPair("group", None, 0, group="<b>x</b>")], 1, 1)
    page = build_audit_page(leak_audit, None, manifest, ("<i>", "y"), "")
    assert "<b>x" not in page
    assert "<i>" not in page
    assert "1 of 1 test images" in page


def test_likeness_in_words() -> None:
    assert (
        describe_pair(LeakedPair("near", 0, 0, 0.5, 3, 40)) == "similarity 0.50, 40 points align, 3 of 256 bits differ"
    )
    assert describe_pair(LeakedPair("group", 0, 0, group="p")) == "group p"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{sets}/a.parquet"], "compared with itself"),
        (["{sets}/a.parquet", "{sets}/a.parquet"], "compared with itself"),
        (["{sets}/split.parquet", "--train-split", "test", "--test-split", "test"], "the same 8 images"),
        (["{sets}/a.parquet", "{sets}/none.parquet"], "none.parquet does not exist"),
        (["{sets}/split.parquet", "--train-split", "trian"], "no image in split 'trian'"),
        (["{sets}/a.parquet", "{sets}/b.parquet", "-o", "page.txt"], "the page is an .html file"),
        (["{sets}/a.parquet", "{sets}/b.parquet", "--set", "min_similarity=2"], "min_similarity"),
        (["{sets}/a.parquet", "{sets}/b.parquet", "--set", "hash_radus=2"], "did you mean 'hash_radius'"),
        (["{run}", "{sets}/b.parquet"], "holds no seen.parquet; give the training manifest"),
        (["{run}"], "is a run; name the test images too"),
        (["{sets}/a.parquet", "{sets}/b.parquet", "--backbone", "nowhere"], "no known name and no existing path"),
    ],
)  # fmt: skip
def test_bad_requests_get_one_line(
    sets: Path, tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text("{}")
    code, out, err = dinomed(capsys, "audit", *(a.format(sets=sets, run=tmp_path) for a in arguments), "--quiet")
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


def test_doubtful_labels_are_listed_in_a_table_and_on_a_page(
    lesion_manifest: Path,
    tiny_backbone: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(label_errors, "WEAK_AUROC", 1.01)
    places = ("--table", tmp_path / "t.csv", "-o", tmp_path / "labels.html", "--cache", tmp_path / "cache")
    command = ("audit", lesion_manifest, "--labels", "label", "--backbone", tiny_backbone, "--quiet")
    code, out, err = dinomed(capsys, *command, "--folds", "3", "--json", *places)
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert (report["images"], report["folds"]) == (60, 3)
    assert report["suspects"] == len(report["ranked"]) > 0
    assert len(report["warnings"]) == 1  # forced by the threshold
    assert 0 <= report["out_of_fold"]["balanced_accuracy"] <= 1
    names, rows = read_csv(tmp_path / "t.csv")
    assert len(rows) == 60
    assert sorted(row[names.index("image")] for row in rows) == sorted(read_manifest(lesion_manifest).column("image"))
    doubts = [float(row[names.index("doubt")]) for row in rows]
    assert doubts == sorted(doubts, reverse=True)
    page = (tmp_path / "labels.html").read_text()
    assert page.count("<figure") == report["suspects"]
    assert "balanced accuracy of the out-of-fold predictions" in page
    assert "Warning: the out-of-fold predictions are weak" in page
    assert f"; predicted {report['ranked'][0]['predicted']}: " in page
    assert names == list(RANKED_COLUMNS)
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = dinomed(capsys, *command, "--folds", "3", "--cache", tmp_path / "cache")
    out = " ".join(out.split())
    assert re.search(r"\bpredicted\b", out)
    assert f"out-of-fold balanced accuracy {report['out_of_fold']['balanced_accuracy']:.2f}, AUROC" in out
    assert out.count("warning: the out-of-fold predictions are weak") == 1
    assert not re.search(r"(src|href)=.https?:", page)
    for words, message in [
        (("--folds", "99"), "--folds 99: the images have"),
        (("--labels", "lable"), "did you mean 'label'"),
        (("--table", tmp_path / "t.txt"), "its name ends in .csv or .json"),
        ((lesion_manifest,), "the labels of one set are examined"),
    ]:
        code, _, err = dinomed(capsys, *command, *words)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
    code, _, err = dinomed(capsys, "audit", lesion_manifest, "--labels", "label")
    assert (code, "name a backbone: --backbone" in err) == (2, True)


def test_labels_of_which_none_can_be_judged_give_a_warning(
    lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = read_manifest(lesion_manifest).take(list(range(6)))
    columns = {name: images.column(name) for name in images.columns}
    columns |= {"label": list("aaabbb"), "group": list("tttuuu")}
    write_manifest(build_manifest(columns, images.root), tmp_path / "two.parquet")
    command = ("audit", tmp_path / "two.parquet", "--labels", "label", "-b", tiny_backbone, "--folds", "2", "--quiet")
    code, out, err = dinomed(capsys, *command, "-o", tmp_path / "labels.html")
    assert (code, err) == (0, "")
    assert "out-of-fold predictions not measured warning: fewer than two classes" in " ".join(out.split())
    page = (tmp_path / "labels.html").read_text()
    assert "Warning: fewer than two classes could be judged, and 6 images were not" in page
    assert "None" not in page
