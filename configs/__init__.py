"""Configs of dinomed: a base file for each job, and deltas."""

from importlib.resources import files
from pathlib import Path


def find_config(path: str | Path) -> Path:
    """Return `path`, or the config of dinomed with that name.

    In an installation without a checkout, ``configs/pretrain/quickstart.yaml`` and ``pretrain/quickstart.yaml`` both
    name the file in the package. A path that exists in neither place is returned unchanged.
    """
    path = Path(path)
    if path.exists() or path.is_absolute():
        return path
    parts = path.parts[1:] if path.parts[:1] == ("configs",) else path.parts
    shipped = Path(str(files("dinomed.configs"))).joinpath(*parts)
    return shipped if shipped.is_file() else path


def config_names(job: str) -> list[str]:
    """Return the names of the configs of dinomed in the folder of a job, such as ``adapters``, sorted."""
    folder = files("dinomed.configs").joinpath(job)
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))
