"""Settings of a run as the parameters of its loggers."""

from pathlib import PureWindowsPath
from typing import Any

from dinomed.config import Config, flatten_settings

_PATHS = ("weights", "file")  # last part of the names of the settings that may be paths: start.weights, distill.file


def run_parameters(config: Config) -> dict[str, Any]:
    """Return all settings by their full names, without folders.

    Folders may be named after patients or users, and a log is shared more widely than a run. The path of a file keeps
    only its name; a path without a suffix is written as ``(folder)``.

    >>> from dinomed.backbones.config import ViTConfig
    >>> run_parameters(ViTConfig())["depth"]
    12
    """
    return {name: _without_folders(name, value) for name, value in flatten_settings(config).items()}


def _without_folders(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_without_folders(name, item) for item in value]
    if not isinstance(value, str):
        return value
    path = PureWindowsPath(value)  # it splits at both kinds of slashes
    is_relative = name.rpartition(".")[2] in _PATHS and len(path.parts) > 1
    if not path.name or not (path.root or value.startswith("~") or is_relative):
        return value
    return path.name if path.suffix else "(folder)"
