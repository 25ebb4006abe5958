"""Examples of the commands: two for each command and group, with options that exist."""

import shlex
from pathlib import Path

import pytest

from dinomed.apps import cli
from dinomed.apps.examples import EXAMPLES


def names_of_commands(table: dict, prefix: str = "") -> list[str]:
    names = [prefix.strip()]
    for name, target in table.items():
        names += names_of_commands(target, f"{prefix}{name} ") if isinstance(target, dict) else [f"{prefix}{name}"]
    return names


def test_every_command_has_two_examples_of_itself() -> None:
    assert sorted(EXAMPLES) == sorted(names_of_commands(cli.COMMANDS))
    for command, lines in EXAMPLES.items():
        assert len(set(lines)) == 2
        assert [line for line in lines if not f"{line} ".startswith(f"dinomed {command}".strip() + " ")] == []


@pytest.mark.parametrize("command", EXAMPLES, ids=lambda command: command or "dinomed")
def test_an_example_is_accepted_and_shown(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    group = cli.find_command(command.split())
    with group.make_context(f"dinomed {command}".strip(), ["x"], resilient_parsing=True) as context:
        text = group.get_help(context)
    for line in EXAMPLES[command]:
        parse(line)
        assert f"\n    {line}" in text


def parse(line: str) -> None:
    """Read the words of a line as its command does, without a run of it."""
    words = shlex.split(line)[1:]
    depth = 2 if isinstance(cli.COMMANDS[words[0]], dict) else 1
    with cli.find_command(words).make_context(" ".join(words[:depth]), words[depth:]):
        pass


def test_a_wrong_option_is_no_example() -> None:
    with pytest.raises(Exception, match="--dat"):
        parse("dinomed probe runs/ssl --dat data.parquet")


@pytest.mark.parametrize(
    "line",
    [line for name, lines in EXAMPLES.items() if name.startswith("config") for line in lines if "runs/" not in line],
)
def test_the_names_in_examples_of_config_exist(line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.invoke(shlex.split(line)[1:]) in (0, None)
