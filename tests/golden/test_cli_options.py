"""The commands and options of the command line are those that were recorded before the restructuring, and named ones.

An option that is added on purpose is added to ``cli_options.json`` in the same commit; none disappears unnoticed.
"""

import json
from pathlib import Path
from typing import Any

import typer

from dinomed.apps import cli

RECORDED = Path(__file__).parent / "cli_options.json"


def list_options(command: Any, name: str = "") -> dict[str, list[str]]:
    """Command -> its options, sorted, for a command and all below it."""
    options = {
        name: sorted({text for parameter in command.params for text in (*parameter.opts, *parameter.secondary_opts)})
    }
    if hasattr(command, "list_commands"):
        for child in command.list_commands(None):
            options |= list_options(command.get_command(None, child), f"{name} {child}".strip())
    return options


def test_commands_and_options_are_the_recorded_ones() -> None:
    assert list_options(typer.main.get_command(cli.app)) == json.loads(RECORDED.read_text())
