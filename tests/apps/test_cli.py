"""The command line itself: one-line errors, exit codes, signals."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
from typer import Option

from dinomed.apps import cli
from dinomed.errors import DinomedError, UsageError
from dinomed.log import logger


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dinomed", *arguments],
        capture_output=True, text=True, timeout=300, env={**os.environ, **environment},
    )  # fmt: skip


def run_here(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


def test_every_command_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run_here("--help", capsys=capsys)
    for name in cli.COMMANDS:
        assert f"\n  {name} " in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_here("--version", capsys=capsys)
    assert (code, out.split()[0]) == (0, "dinomed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrane"], "did you mean 'pretrain'?"),
        (["demo", "segmnt"], "did you mean 'segment'?"),
        (["pretrain", "--dat", "x"], "--data"),
        (["pretrain"], "config"),
        (["pretrain", "x.yaml", "--data", "d", "-o", "o", "--seed", "many"], "--seed"),
        (["pretrain", "x.yaml", "--data", "d", "-o", "o"], "x.yaml does not exist"),
    ],
)
def test_a_wrong_request_gives_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run_here(*arguments, capsys=capsys)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "expected_code", "message"),
    [
        (["usage"], 2, "give a folder"),
        (["failure"], 1, "disk is full"),
        (["full"], 1, "out/log.jsonl: No space left on device"),
        (["bug"], 1, "internal error: KeyError: 'x'"),
        (["probe", "b", "--data", "d", "--sed", "1"], 2, "--sed"),
        (["probe"], 2, "see: dinomed probe --help"),
        (["probe", "b", "--data", ""], 2, "an empty value for --data"),
        (["prob"], 2, "did you mean 'probe'"),
    ],
)
def test_a_failure_prints_one_line_and_with_json_one_object_too(
    failing: None, arguments: list[str], expected_code: int, message: str, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    plain = run_here(*arguments, capsys=capsys)
    code, out, err = run_here(*arguments, "--json", capsys=capsys)
    assert (code, err) == (plain[0], plain[2])
    assert (code, plain[1]) == (expected_code, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert json.loads(out) == {"error": err.strip().removeprefix("error: ")}


def test_an_argument_is_named_as_python_does_and_as_the_command_line_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(settings: Annotated[str, Option("--set")] = "x") -> None:
        logger.warning("`settings='a=b'` is old")
        raise UsageError("add `overwrite=True`, or leave `settings` out (`dinomed scan FOLDER` shows why)")

    module = type(sys)("dinomed.apps.commands.naming")
    module.naming = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "naming", "naming:naming")
    with pytest.raises(UsageError, match=re.escape("add `overwrite=True`, or leave `settings` out")):
        cli.invoke(["naming"])
    assert "`settings='a=b'`" in capsys.readouterr().err
    _, _, err = run_here("naming", capsys=capsys)
    assert err.splitlines() == [
        "warning: --set 'a=b' is old",
        "error: add --overwrite, or leave --set out (`dinomed scan FOLDER` shows why)",
    ]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that raise what their name says."""

    def raiser(error: BaseException):
        def command(json: bool = False) -> None:
            raise error

        return command

    errors: dict[str, BaseException] = {
        "usage": UsageError("give a folder"),
        "failure": DinomedError("disk is full"),
        "bug": KeyError("x"),
        "full": OSError(errno.ENOSPC, "No space left on device", "out/log.jsonl"),
        "vanished": FileNotFoundError(errno.ENOENT, "No such file or directory", "a", None, "b"),
        "nameless": ConnectionError("the other side\nhung up"),
        "interrupt": KeyboardInterrupt(),
        "stopped": SystemExit(143),
    }
    module = type(sys)("dinomed.apps.commands.failing")
    for name, error in errors.items():
        setattr(module, name, raiser(error))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in errors:
        monkeypatch.setitem(cli.COMMANDS, name, f"failing:{name}")


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("usage", 2, "error: give a folder\n"),
        ("failure", 1, "error: disk is full\n"),
        ("full", 1, "error: out/log.jsonl: No space left on device (--debug shows where)\n"),
        ("vanished", 1, "error: a -> b: No such file or directory (--debug shows where)\n"),
        ("nameless", 1, "error: the other side hung up (--debug shows where)\n"),
        ("interrupt", 130, ""),
        ("stopped", 143, ""),
    ],
)
def test_what_a_command_raises_becomes_an_exit_code(
    failing: None, name: str, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(name, capsys=capsys) == (code, "", message)


def test_a_bug_is_reported_without_traceback_unless_debug(
    failing: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = run_here("bug", capsys=capsys)
    assert code == 1
    assert err.startswith("internal error: KeyError")
    assert "--debug" in err
    assert "Traceback" not in err
    with pytest.raises(KeyError):
        cli.main(["bug", "--debug"])
    with pytest.raises(OSError, match="No space left"):
        cli.main(["full", "--debug"])
    monkeypatch.setenv("DINOMED_DEBUG", "1")
    with pytest.raises(KeyError):
        cli.main(["bug"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("place", ["command", "finaliser", "finaliser at the end"])
def test_a_signal_ends_a_command_quietly(place: str, number: int, code: int) -> None:
    """Python ignores an exception that is raised in a finaliser."""
    wait, rest = "print('started', flush=True), time.sleep(2)", "None" if "end" in place else "time.sleep(60)"
    script = (
        "import sys, time, types\n"
        "from dinomed.apps import cli\n"
        f"finalised = type('', (), {{'__del__': lambda self: ({wait})}})\n"
        "module = types.ModuleType('dinomed.apps.commands.long')\n"
        f"module.run = lambda: ({wait if place == 'command' else 'finalised()'}, {rest})[1]\n"
        "sys.modules[module.__name__] = module\n"
        "cli.COMMANDS['long'] = 'long:run'\n"
        "cli.main(['long'])"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (code, "")


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m dinomed --help | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
    assert done.stderr == ""


def test_output_is_utf_8_whatever_the_locale() -> None:
    script = "from dinomed.apps import cli; cli._run = lambda *_: print('Größe × µm') or 0; cli.main([])"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, timeout=300, env={**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.stdout.decode("utf-8").strip() == "Größe × µm"


def test_pretrain_dry_run_prints_settings_that_read_back(
    tmp_path: Path, lesion_manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("run: {steps: 7}\n")
    options = ["--data", str(lesion_manifest), "-o", "o", "--dry-run"]
    command = ["pretrain", str(config), *options, "--set", "run.batch_size=3", "--seed", "5"]
    _, out, _ = run_here(*command, "--json", capsys=capsys)
    report = json.loads(out)
    assert report["estimate"]["backbone_parameters"] > 21e6
    settings = report["config"]["run"]
    assert (settings["steps"], settings["batch_size"], settings["seed"]) == (7, 3, 5)
    _, text, _ = run_here(*command, capsys=capsys)
    config.write_text(text)
    _, again, _ = run_here("pretrain", str(config), *options, capsys=capsys)
    assert again.split("# rough estimate")[0] == text.split("# rough estimate")[0]
    assert "# rough estimate" in text


def test_an_unknown_setting_is_named_with_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("run: {stepz: 7}\n")
    code, _, err = run_here("pretrain", str(config), "--data", "d", "-o", "o", capsys=capsys)
    assert code == 2
    assert "run.stepz" in err
    assert "'steps'" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scan", "x", "-o", ""], "an empty value for -o"),
        (["scan", "x", "--output="], "an empty value for --output"),
        (["scan", "", "-o", "m.parquet"], "an empty value; give one"),
    ],
)
def test_an_empty_value_is_not_the_current_folder(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run_here(*arguments, capsys=capsys)
    assert code == 2
    assert message in err


def test_what_cannot_be_allocated_is_no_bug(capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np
    import torch

    for allocate in (lambda: torch.empty(2**60), lambda: np.empty(2**57)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        assert cli._explain(caught.value, {}, as_json=False) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: not enough memory (")
        assert len(err.splitlines()) == 1
    assert cli._explain(RuntimeError("shapes differ"), {}, as_json=False) == 1
    assert capsys.readouterr().err.startswith("internal error")


def test_control_characters_in_a_file_name_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    cli._explain(DinomedError("a\0b\x1b[2J\nc ä.png: gone"), {}, as_json=False)
    assert capsys.readouterr().err == "error: a\\x00b\\x1b[2J\\nc ä.png: gone\n"


def test_verbose_shows_details_and_quiet_hides_notes(
    tiny_backbone: Path, lesion_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    command = ["features", str(lesion_manifest), "-b", str(tiny_backbone), "-o", str(tmp_path / "f.parquet")]
    shown = {}
    for option in ("--verbose", "--json", "--quiet"):
        monkeypatch.setenv("DINOMED_LOG", "info")  # as it is without the variable; restored after the test
        code, _, shown[option] = run_here(*command, "--overwrite", "--device", "cpu", option, capsys=capsys)
        assert code == 0
    assert "fingerprint" in shown["--verbose"]
    assert "fingerprint" not in shown["--json"]
    assert shown["--quiet"] == ""


@pytest.mark.parametrize(("level", "expected"), [("debug", "note detail"), ("WARNING", ""), ("loud", "note")])
def test_the_environment_sets_the_level_of_messages(level: str, expected: str) -> None:
    script = "from dinomed.log import logger; logger.info('note'); logger.debug('detail')"
    environment = {**os.environ, "DINOMED_LOG": level}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    if level == "loud":
        assert "DINOMED_LOG=loud is not a log level" in lines.pop(0)
    assert " ".join(lines) == expected
