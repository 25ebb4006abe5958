"""The help of every command: fast, without heavy imports, with all its options; and completion in a shell."""

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from dinomed.apps import cli
from dinomed.notice import RESEARCH_USE

# Not in the list: pydantic, which Typer itself uses.
HEAVY = ["torch", "torchvision", "monai", "gradio", "sklearn", "pyarrow", "pandas", "numpy", "PIL", "faiss", "yaml"]
ROOT_OPTIONS = {"--help", "--version", "--debug", "--verbose", "--install-completion", "--show-completion"}


def every_command(table: dict, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, target in table.items():
        if isinstance(target, dict):
            yield from every_command(target, (*prefix, name))
        yield (*prefix, name)


def own_options(command: tuple[str, ...]) -> set[str]:
    """The long options that the function of a command asks for, and those that all have."""
    target: Any = cli.COMMANDS
    for name in command:
        target = target[name]
    if isinstance(target, dict):
        return {"--help"} if command else ROOT_OPTIONS
    module, _, function = target.partition(":")
    parameters = inspect.signature(getattr(import_module(f"dinomed.apps.commands.{module}"), function)).parameters
    declared = [note for parameter in parameters.values() for note in getattr(parameter.annotation, "__metadata__", ())]
    words = [word for note in declared for word in (note.default, *(note.param_decls or ()))]  # Typer's way: see Option
    return {"--help", *(name for word in words if str(word).startswith("--") for name in word.split("/"))}


HELP = """
import json, os, sys, time
from dinomed.apps import cli
imported = time.process_time()
for number, command in enumerate(json.loads(sys.argv[1])):
    sys.stdout.flush()
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    os.dup2(os.open(f"{number}.txt", os.O_WRONLY | os.O_CREAT), 1)
    code = None
    try:
        cli.main([*command, "--help"])
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    with open(f"{number}.json", "w") as file:
        json.dump([code, imported + time.process_time(), [*sys.modules]], file)
    os._exit(0)
"""
"""Prints the help of each command in a copy of a process that has imported the command line and nothing else."""


@pytest.fixture(scope="module")
def helps(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], tuple[int | None, float, list[str], str]]:
    """Exit code, seconds of the processor, imported modules and text of the help of each command."""
    folder, commands = tmp_path_factory.mktemp("helps"), [(), *every_command(cli.COMMANDS)]
    words = [sys.executable, "-c", HELP, json.dumps(commands)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(words, cwd=folder, env=environment, check=True, timeout=300)
    return {
        command: (*json.loads((folder / f"{number}.json").read_text()), (folder / f"{number}.txt").read_text())
        for number, command in enumerate(commands)
    }


@pytest.mark.parametrize("command", [(), *every_command(cli.COMMANDS)], ids=lambda c: " ".join(c) or "dinomed")
def test_help_needs_no_heavy_import_and_no_long_time(
    command: tuple[str, ...], helps: dict[tuple[str, ...], Any]
) -> None:
    code, seconds, imported, text = helps[command]
    assert code == 0
    assert not set(HEAVY).intersection(imported)
    assert RESEARCH_USE in " ".join(text.split()) or command != ()
    listed = text.partition("\nOptions:\n")[2]  # a line of the words above may begin with an option, too
    columns = re.findall(r"^ {2,6}(?:-\w, *)?(--[\w-]+(?: / --[\w-]+)?)", listed, re.MULTILINE)
    options = {name for column in columns for name in column.split(" / ")}
    assert options == own_options(command)
    assert seconds < 2.0  # of the processor; about 0.15 s, and a heavy import takes longer than this
    assert "Usage: dinomed" in text


def run_here(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


def test_every_command_is_in_one_section_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(name for names in cli.SECTIONS.values() for name in names) == sorted(cli.COMMANDS)
    _, out, _ = run_here("--help", capsys=capsys)
    shown = re.findall(r"^(\w+):\n((?:  \S.*\n|  {3,}\S.*\n)+)", out, re.MULTILINE)
    for title, lines in shown:
        if title in cli.SECTIONS:
            assert tuple(re.findall(r"^  (\w+) ", lines, re.MULTILINE)) == cli.SECTIONS[title]
    assert set(cli.SECTIONS) <= {title for title, _ in shown}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dinomed ev", ["evaluate"]),
        ("dinomed train s", ["segment"]),
        ("dinomed probe --few", ["--few-shot"]),
        ("dinomed probe runs/ssl --dat", ["--data"]),
        ("dinomed nothing ev", ["evaluate"]),  # no error in the line of the shell
    ],
)
def test_the_shell_completes_commands_and_options(
    line: str, expected: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_DINOMED_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    code, out, err = run_here(capsys=capsys)
    assert (code, out.split(), err) == (0, expected, "")
