"""A process that is killed at any write, rename or deletion: the same command again gives the whole result.

A kill is simulated in this process: before the n-th change of a file in the output folder an exception is raised, and
after it every further change is refused, as if the process were gone; nothing is cleaned up. `test_curate_killed.py`
and `test_trainer.py` use real signals.
"""

import builtins
import io
import json
import os
import re
import runpy
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from dinomed.apps import cli
from dinomed.datasets.synthetic.endoscopy import write_endoscopy
from dinomed.datasets.synthetic.lesions import write_lesions
from dinomed.io.output_folder import STAGE

QUICK = ("--set", "fit.epochs=2", "--set", "fit.min_steps=0")
RUN = ("--set", "run.batch_size=8", "--set", "run.workers=0", "--set", "run.checkpoint_every=1", "--set", "run.steps=2",
       "--set", "crops.num_local=0", "--set", "backbone.depth=1", "--device", "cpu")  # fmt: skip
COMMANDS: dict[str, tuple[str, ...]] = {
    "scan": ("scan", "{u}/lesions", "-o", "{o}/m.parquet"),
    "features": ("features", "{u}/derm.parquet", "-b", "{u}/ssl", "-o", "{o}/f.parquet"),
    "index": ("index", "{u}/derm.parquet", "-b", "{u}/ssl", "-o", "{o}/idx", "--cache", "{o}/cache"),
    "search": ("search", "{u}/derm.parquet", "--index", "{u}/idx", "-o", "{o}/s"),
    "evaluate": ("evaluate", "{u}/cls", "--data", "{u}/derm.parquet", "-o", "{o}/e", "--resamples", "10"),
    "predict": ("predict", "{u}/seg", "{u}/derm.parquet", "-o", "{o}/p"),
    "train": ("train", "classify", "-b", "{u}/ssl", "--data", "{u}/derm.parquet", "-o", "{o}/cls", "--cache",
              "{o}/cache", *QUICK),
    "audit": ("audit", "{u}/derm.parquet", "-o", "{o}/a.html", "--cache", "{o}/cache"),
    "curate": ("curate", "--pool", "{u}/derm.parquet", "-o", "{o}/c.parquet", "--set", "quality.min_short_side_px=32"),
    "pretrain": ("pretrain", "vit_tiny_cpu", "--data", "{u}/derm.parquet", "-o", "{o}/run", "--resume", *RUN),
    "folds": ("train", "classify", "-b", "{u}/ssl", "--data", "{u}/derm.parquet", "-o", "{o}/folds", "--cache",
              "{o}/cache", "--folds", "2", *QUICK),
    "probe": ("probe", "{u}/ssl", "--data", "{u}/derm.parquet", "--few-shot", "1,all", "-o", "{o}/few"),
    "export": ("export", "{u}/cls", "--format", "safetensors", "-o", "{o}/x"),
    "export bundle": ("export", "{u}/seg", "--format", "monai", "-o", "{o}/b"),
    "frames": ("frames", "{v}", "-o", "{o}/frames", "--fps", "5"),
    "predict videos": ("predict", "{u}/seg", "{v}", "-o", "{o}/pv"),
    "show": ("show", "pca", "{u}/derm.parquet", "-b", "{u}/ssl", "-o", "{o}/pca.html"),
    "show map": ("show", "map", "{u}/derm.parquet", "-b", "{u}/ssl", "-o", "{o}/map.html", "--cache", "{o}/cache",
                 "--method", "pca"),
    "scan videos": ("scan", "{i}/videos", "--videos", "--fps", "5", "-o", "{o}/m.parquet"),
    "scan coco": ("scan", "{i}/pictures", "--coco", "{i}/coco.json", "-o", "{o}/m.csv"),
    "slices": ("slices", "{i}/volumes", "-o", "{o}/s"),
    "predict volumes": ("predict", "{u}/seg", "{i}/slices/manifest.csv", "-o", "{o}/p", "--volumes"),
    "predict coco": ("predict", "{u}/seg", "{u}/derm.parquet", "-o", "{o}/p", "--coco"),
    "predict classes": ("predict", "{u}/cls", "{u}/derm.parquet", "-o", "{o}/p", "--unit", "group"),
    "audit labels": ("audit", "{u}/derm.parquet", "--labels", "label", "-b", "{u}/ssl", "-o", "{o}/a.html", "--table",
                     "{o}/t.csv", "--folds", "2", "--cache", "{o}/cache"),
    "probe segment": ("probe", "{u}/ssl", "--data", "{u}/derm.parquet", "--task", "segment", "--few-shot", "2,4",
                      "--seeds", "1", "-o", "{o}/few", "--cache", "{o}/cache", *QUICK),
    "distill": ("distill", "vit_tiny_cpu", "--teacher", "{u}/ssl/backbone", "--data", "{u}/derm.parquet", "-o",
                "{o}/run", "--resume", "--set", "distill.method=features", *RUN),
    "export onnx": ("export", "{u}/seg", "--format", "onnx", "-o", "{o}/x"),
    "export timm": ("export", "{u}/ssl", "--format", "timm", "-o", "{o}/x"),
    "export transformers": ("export", "{u}/ssl", "--format", "transformers", "-o", "{o}/x"),
}  # fmt: skip
PACKAGES = {  # command -> the packages of its extra
    "slices": ("nibabel",), "predict volumes": ("nibabel",), "scan coco": ("pycocotools",), "export timm": ("timm",),
    "predict coco": ("pycocotools",),
    "export onnx": ("onnx", "onnxruntime", "onnxscript"), "export transformers": ("transformers",),
    "export bundle": ("monai",),
}  # fmt: skip
DONE = "already|exists"  # the refusal of a command whose result was complete before the kill


