"""Reference of the command line, made from its Typer commands."""

import inspect
from collections.abc import Iterator
from typing import Any, get_args

import typer

from dinomed.apps.cli import SECTIONS, app
from dinomed.apps.examples import EXAMPLES

_KINDS = {"str": "text", "Path": "path", "int": "integer", "float": "number"}


def commands_page() -> str:
    """Return the page with all commands, their arguments and their options."""
    lines = ["# Commands", "", "`--help` of each command prints the same.", ""]
    lines += _command(typer.main.get_command(app), "dinomed")
    return "\n".join(lines) + "\n"


def _command(command: Any, name: str) -> Iterator[str]:
    yield from (f"## {name}", "", inspect.cleandoc(command.help or ""), "")
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name != "argument"]
    is_group = hasattr(command, "list_commands")
    words = [name, *(_argument_word(argument) for argument in arguments)]
    words += ["COMMAND"] if is_group else []
    yield from ("```", " ".join([*words, "[OPTIONS]"]), "```", "")
    for title, parameters in (("argument", arguments), ("option", options)):
        if parameters:
            yield from (f"| {title} | value | default | meaning |", "|---|---|---|---|")
            yield from (_row(parameter) for parameter in parameters)
            yield ""
    if command_examples := EXAMPLES.get(name.partition(" ")[2]):
        yield from ("Examples:", "", "```", *command_examples, "```", "")
    if name == "dinomed":
        yield from ("| for | commands |", "|---|---|")
        yield from (f"| {title} | {', '.join(map(_link, commands))} |" for title, commands in SECTIONS.items())
        yield ""
    if is_group:
        for child in command.list_commands(None):
            yield from _command(command.get_command(None, child), f"{name} {child}")


def _link(command: str) -> str:
    return f"[{command}](#dinomed-{command})"


def _argument_word(argument: Any) -> str:
    word = argument.name.upper() + ("..." if argument.nargs == -1 else "")
    return word if argument.required else f"[{word}]"


def _row(parameter: Any) -> str:
    is_argument = parameter.param_type_name == "argument"
    names = [parameter.name.upper()] if is_argument else [*parameter.opts, *parameter.secondary_opts]
    shown = ", ".join(f"`{name}`" for name in names)
    meaning = " ".join((parameter.help or "").split()).replace("|", "\\|")
    return f"| {shown} | {_value_text(parameter)} | {_default_text(parameter)} | {meaning} |"


def _value_text(parameter: Any) -> str:
    """Return the kind of value of a parameter; nothing for a flag."""
    if getattr(parameter, "is_flag", False):
        return ""
    kind = parameter.type_descriptor.annotation
    kinds = [item.__name__ for item in get_args(kind) or (kind,)]
    text = " or ".join(_KINDS.get(name, name) for name in kinds)
    low, high = getattr(parameter, "min", None), getattr(parameter, "max", None)
    text += "" if low is None else f" ≥ {low}"
    text += "" if high is None else f" ≤ {high}"
    return f"{text}, can be repeated" if parameter.multiple or parameter.nargs == -1 else text


def _default_text(parameter: Any) -> str:
    if parameter.required:
        return "required"
    default = parameter.default
    return "" if default in (None, False, ()) or callable(default) else f"`{default}`"
