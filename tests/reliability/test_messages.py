"""What a terminal shows: no escape sequence of a file or a class, one wording for a full disk, an early refusal."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dinomed.apps import cli
from dinomed.apps.output import build_table, emit
from dinomed.errors import MAX_MESSAGE, DinomedError, UsageError
from dinomed.io.output_folder import check_place
from dinomed.log import logger

Run = Callable[..., tuple[int, str, str]]
HOSTILE = "\x1b[2J\x1b]0;title\x07\x9b31m\u202egnp.exe"


def no_control(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


@pytest.mark.parametrize("error", [DinomedError, UsageError])
def test_a_long_value_does_not_hide_the_problem_and_the_remedy(error: type[DinomedError]) -> None:
    for count in (1, 1900):
        whole = f"column a is {'x' * count}; choose another one"
        assert str(error(whole)) == whole
    shown = str(error(f"column a is {'x' * 100_000}; choose another one"))
    assert shown.startswith("column a is xxx")
    assert " ... " in shown
    assert shown.endswith("xxx; choose another one")
    assert 0.8 * MAX_MESSAGE <= len(shown) <= MAX_MESSAGE


def test_tables_show_escape_sequences_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    table = build_table(("", HOSTILE, "[red]n[/red]"), [(HOSTILE, 1, "[bold]x")], title=f"[blue]{HOSTILE}")
    table.caption = f"[nonsense/] {HOSTILE}"
    emit({}, False, table)
    shown = capsys.readouterr().out
    assert no_control(shown)
    for text in ("\\x1b[2J", "\\x9b31m", "\\u202e", "[red]n[/red]", "[bold]x", "[blue]", "[nonsense/]"):
        assert text in "".join(shown.split("\n")).replace(" ", "") or text in shown, text


def test_json_holds_escape_sequences_as_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    emit({HOSTILE: [HOSTILE, "Ä 漢"]}, True)
    shown = capsys.readouterr().out
    assert no_control(shown)
    assert json.loads(shown) == {HOSTILE: [HOSTILE, "Ä 漢"]}
    assert "Ä 漢" in shown


def test_messages_show_escape_sequences_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    logger.warning(f"{HOSTILE}.png: damaged\nsecond line")
    shown = capsys.readouterr().err
    assert no_control(shown)
    assert "\\x1b[2J" in shown
    assert shown.count("\n") == 2


def test_a_command_shows_the_escape_sequences_of_a_folder_as_text(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "\x1b[31mred"
    folder.mkdir()
    (folder / "\x1b[2J.png").write_bytes(b"no image")
    code, out, err = run("scan", folder, "-o", tmp_path / "m.parquet")
    assert code != 0
    assert no_control(out)
    assert no_control(err)


class Unwritable:
    """`os.access` on a disk that is mounted read-only; permissions do not bind the user of a test container."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.real_access = folder, os.access

    def __call__(self, path: str | Path, mode: int) -> bool:
        return Path(path) != self.folder and self.real_access(path, mode)


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "cls", "--data", "m.parquet"),
        ("train", "classify", "-b", "ssl", "--data", "m.parquet"),
        ("search", "images", "--index", "idx"),
        ("curate", "--pool", "images"),
        ("audit", "a.parquet", "b.parquet"),
        ("probe", "ssl", "--data", "m.parquet"),
        ("quickstart",),
        ("pretrain", "vit_tiny_cpu", "--data", "images"),
        ("scan", "images"),
        ("predict", "cls", "images"),
        ("index", "m.parquet", "-b", "ssl"),
        ("features", "images", "-b", "ssl"),
        ("export", "ssl", "--format", "timm"),
        ("distill", "vit_tiny_cpu", "--teacher", "run", "--data", "images"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, words: tuple[str, ...]
) -> None:
    """The inputs do not exist: their error would come first if the output were looked at later."""
    monkeypatch.setattr("dinomed.io.output_folder.os.access", Unwritable(tmp_path))
    code, _, err = run(*words, "-o", tmp_path / "new" / "out")
    assert code == 1
    assert err == f"error: output folder {tmp_path} is not writable; choose another place, or change its permissions\n"
    assert list(tmp_path.iterdir()) == []


