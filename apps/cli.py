"""The command line: a table of commands, each imported when it is used.

`dinomed --help` must be fast, so this file and the command modules do not import torch; the bodies of the commands do.
`main` turns an exception of a command into one line on stderr and an exit code.
"""

import json
import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dinomed import __version__
from dinomed.apps.ending_signals import EndingSignals
from dinomed.apps.examples import examples_epilog
from dinomed.apps.messages import explain, option_names, options_in_messages, printed_reports
from dinomed.apps.options import Debug, Verbose
from dinomed.errors import UsageError, did_you_mean
from dinomed.notice import RESEARCH_USE

# name -> module in dinomed.apps.commands and its function; a mapping is a group. The order is that of typical work.
COMMANDS: dict[str, Any] = {
    "quickstart": "quickstart:quickstart",
    "doctor": "doctor:doctor",
    "models": "models:models",
    "config": {"schema": "config:schema", "show": "config:show", "diff": "config:diff"},
    "scan": "scan:scan",
    "frames": "frames:frames",
    "slices": "slices:slices",
    "curate": "curate:curate",
    "audit": "audit:audit",
    "pretrain": "pretrain:pretrain",
    "distill": "pretrain:distill",
    "features": "features:features",
    "probe": "probe:probe",
    "train": {"classify": "train:classify", "segment": "train:segment", "depth": "train:depth"},
    "evaluate": "evaluate:evaluate",
    "predict": "predict:predict",
    "index": "index:index",
    "search": "search:search",
    "show": {
        "pca": "show:pca",
        "attention": "show:attention",
        "match": "show:match",
        "map": "show:map_images",
        "similarity": "show:similarity",
    },
    "export": "export:export",
    "demo": {
        "segment": "demo:segment",
        "classify": "demo:classify",
        "retrieve": "demo:retrieve",
        "all": "demo:every",
    },
}
SECTIONS = {
    "Start": ("quickstart", "doctor", "models", "config"),
    "Data": ("scan", "frames", "slices", "curate", "audit"),
    "Pretrain": ("pretrain", "distill"),
    "Adapt": ("features", "probe", "train", "evaluate"),
    "Use": ("predict", "index", "search", "show", "export", "demo"),
}
"""Heading in the help -> its commands."""
GROUP_HELP = {
    "config": "Show settings: their JSON Schema, a resolved config, the difference of two.",
    "train": "Train a head on the features of a frozen backbone.",
    "demo": "Show adapters and indexes in the browser.",
    "show": "Show what the features of a backbone hold: colours, attention, matches, similarity, maps.",
}
SETTINGS: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


class _LazyGroup(TyperGroup):
    """A group whose commands are imported when they are used."""

    targets: dict[str, Any] = COMMANDS
    prefix = ""
    """Words of the group before its commands, such as ``train``, with a space."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.targets)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.targets:
            if ctx is not None and ctx.resilient_parsing:  # completion of a line in a shell
                return None
            raise UsageError(f"no command {cmd_name!r}{did_you_mean(cmd_name, self.list_commands(ctx))}")
        return _build(f"{self.prefix}{cmd_name}", self.targets[cmd_name])


class _RootGroup(_LazyGroup):
    """All commands; the help lists them by section."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, self.targets))
        for title, names in SECTIONS.items():
            commands = {name: self.get_command(ctx, name) for name in names}
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (name.ljust(width), command.get_short_help_str(formatter.width - 6 - width))
                        for name, command in commands.items()
                    ]
                )


class _TrainGroup(_LazyGroup):
    """The commands of all tasks; the task of a plug-in has a command with the shared options."""

    targets, prefix = COMMANDS["train"], "train "

    def list_commands(self, ctx: Any) -> list[str]:
        from dinomed.adapters.task import task_names

        return task_names()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in self.targets or cmd_name not in self.list_commands(ctx):
            return super().get_command(ctx, cmd_name)
        return _build_command(f"train {cmd_name}", import_module("dinomed.apps.commands.train").train_task(cmd_name))


def _build(words: str, target: Any) -> Any:
    """Build a command from a function of a command module, or a group from a mapping."""
    if isinstance(target, dict):
        return _build_group(words, target)
    module, _, function = target.partition(":")
    return _build_command(words, getattr(import_module(f"dinomed.apps.commands.{module}"), function))


def _build_command(words: str, function: Any) -> Any:
    single = typer.Typer(**SETTINGS)
    single.command(words.split()[-1], epilog=examples_epilog(words))(function)
    return typer.main.get_command(single)


