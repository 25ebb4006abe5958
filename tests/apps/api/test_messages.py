"""Messages of Python functions name arguments; the command line shows its options in their place."""

import ast
import re
from collections.abc import Mapping
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path

import pytest

import dinomed
from dinomed.apps import cli
from dinomed.apps.messages import name_options
from dinomed.errors import UsageError

ROOT = Path(__file__).resolve().parents[3]

CALLS = [
    # call, its message from Python, the same on the command line
    (
        lambda: dinomed.curate("lesions.parquet", out="c.parquet", executor="spark"),
        "`executor='spark'`",
        ["curate", "--pool", "lesions.parquet", "-o", "c.parquet", "--engine", "spark"],
        "--engine 'spark'",
    ),
    (
        lambda: dinomed.curate("lesions.parquet", out="c.parquet", query_sets=["none.csv"]),
        "`query_sets`: none.csv does not exist",
        ["curate", "--pool", "lesions.parquet", "-o", "c.parquet", "--trusted", "none.csv"],
        "--trusted: none.csv does not exist",
    ),
    (
        lambda: dinomed.scan("lesions", out="lesions.parquet"),
        "add `overwrite=True` to replace it",
        ["scan", "lesions", "-o", "lesions.parquet"],
        "add --overwrite to replace it",
    ),
    (
        lambda: dinomed.probe("runs/ssl", "lesions.parquet", out="p"),
        "`out` is for the page of `shots`",
        ["probe", "runs/ssl", "--data", "lesions.parquet", "-o", "p"],
        "--output is for the page of --few-shot",
    ),
    (
        lambda: dinomed.predict("runs/seg", "lesions", "p", unit="patient"),  # type: ignore[arg-type]
        "`unit=patient`",
        ["predict", "runs/seg", "lesions", "-o", "p", "--unit", "patient"],
        "--unit patient",
    ),
    (
        lambda: dinomed.pretrain("vit_tiny_cpu", "lesions.parquet", "r", resume=True, overwrite=True),
        "`resume` and `overwrite` exclude",
        ["pretrain", "vit_tiny_cpu", "--data", "lesions.parquet", "-o", "r", "--resume", "--overwrite"],
        "--resume and --overwrite exclude",
    ),
]


@pytest.mark.parametrize(("call", "python", "words", "shell"), CALLS)
def test_a_message_names_the_argument_in_python_and_the_option_on_the_command_line(
    call, python: str, words: list[str], shell: str, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=re.escape(python)) as caught:
        call()
    assert "--" not in str(caught.value)
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    assert shell in capsys.readouterr().err


def test_a_setting_is_written_as_a_list_in_python_and_as_words_on_the_command_line() -> None:
    message = "add images, or `settings=['run.batch_size=8']`"
    assert name_options(message, {"settings": "--set"}) == "add images, or --set run.batch_size=8"


def texts_of_errors(path: Path) -> list[str]:
    """Return the texts of the exceptions that a file raises."""
    texts = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and node.exc is not None:
            parts = [part.value for part in ast.walk(node.exc) if isinstance(part, ast.Constant)]
            texts.append(" ".join(part for part in parts if isinstance(part, str)))
    return texts


@pytest.mark.parametrize("path", sorted((ROOT / "apps" / "api").glob("*.py")), ids=lambda path: path.name)
def test_no_error_of_a_python_function_names_an_option(path: Path) -> None:
    options = [text for text in texts_of_errors(path) if re.search(r"(?<![\w-])--?[a-z]", text)]
    assert options == []


