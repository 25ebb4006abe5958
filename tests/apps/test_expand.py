"""A dataclass of options is each of them to Typer, and one argument to the command."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer

from dinomed.apps.expand import expand


@dataclass(frozen=True)
class Serving:
    host: Annotated[str, typer.Option("--host", help="where")]
    port: Annotated[int | None, typer.Option("--port", "-p")] = None
    loud: Annotated[bool, typer.Option("--loud")] = False


def call(*arguments: str) -> list[object]:
    expanded: list[object] = []

    @expand
    def command(name: Annotated[str, typer.Argument()], serving: Serving, times: int = 2) -> None:
        """What it does."""
        expanded.extend([name, serving, times])

    app = typer.Typer()
    app.command()(command)
    typer.main.get_command(app).main(list(arguments), standalone_mode=False)
    return expanded


def test_options_of_the_dataclass_are_options_of_the_command() -> None:
    assert call("a", "--host", "h") == ["a", Serving("h"), 2]
    assert call("--loud", "-p", "7", "a", "--times", "3", "--host", "h") == ["a", Serving("h", 7, True), 3]


def test_what_is_required_or_of_a_type_still_is() -> None:
    with pytest.raises(Exception, match="host"):
        call("a")
    with pytest.raises(Exception, match="integer"):
        call("a", "--host", "h", "--port", "x")