def test_the_early_refusal_imports_no_torch() -> None:
    code = (
        "import os, sys; from dinomed.apps import cli; os.access = lambda *_: False\n"
        "try: cli.main(['evaluate', 'a', '--data', 'b', '-o', 'c'])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "1 False\n", done.stderr


def test_a_place_that_can_be_written_passes(tmp_path: Path) -> None:
    check_place(tmp_path / "a" / "b")
    check_place(Path("relative") / "place")
    (tmp_path / "file").touch()
    check_place(tmp_path / "file")


def test_a_full_disk_has_the_words_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from dinomed.features.cache import FeatureKey, write_shard
    from dinomed.io.artifacts import ArtifactFolder

    def full(*_: object, **__: object) -> None:
        raise OSError("8832 requested and 992 written")  # of NumPy

    monkeypatch.setattr("numpy.save", full)
    key = FeatureKey(backbone="b", images="i", count=5, blocks=(0,), patches=False, shard_size=50)
    with pytest.raises(DinomedError, match=f"^cannot write .*: {os.strerror(28)}$"):
        write_shard(ArtifactFolder(tmp_path), key, 0, {kind: np.ones((5, 4), np.float32) for kind in key.kinds})


FAILING = {  # command -> a request that fails after the options were read: an input does not exist
    "quickstart": ("--images", "none", "-o", "new/deep/out"),
    "doctor": ("none",),
    "config show": ("pretrain", "none.yaml"),
    "config diff": ("pretrain", "none.yaml", "none.yaml"),
    "scan": ("\x1bnone", "-o", "new/deep/out.parquet"),
    "curate": ("--pool", "none", "-o", "new/deep/out.parquet"),
    "audit": ("none.parquet", "none.parquet", "-o", "new/deep/out.html"),
    "pretrain": ("none", "--data", "none.parquet", "-o", "new/deep/out"),
    "distill": ("none", "--teacher", "none", "--data", "none.parquet", "-o", "new/deep/out"),
    "frames": ("none.mp4", "-o", "new/deep/out"),
    "slices": ("none.nii.gz", "-o", "new/deep/out"),
    "features": ("none", "-b", "none", "-o", "new/deep/out.parquet"),
    "probe": ("none", "--data", "none.parquet", "--few-shot", "1", "-o", "new/deep/out"),
    "train classify": ("-b", "none", "--data", "none.parquet", "-o", "new/deep/out"),
    "train segment": ("-b", "none", "--data", "none.parquet", "-o", "new/deep/out"),
    "train depth": ("-b", "none", "--data", "none.parquet", "-o", "new/deep/out"),
    "evaluate": ("none", "--data", "none.parquet", "-o", "new/deep/out"),
    "predict": ("none", "none.parquet", "-o", "new/deep/out"),
    "index": ("none.parquet", "-b", "none", "-o", "new/deep/out"),
    "search": ("none.png", "--index", "none", "-o", "new/deep/out"),
    "show pca": ("none.png", "-b", "none", "-o", "new/deep/out.png"),
    "show attention": ("none.png", "-b", "none", "-o", "new/deep/out.png"),
    "show match": ("none.png", "none.png", "-b", "none", "-o", "new/deep/out.png"),
    "show map": ("none.parquet", "-b", "none", "-o", "new/deep/out.html"),
    "show similarity": ("none.png", "none.png", "-b", "none", "-o", "new/deep/out.png"),
    "export": ("none", "--format", "safetensors", "-o", "new/deep/out"),
}  # fmt: skip


def has_json(command: str) -> bool:
    return any("--json" in parameter.opts for parameter in cli.find_command(command.split()).params)


def test_the_failing_requests_are_those_of_all_commands_with_json() -> None:
    names = [
        f"{name} {part}".strip()
        for name, target in cli.COMMANDS.items()
        for part in (target if isinstance(target, dict) else [""])
    ]
    assert {name for name in names if has_json(name)} - {"models"} == FAILING.keys()  # `models` reads nothing


@pytest.mark.parametrize("command", FAILING)
def test_json_reports_every_failure_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*command.split(), *FAILING[command], "--json")
    assert code in (1, 2), err
    (line,) = err.splitlines()
    assert line == f"error: {json.loads(out)['error']}"
    assert list(tmp_path.iterdir()) == []


def test_a_message_with_a_huge_value_keeps_the_problem_and_the_remedy() -> None:
    message = str(DinomedError(f"f.json: width={'9' * 5000} is too large; train again"))
    assert len(message) < 2000
    assert message.startswith("f.json: width=999")
    assert message.endswith("999 is too large; train again")
