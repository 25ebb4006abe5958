"""Two processes with one output: the second is refused with one line, whatever the command."""

import importlib.util
import runpy
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dinomed.datasets.synthetic.endoscopy import write_endoscopy

Run = Callable[..., tuple[int, str, str]]

FOLDERS = {
    "evaluate": ("evaluate", "{u}/cls", "--data", "{u}/derm.parquet", "-o"),
    "search": ("search", "{u}/derm.parquet", "--index", "{u}/idx", "-o"),
    "predict": ("predict", "{u}/cls", "{u}/derm.parquet", "-o"),
    "index": ("index", "{u}/derm.parquet", "-b", "{u}/ssl", "-o"),
    "train": ("train", "classify", "-b", "{u}/ssl", "--data", "{u}/derm.parquet", "-o"),
    "export": ("export", "{u}/ssl", "--format", "safetensors", "-o"),
    "probe": ("probe", "{u}/ssl", "--data", "{u}/derm.parquet", "--few-shot", "1,all", "-o"),
    "pretrain": ("pretrain", "vit_tiny_cpu", "--data", "{u}/derm.parquet", "--set", "run.batch_size=8", "-o"),
    "folds": ("train", "classify", "-b", "{u}/ssl", "--data", "{u}/derm.parquet", "--folds", "2", "-o"),
    "frames": ("frames", "{i}/videos/SYN_0.avi", "-o"),
    "predict videos": ("predict", "{u}/seg", "{i}/videos", "-o"),
    "quickstart": ("quickstart", "--no-demo", "-o"),
    "distill": ("distill", "vit_tiny_cpu", "--teacher", "{u}/ssl/backbone", "--data", "{u}/derm.parquet", "--set",
                "distill.method=features", "--set", "run.batch_size=8", "-o"),
    "slices": ("slices", "{i}/volumes", "-o"),
}  # fmt: skip
FILES = {
    "scan": ("scan", "{u}/lesions", "-o", "m.parquet"),
    "audit": ("audit", "{u}/derm.parquet", "-o", "audit.html"),
    "audit labels": ("audit", "{u}/derm.parquet", "--labels", "label", "-b", "{u}/ssl", "-o", "audit.html"),
    "table of labels": ("audit", "{u}/derm.parquet", "--labels", "label", "-b", "{u}/ssl", "--table", "labels.csv"),
    "scan videos": ("scan", "{i}/videos", "--videos", "-o", "m.csv"),
    "show": ("show", "pca", "{u}/derm.parquet", "-b", "{u}/ssl", "-o", "pca.html"),
    "show map": ("show", "map", "{u}/derm.parquet", "-b", "{u}/ssl", "-o", "map.html"),
}
RESUMED_FILES = {  # the folder of the parts from which an interrupted call continues is in use
    "features": ("f.parts", ("features", "{u}/derm.parquet", "-b", "{u}/ssl", "-o", "f.parquet")),
    "curate": ("c.stages", ("curate", "--pool", "{u}/derm.parquet", "-o", "c.parquet")),
}


@contextmanager
def held(folder: Path, name: str) -> Iterator[None]:
    """Another process that holds a lock until the end of the block."""
    code = f"""
    import fcntl, sys
    file = open({str(folder / name)!r}, "a")
    fcntl.flock(file, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.read()
    """
    folder.mkdir(parents=True, exist_ok=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        yield
    finally:
        holder.communicate("")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders videos/ and, with nibabel, volumes/."""
    folder = tmp_path_factory.mktemp("inputs")
    write_endoscopy(folder / "videos", count=3, size=(48, 64))
    shutil.rmtree(folder / "videos" / "masks")
    (folder / "volumes").mkdir()
    if importlib.util.find_spec("nibabel"):
        corpus = runpy.run_path(str(Path(__file__).parent / "corpus" / "volumes.py"))
        (folder / "volumes" / "a.nii").write_bytes(corpus["VOLUMES"]["a.nii"]())
    return folder


@pytest.mark.parametrize("command", FOLDERS)
def test_a_folder_in_use_is_refused(user_folder: Path, inputs: Path, tmp_path: Path, run: Run, command: str) -> None:
    if command == "slices":
        pytest.importorskip("nibabel")
    out = tmp_path / "out"
    with held(out, ".lock"):
        code, _, err = run(*(word.format(u=user_folder, i=inputs) for word in FOLDERS[command]), out)
    assert (code, err.strip().splitlines()[-1]) == (
        1, f"error: {out} is in use by another process; wait, or use another folder"
    )  # fmt: skip
    assert [path.name for path in out.iterdir()] == [".lock"]


@pytest.mark.parametrize("command", FILES)
def test_a_file_in_use_is_refused(user_folder: Path, inputs: Path, tmp_path: Path, run: Run, command: str) -> None:
    *words, name = FILES[command]
    with held(tmp_path, f".{name}.lock"):
        code, _, err = run(*(word.format(u=user_folder, i=inputs) for word in words), tmp_path / name)
    assert code == 1
    assert f"error: {tmp_path / name} is in use by another process; wait, or use another" in err
    assert [path.name for path in tmp_path.iterdir()] == [f".{name}.lock"]


@pytest.mark.parametrize("command", RESUMED_FILES)
def test_a_file_whose_parts_are_in_use_is_refused(user_folder: Path, tmp_path: Path, run: Run, command: str) -> None:
    parts, (*words, name) = RESUMED_FILES[command]
    with held(tmp_path / parts, ".lock"):
        code, _, err = run(*(word.format(u=user_folder) for word in words), tmp_path / name)
    assert code == 1
    assert f"error: {tmp_path / parts} is in use by another process; wait, or use another" in err
    assert not (tmp_path / name).exists()


def test_scan_leaves_no_lock(user_folder: Path, tmp_path: Path, run: Run) -> None:
    assert run("scan", user_folder / "lesions", "-o", tmp_path / "m.parquet", "--quiet")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["m.parquet"]


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "{u}/cls", "--data", "{u}/none.parquet"),
        ("evaluate", "{u}/cls", "--data", "{u}/derm.parquet", "--by", "none"),
        ("train", "classify", "-b", "{u}/ssl", "--data", "{u}/derm.parquet", "--label", "none"),
        ("index", "{u}/derm.parquet", "-b", "{u}/ssl", "--whiten", "5000"),
        ("predict", "{u}/cls", "{u}/none.parquet"),
        ("search", "{u}/none.png", "--index", "{u}/idx"),
    ],
)
def test_a_refused_command_leaves_nothing(user_folder: Path, tmp_path: Path, run: Run, words: tuple[str, ...]) -> None:
    code, _, err = run(*(word.format(u=user_folder) for word in words), "-o", tmp_path / "out")
    assert code == 2, err
    assert not (tmp_path / "out").exists()