def _build_group(name: str, targets: dict[str, Any]) -> Any:
    members = {"targets": targets, "prefix": f"{name} "}
    group = typer.Typer(
        name=name,
        cls=_TrainGroup if name == "train" else type(f"{name.title()}Group", (_LazyGroup,), members),
        no_args_is_help=True,
        epilog=examples_epilog(name),
        **SETTINGS,
    )
    group.callback(help=GROUP_HELP[name])(lambda: None)
    return typer.main.get_command(group)


app = typer.Typer(
    name="dinomed", cls=_RootGroup, no_args_is_help=True, epilog=examples_epilog(""),
    **SETTINGS | {"add_completion": True},
)  # fmt: skip


def _version(value: bool) -> None:
    if value:
        print(f"dinomed {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)]


@app.callback(help=f"Self-supervised ViT backbones and light heads for medical images; {RESEARCH_USE}.")
def _root(version: Version = False, debug: Debug = False, verbose: Verbose = False) -> None: ...


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with 0 (done), 1 (failed), 2 (wrong request), 130 (SIGINT) or 143 (SIGTERM)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments or os.environ.get("DINOMED_DEBUG", "") not in ("", "0")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # the same bytes under any locale, also for odd file names
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    if not debug:  # announced changes of libraries do not concern users
        for category in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", category)
    if "--verbose" in arguments:
        from dinomed.log import set_level

        os.environ["DINOMED_LOG"] = "debug"  # for the processes that a command starts, too
        set_level("debug")
    with EndingSignals() as ending:
        code = _run([argument for argument in arguments if argument not in ("--debug", "--verbose")], debug)
    sys.exit(ending.exit_code or code)


def invoke(arguments: Sequence[str]) -> int:
    """Run one command in this process and return its exit code; exceptions pass through."""
    code = typer.main.get_command(app).main(list(arguments), prog_name="dinomed", standalone_mode=False)
    return code if isinstance(code, int) else 0


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Raise for an empty value: ``-o "$OUT"`` with an unset OUT must not mean the current folder."""
    for before, word in pairwise(["", *arguments]):
        if not word:
            raise UsageError(f"an empty value{f' for {before}' if before.startswith('-') else ''}; give one")
        if re.fullmatch(r"--[\w-]+=", word):
            raise UsageError(f"an empty value for {word[:-1]}; give one")


def find_command(arguments: Sequence[str]) -> Any:
    """Return the command that the arguments name; the group above it, where they name none."""
    command: Any = typer.main.get_command(app)
    for word in arguments:
        if not hasattr(command, "list_commands") or word not in command.list_commands(None):
            break
        command = command.get_command(None, word)
    return command


def command_words(command: list[str], arguments: Mapping[str, Any]) -> list[str]:
    """Return the words of a command line with arguments that are given by name.

    Values of None and default values are left out.

    >>> command_words(["train", "classify"], {"backbone": "runs/ssl", "data": "m.csv", "out": "runs/cls", "seed": 3})
    ['train', 'classify', '--backbone', 'runs/ssl', '--data', 'm.csv', '--output', 'runs/cls', '--seed', '3']
    >>> command_words(["features"], {"mean": (0.5, 0.25)})
    ['features', '--mean', '0.5,0.25']
    """
    positional: list[str] = []
    options: list[str] = []
    for parameter in find_command(command).params:
        value = arguments.get(parameter.name)
        if value is None or value is False or value == parameter.default:
            continue
        option = max(parameter.opts, key=len)
        if isinstance(value, tuple) and not getattr(parameter, "multiple", False):  # numbers with commas between them
            value = ",".join(map(repr, value))  # every digit: means are part of the fingerprint of a backbone
        values = value if isinstance(value, list | tuple) else [value]
        if parameter.param_type_name == "argument":
            positional += map(str, values)
        elif value is True:
            options.append(option)
        else:
            options += [word for single in values for word in (option, str(single))]
    return [*command, *positional, *options]


def _run(arguments: list[str], debug: bool) -> int:
    """Run one command and return its exit code; an exception becomes one line."""
    options: dict[str, str] = {}
    printed_reports.clear()
    try:
        _refuse_empty(arguments)
        options = option_names(find_command(arguments))
        with options_in_messages(options):
            code = invoke(arguments)
        sys.stdout.flush()  # a closed pipe raises here, and not during the exit of the interpreter
        return code
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:  # the reader of the pipe (`| head`) has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # a bug too becomes one line, which names --debug
        if debug:
            raise
        return _explain(error, options, as_json="--json" in arguments)


def _explain(error: Exception, options: Mapping[str, str], *, as_json: bool) -> int:
    """Print one line about an error on stderr, with --json an object with it on stdout too; return the exit code."""
    line, code = explain(error, options)
    if line:
        print(line, file=sys.stderr)
        if as_json and not printed_reports:
            print(json.dumps({"error": line.removeprefix("error: ")}))
    return code
