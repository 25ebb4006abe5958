"""The configs that come with dinomed: a base file for each job, and short deltas."""

from importlib.resources import files
from pathlib import Path


def find_config(path: str | Path) -> Path:
    """`path` itself, or the config of that name that comes with dinomed.

    Where dinomed is installed without a checkout, ``configs/pretrain/quickstart.yaml`` and
    ``pretrain/quickstart.yaml`` name the file in the package. A path found in neither place is returned as it is.
    """
    path = Path(path)
    if path.exists() or path.is_absolute():
        return path
    parts = path.parts[1:] if path.parts[:1] == ("configs",) else path.parts
    shipped = Path(str(files("dinomed.configs"))).joinpath(*parts)
    return shipped if shipped.is_file() else path
