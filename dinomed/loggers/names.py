"""The setting `loggers`: names of the loggers of a run, and the check that their packages are installed."""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import AfterValidator

from dinomed.errors import UsageError

LoggerName = Literal["jsonl", "tensorboard", "mlflow", "wandb"]
LOGGER_FOLDERS = ("tensorboard", "mlflow", "wandb")
"""Folder of each logger beside ``log.jsonl``, by the name of the logger."""
_MODULES = {
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),  # the store is an SQLite file
    "wandb": ("wandb",),
}


def _with_jsonl(names: tuple[LoggerName, ...]) -> tuple[LoggerName, ...]:
    """Put ``jsonl`` first, and each name once: resuming, `dinomed doctor` and the quickstart read ``log.jsonl``."""
    return tuple(dict.fromkeys(("jsonl", *names)))


LoggerNames = Annotated[tuple[LoggerName, ...], AfterValidator(_with_jsonl)]


def check_loggers(names: Iterable[str], setting: str) -> None:
    """Check that the packages of the loggers are installed, without importing them.

    Args:
        names: names of loggers.
        setting: name of the setting for the message, such as ``run.loggers``.

    Raises:
        UsageError: a package is missing; the message has the command that installs it.
    """
    for name in names:
        missing = [module for module in _MODULES.get(name, ()) if not _is_installed(module)]
        if missing:
            package = "dinomed" if name == "tensorboard" else f"dinomed[{name}]"
            raise UsageError(f"{setting}={name} needs the package {missing[0]}: pip install '{package}'")


def _is_installed(module: str) -> bool:
    """Return whether there is a package of this name; a folder in the current one, such as ``wandb/``, is none."""
    spec = find_spec(module)
    return spec is not None and spec.origin is not None
