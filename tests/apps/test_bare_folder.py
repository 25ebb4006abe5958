"""Commands that are given a folder of images with neither labels nor splits: the line names it, and what to do."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dinomed.apps import cli
from dinomed.datasets.manifest import read_manifest, write_manifest

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--set", "run.steps=1", "--set", "run.workers=0", "--set", "backbone.depth=1", "--set", "crops.num_local=0")
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            cli.main([str(a) for a in arguments])
        return int(end.value.code or 0), capsys.readouterr().err

    return call


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, lesion_manifest: Path) -> Path:
    """Its name has a space, as folders have."""
    folder = tmp_path_factory.mktemp("bare") / "my images"
    folder.mkdir()
    for image in sorted((lesion_manifest.parent / "lesions" / "images").iterdir())[:12]:
        shutil.copy(image, folder)
    return folder


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        (("probe", "{backbone}"), "has no labels in a column 'label'"),
        (("train", "classify", "-b", "{backbone}", "-o", "{out}"), "has no labels in a column 'label'"),
        (("train", "segment", "-b", "{backbone}", "-o", "{out}"), "has no masks"),
        (("train", "depth", "-b", "{backbone}", "-o", "{out}"), "has no depth maps in a column 'depth'"),
    ],
)
def test_the_folder_and_the_remedy_are_named(
    command: tuple[str, ...], missing: str, bare: Path, tiny_backbone: Path, tmp_path: Path, run: Run
) -> None:
    words = [word.format(backbone=tiny_backbone, out=tmp_path / "out") for word in command]
    code, err = run(*words, "--data", bare)
    assert code == 2
    line = err.splitlines()[-1]
    assert f"folder {bare} {missing}" in line
    assert f"dinomed scan '{bare}' --labels FILE.csv -o M.parquet, and give M.parquet" in line


def test_the_remedy_is_one(bare: Path, tiny_backbone: Path, tmp_path: Path, run: Run) -> None:
    """The command of the message, with a CSV in the place of FILE.csv, makes what was asked for."""
    rows = [f"{path.name},{'ab'[i % 2]}\n" for i, path in enumerate(sorted(bare.iterdir()))]
    (tmp_path / "labels.csv").write_text("image,label\n" + "".join(rows))
    made = tmp_path / "M.parquet"
    assert run("scan", bare, "--labels", tmp_path / "labels.csv", "-o", made, "--quiet")[0] == 0
    code, err = run("probe", tiny_backbone, "--data", made, "--quiet")
    assert "has no labels" not in err
    assert code == 0, err


def test_a_message_about_a_manifest_contains_its_path(
    lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path, run: Run
) -> None:
    manifest = read_manifest(lesion_manifest)
    path, kept = tmp_path / "derm.parquet", [name for name in manifest.columns if name != "split"]
    write_manifest(type(manifest)(manifest.table.select(kept), manifest.root), path)
    code, err = run("probe", tiny_backbone, "--data", path)
    assert code == 2
    assert err.splitlines()[-1] == (
        f"error: {path} has no splits; scan makes them, by group: dinomed scan {read_manifest(path).root} -o M.parquet"
    )


def test_pretraining_without_labels_reports_that_online_knn_is_disabled(bare: Path, tmp_path: Path, run: Run) -> None:
    config = ROOT / "configs" / "pretrain" / "vit_tiny_cpu.yaml"
    common = ("pretrain", config, "--data", bare, "--device", "cpu", *TINY)
    code, err = run(*common, "-o", tmp_path / "a", "--set", "run.batch_size=4", "--set", "run.patience=3")
    assert code == 0, err
    text = " ".join(err.split())
    assert f"online k-NN is disabled: folder {bare} has no labels" in text
    assert "run.patience has no effect because online k-NN is disabled" in text
    code, err = run(*common, "-o", tmp_path / "b")
    assert code == 2
    assert f"folder {bare} has 11 training images, fewer than a batch of 64" in err