@pytest.mark.parametrize(
    "path",
    [
        *("dinomed/config.py", "adapters/retrieval/filters.py", "pretrain/resolve.py"),
        *(f"dinomed/datasets/scan/{path.name}" for path in sorted((ROOT / "dinomed/datasets/scan").glob("*.py"))),
    ],
)
def test_no_message_of_the_core_names_an_option_outside_of_a_command(path: str) -> None:
    """Notes and warnings too; a whole command, such as ``dinomed scan FOLDER --videos``, has its options."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    described = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):  # its parts are read together
            described |= {part for part in ast.walk(node) if isinstance(part, ast.Constant)}
    texts = [
        "".join(str(part.value) for part in ast.walk(node) if isinstance(part, ast.Constant))
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and node not in described)
    ]
    wrong = [text for text in texts if re.search(r"(?<![\w-])--[a-z]", text) and "dinomed " not in text]
    assert wrong == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: dinomed.scan(ROOT / "docs", keep=["age"]),
            "`keep=age` is a column of a CSV; name the CSV with `labels`",
        ),
        (lambda: dinomed.scan(ROOT / "docs", group="patient"), "`group=patient` is a column of a CSV"),
        (lambda: dinomed.resolve_config("pretrain", settings=["run"]), "`settings=['run']`: expected a.b=value"),
        (lambda: dinomed.resolve_config("pretrain", settings=["run.steps=x"]), "config with `settings`: run.steps"),
    ],
)
def test_a_message_of_the_core_names_the_argument(call, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        call()
    assert "--" not in str(caught.value)


# command -> its function, and the options that only the command has
FUNCTIONS = {
    "doctor": ("doctor", set()),
    "models": ("list_models", set()),
    "config schema": ("config_schema", {"out"}),
    "config show": ("resolve_config", set()),
    "config diff": ("compare_configs", set()),
    "scan": ("scan", set()),
    "frames": ("frames", set()),
    "slices": ("slices", set()),
    "curate": ("curate", {"dry_run"}),
    "audit": ("audit", set()),
    "pretrain": ("pretrain", {"dry_run", "nproc"}),
    "distill": ("distill", {"dry_run", "nproc"}),
    "features": ("extract_features", set()),
    "probe": ("probe", set()),
    "evaluate": ("evaluate", set()),
    "predict": ("predict", set()),
    "index": ("build_index", set()),
    "search": ("search", {"evaluate", "split", "label"}),
    "export": ("export", set()),
    "quickstart": ("quickstart", {"no_demo"}),
    "train classify": ("train", {"dry_run"}),
    "show pca": ("show_pca", {"showing"}),
    "show attention": ("show_attention", {"showing"}),
    "show match": ("show_match", {"showing"}),
    "show similarity": ("show_similarity", {"showing"}),
    "show map": ("show_map", set()),
    "demo all": ("demo", {"no_browser"}),
}


def test_every_command_has_a_public_function() -> None:
    assert {name.split()[0] for name in FUNCTIONS} == set(cli.COMMANDS)


def parameters_of(command: str) -> tuple[Mapping[str, Parameter], Mapping[str, Parameter]]:
    """Return the parameters of a command, and those of its public function."""
    target = cli.COMMANDS
    for word in command.split():
        target = target[word]
    module, _, function = target.partition(":")
    typed = signature(getattr(import_module(f"dinomed.apps.commands.{module}"), function)).parameters
    return typed, signature(dinomed.__getattr__(FUNCTIONS[command][0])).parameters


def plain(default: object) -> object:
    """Return a default in one form: an option has no tuples, and takes several numbers as one text."""
    if isinstance(default, str) and re.fullmatch(r"[\d.]+(,[\d.]+)+", default):
        return tuple(map(float, default.split(",")))
    return str(default) if isinstance(default, Path) else default or None


@pytest.mark.parametrize("command", FUNCTIONS)
def test_the_options_of_a_command_have_the_names_and_the_defaults_of_the_arguments(command: str) -> None:
    options, arguments = parameters_of(command)
    assert set(options) - FUNCTIONS[command][1] - {"as_json", "quiet"} <= set(arguments)
    defaults = {
        name: (option.default, arguments[name].default) for name, option in options.items() if name in arguments
    }
    different = {name: both for name, both in defaults.items() if plain(both[0]) != plain(both[1])}
    assert {name: both for name, both in different.items() if Parameter.empty not in both} == {}  # empty: required
