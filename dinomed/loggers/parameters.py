"""Settings of a run as the parameters of its loggers."""

import re
from typing import Any

from dinomed.config import Config, flatten_settings


def run_parameters(config: Config) -> dict[str, Any]:
    """Return all settings by their full names, without the folders of files.

    Folders may be named after patients or users, and a log is shared more widely than a run. A text with a slash keeps
    only its last part.

    >>> from dinomed.backbones.config import ViTConfig
    >>> run_parameters(ViTConfig())["depth"]
    12
    """
    return {name: _without_folders(value) for name, value in flatten_settings(config).items()}


def _without_folders(value: Any) -> Any:
    if isinstance(value, str):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return [_without_folders(item) for item in value] if isinstance(value, list) else value
