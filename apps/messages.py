"""Failures and messages in the words of the command line.

The code below writes an argument as Python does, between backticks: ``add `overwrite=True` ``. A person who typed a
command reads the option of that command in its place: ``add --overwrite``.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dinomed.errors import DinomedError, printable, system_reason
from dinomed.launched import launched_rank
from dinomed.log import logger

_ARGUMENT = re.compile(r"`([a-z]\w*)(?:=([^`]*))?`")


_OPTIONS_OF_OTHER_COMMANDS = {"settings": "--set"}


printed_reports: list[bool] = []
"""Not empty if the command printed its report with --json: a failure after that prints no second object."""


def name_options(message: str, options: Mapping[str, str]) -> str:
    """Replace each argument in backticks by its option.

    Args:
        message: text for a person.
        options: argument -> option of the command; an argument of another command has the name with hyphens, and
            `settings` is always ``--set``.

    >>> name_options("out.csv exists; add `overwrite=True` to replace it", {})
    'out.csv exists; add --overwrite to replace it'
    >>> name_options("`executor='tree'` is unknown", {"executor": "--engine"})
    "--engine 'tree' is unknown"
    >>> name_options("scan with `label_maps=True` and train with `settings=['kind=multiclass']`", {})
    'scan with --label-maps and train with --set kind=multiclass'
    """

    def option(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        words = options.get(name) or _OPTIONS_OF_OTHER_COMMANDS.get(name) or "--" + name.replace("_", "-")
        if value is None or value == "True":
            return words
        plain = value[2:-2] if value.startswith("['") else value
        return f"{words} {plain}"

    return _ARGUMENT.sub(option, message)


def option_names(command: Any) -> dict[str, str]:
    """Return argument -> longest option of a command; for a positional argument, its name in capitals."""
    return {
        parameter.name: max(parameter.opts, key=len)
        if parameter.param_type_name == "option"
        else parameter.name.upper()
        for parameter in command.params
    }


@contextmanager
def options_in_messages(options: Mapping[str, str]) -> Iterator[None]:
    """Show notes and warnings with the options of a command, as long as the context is open."""

    def translate(record: logging.LogRecord) -> bool:
        record.msg, record.args = name_options(record.getMessage(), options), ()
        return True

    logger.addFilter(translate)
    try:
        yield
    finally:
        logger.removeFilter(translate)


def explain(error: Exception, options: Mapping[str, str]) -> tuple[str, int]:
    """Return one line about an error, and the exit code; an empty line where another process prints it."""
    if isinstance(error, DinomedError):
        # all processes of a training run raise the same error; the first one prints it
        hidden = error.exit_code == 2 and launched_rank() != 0
        return "" if hidden else f"error: {printable(name_options(str(error), options))}", error.exit_code
    if type(error).__name__ == "NoArgsIsHelpError":  # `dinomed train` without a task prints its help
        return str(error), 2
    if hasattr(error, "format_message"):  # Typer's own errors (their base class moved between its versions)
        context = getattr(error, "ctx", None)
        see = "" if context is None else f" (see: {context.command_path} --help)"
        return f"error: {printable(error.format_message())}{see}", getattr(error, "exit_code", 2)
    if isinstance(error, OSError):  # a full disk, missing permission or a removed file is not a bug
        return f"error: {_os_error(error)}", 1
    if (size := _too_large(error)) is not None:
        return f"error: not enough memory{size}; use a smaller batch, smaller images or a smaller model", 1
    text = printable(f"{type(error).__name__}: {error}")
    return f"internal error: {text}; please report it with the output of the same command with --debug added", 1


def _too_large(error: Exception) -> str | None:
    """Return the size that could not be allocated (or an empty text) for an out-of-memory error, else None.

    >>> _too_large(RuntimeError("can't allocate memory: you tried to allocate 4000 bytes. Error code 12"))
    ' (4000 bytes)'
    """
    text = str(error)
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not known and not re.search(r"can't allocate memory|not enough memory|[Oo]ut of memory", text):
        return None
    size = re.search(r"llocate ([\d.]+ (?:bytes|[KMGTPE]iB))", text)
    return f" ({size[1]})" if size else ""


def _os_error(error: OSError) -> str:
    """Return the message of the system as one line, with the names of the files if it has them.

    >>> _os_error(PermissionError(13, "Permission denied", "out/log.jsonl"))
    'out/log.jsonl: Permission denied (--debug shows where)'
    """
    names = " -> ".join(
        os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)
    )
    reason = system_reason(error)
    return f"{names + ': ' if names else ''}{reason} (--debug shows where)".replace("\n", " ")