def draw_videos(folder: Path) -> None:
    write_endoscopy(folder / "videos", videos=2, count=10, size=(48, 64))
    shutil.rmtree(folder / "videos" / "masks")


def write_volumes(folder: Path) -> None:
    corpus = runpy.run_path(str(Path(__file__).parent / "corpus" / "volumes.py"))
    (folder / "volumes").mkdir(parents=True)
    for name in ("a.nii", "c.nii.gz"):
        (folder / "volumes" / name).write_bytes(corpus["VOLUMES"][name]())


def write_slices(folder: Path) -> None:
    write_volumes(folder)
    assert call(["slices", str(folder / "volumes"), "-o", str(folder / "slices")]) == 0


def annotate(folder: Path) -> None:
    write_lesions(folder / "pictures", count=2, size=(36, 48), broken=0)
    images = sorted((folder / "pictures" / "images").glob("*"))
    outlines = [[[2, 2, 20, 3, 9, 14]], [[5, 5, 30, 5, 30, 12, 20, 12]]]
    data = {
        "images": [{"id": i, "file_name": path.name, "width": 48, "height": 36} for i, path in enumerate(images)],
        "categories": [{"id": 1, "name": "lesion"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "segmentation": outline} for i, outline in enumerate(outlines)
        ],
    }
    (folder / "coco.json").write_text(json.dumps(data))


INPUTS = {
    "scan videos": draw_videos, "scan coco": annotate, "slices": write_volumes, "predict volumes": write_slices
}  # fmt: skip


class Killed(BaseException):
    """The simulated end of the process."""


