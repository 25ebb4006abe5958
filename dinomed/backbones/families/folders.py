"""Folders of backbones in the formats of other libraries: the family is found by `config.json`."""

from pathlib import Path

import dinomed.backbones.families.transformers_format  # noqa: F401  # it registers the families
from dinomed.backbones.families.registry import FAMILIES, LoadedFamily
from dinomed.backbones.families.timm_format import load_timm_folder
from dinomed.errors import DinomedError, UsageError, first_line
from dinomed.io.files import read_json

CONFIG_FILE = "config.json"
OPEN_CLIP_FILE = "open_clip_config.json"


def load_family_folder(folder: Path) -> LoadedFamily:
    """Load a folder in the format of timm, transformers or an installed plug-in.

    Raises:
        UsageError: the folder is of another kind, which is named.
        DinomedError: a file is damaged.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        if (folder / OPEN_CLIP_FILE).is_file():
            raise UsageError(
                f"{folder}: an OpenCLIP folder; dinomed reads CLIP in the formats of transformers and timm; give "
                "one of these"
            )
        raise UsageError(f"{folder}: weights without {CONFIG_FILE}; give the file of the weights itself")
    config = read_json(path)
    values = [config.get(key) for key in ("model_type", "architecture")] if isinstance(config, dict) else []
    names = [value for value in values if isinstance(value, str)]
    if not names:
        raise UsageError(f"{path} names no model (model_type of transformers, or architecture of timm)")
    loader = next((FAMILIES[name] for name in names if name in FAMILIES), None)
    if loader is None and "architecture" in config:
        loader = load_timm_folder
    if loader is not None:
        try:
            return loader(folder, config)
        except (AttributeError, LookupError, TypeError, ValueError) as error:  # of values that no library writes
            raise DinomedError(
                f"{folder}: its config cannot be used ({type(error).__name__}: {first_line(error)}); copy it again"
            ) from error
    raise UsageError(
        f"{folder}: {path.name} is of a {names[0]} model, which dinomed cannot use; it reads {', '.join(FAMILIES)} and "
        "ViTs of timm (a plug-in can add a family)"
    )