@contextmanager
def killed_at(number: int | None, folder: Path) -> Iterator[list[str]]:
    """Raise `Killed` before the change `number` (from 1) of a file in `folder`, and at every change after it.

    Yields:
        The changes so far.
    """
    changes: list[str] = []

    def refuse(name: str, path: Any) -> None:
        if not isinstance(path, str | os.PathLike) or not Path(os.path.abspath(path)).is_relative_to(folder):
            return
        changes.append(f"{name} {os.path.relpath(path, folder)}")
        if number is not None and len(changes) >= number:
            raise Killed

    def guarded(name: str, function: Callable[..., Any], place: int = 0) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            refuse(name, arguments[place])
            return function(*arguments, **options)

        return call

    def guarded_open(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if set(mode) & set("wax+"):
                refuse("open", file)
            return function(file, mode, *arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", guarded("replace", os.replace, 1))
        for name in ("unlink", "remove", "rmdir", "mkdir"):
            patch.setattr(os, name, guarded(name, getattr(os, name)))
        patch.setattr(shutil, "rmtree", guarded("rmtree", shutil.rmtree))
        patch.setattr(io, "open", guarded_open(io.open))
        patch.setattr(builtins, "open", guarded_open(builtins.open))
        yield changes


def call(words: list[str]) -> int:
    """Run a command; return its exit code."""
    with pytest.raises(SystemExit) as end:
        cli.main([*words, "--quiet"])
    return int(end.value.code or 0)


def snapshot(folder: Path) -> dict[str, Any]:
    """The content of all files, without times, locks, temporary files of the killed process, and TensorBoard; and the
    mark of an unfinished result."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() or path.name == STAGE]
    return {
        str(path.relative_to(folder)): content(path) if path.is_file() else None
        for path in files
        if path.suffix != ".lock"
        and not path.name.startswith((".lock", ".tmp-", "timings.jsonl"))
        and "tensorboard" not in path.parts
    }


def content(path: Path) -> Any:
    data = path.read_bytes()
    if path.suffix == ".ts":
        with ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist() if "/data/" in name}
    if path.suffix == ".safetensors":
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        notes = {name: timeless(json.loads(text)) if text[:1] == "{" else text
                 for name, text in header.pop("__metadata__", {}).items()}  # fmt: skip
        tensors = {name: data[8 + length :][slice(*header[name]["data_offsets"])] for name in sorted(header)}
        return notes, tensors
    if path.suffix in (".json", ".jsonl"):
        return [timeless(json.loads(part)) for part in (data.splitlines() if path.suffix == ".jsonl" else [data])]
    if path.suffix in (".html", ".md"):
        data = re.sub(rb"<h2>Time</h2>.*?</table>", b"", data, flags=re.DOTALL)  # measured times and their shares
        return re.sub(rb"\d{4}-\d\d-\d\d[T ][\d:+]+|[\d.,]+ s\b|<td[^>]*>[\d.]+</td>", b"", data)
    return data


TIMES = ("written", "seconds", "images_per_second", "energy", "sha256", "record_sha256", "bytes", "models/model.ts")
# the last four: of files with times, and the hash of a TorchScript archive, which is not the same twice


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMES and "second" not in key}
    return [timeless(item) for item in value] if isinstance(value, list) else value


Choose = Callable[[list[str]], Iterable[int]]  # the changes of the unbroken run -> numbers of those to be killed at


def every_change(changes: list[str]) -> Iterable[int]:
    return range(1, len(changes) + 1)


def some_changes(changes: list[str]) -> Iterable[int]:
    count = len(changes)
    return sorted({1, count // 3, 2 * count // 3, count - 1, count} - {0})


def check(command: str, user_folder: Path, folder: Path, choose: Choose, capsys: Any) -> None:
    """Kill a command at some of its changes, run it again, and compare with the unbroken result."""
    for package in PACKAGES.get(command, ()):
        pytest.importorskip(package)
    out, video, inputs = folder / "out", folder / "video.avi", folder / "in"
    if any("{v}" in word for word in COMMANDS[command]):
        write_endoscopy(folder / "drawn", count=10, size=(48, 64))[0].rename(video)
    if command in INPUTS:
        INPUTS[command](inputs)
    words = [word.format(u=user_folder, o=out, v=video, i=inputs) for word in COMMANDS[command]]
    out.mkdir()
    with killed_at(None, out) as changes:
        code = call(words)
    whole = snapshot(out)
    assert len(changes) > 1, "nothing is written, so nothing is tested"
    for number in choose(changes):
        shutil.rmtree(out)
        out.mkdir()
        with killed_at(number, out) as changes, pytest.raises((Killed, SystemExit)):
            cli.main([*words, "--quiet"])
        capsys.readouterr()
        again = call(words)
        message = capsys.readouterr().err
        assert again == code or (again == 2 and re.search(DONE, message)), (number, changes[number - 1], message)
        broken = snapshot(out)
        assert broken.keys() == whole.keys(), (number, changes[number - 1])
        for name in whole:
            assert broken[name] == whole[name], (number, changes[number - 1], name)


SHORT = ("scan", "features", "index", "evaluate", "slices", "scan videos", "scan coco")
LONG = ("predict volumes", "predict classes", "audit labels", "show map", "probe segment", "distill", "export onnx",
        "export timm", "export transformers")  # fmt: skip


@pytest.mark.parametrize("command", SHORT)
def test_killed_at_some_writes_the_result_is_the_same(
    user_folder: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check(command, user_folder, tmp_path, some_changes, capsys)


@pytest.mark.long
@pytest.mark.parametrize("command", LONG)
def test_killed_at_some_writes_the_result_of_slower_commands_is_the_same(
    user_folder: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check(command, user_folder, tmp_path, some_changes, capsys)


LAST_STEPS = {  # the change that makes the result valid or that a resume continues from -> how far after it to kill
    "features": ("replace f.parquet", (1, 3)),
    "predict": ("replace p/predictions.json", (1, 2)),
    "predict coco": ("replace p/coco_results.json", (1, 2, 3, 4)),
    "index": ("replace idx/index.safetensors", (1, 2)),
    "evaluate": ("replace e/metrics.json", (2,)),
    "train": ("replace cls/adapter.safetensors", (0, 1, 3)),
    "pretrain": ("replace run/checkpoints/step_00000001", (1, 9)),
}


@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=pytest.mark.long) if name == "pretrain" else name for name in LAST_STEPS]
)
def test_killed_beside_the_last_writes_nothing_is_left_over_or_left_out(
    user_folder: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, distances = LAST_STEPS[command]

    def choose(changes: list[str]) -> Iterable[int]:
        number = len(changes) - changes[::-1].index(change)  # the last one, from 1
        return [number + distance for distance in distances] + [len(changes) - 4] * (command == "pretrain")

    check(command, user_folder, tmp_path, choose, capsys)


@pytest.mark.long
@pytest.mark.skipif(
    "DINOMED_EXHAUSTIVE" not in os.environ,
    reason="takes half an hour: set DINOMED_EXHAUSTIVE=1",
)
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_every_write_the_result_is_the_same(
    user_folder: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check(command, user_folder, tmp_path, every_change, capsys)
