"""Families of backbones: functions that load a folder with a `config.json` of one kind.

A family is registered under the value of ``model_type`` (the format of transformers) or ``architecture`` (the format of
timm) in `config.json`. A package adds a family by an entry point of the group ``dinomed.backbones`` with that name::

    [project.entry-points."dinomed.backbones"]
    my_vit = "my_package:load_my_vit"

    def load_my_vit(folder: Path, config: dict[str, Any]) -> LoadedFamily: ...

`examples/backbone_plugin/` is such a package.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import TokenModel
from dinomed.registry import Registry


@dataclass(frozen=True)
class LoadedFamily:
    """A model with its preprocessing.

    Attributes:
        model: the model, with its weights.
        preprocessing: how images are prepared.
        known_statistics: whether mean and std of the preprocessing are those of the model; False where its files name
            none, and they are ImageNet's.
    """

    model: TokenModel
    preprocessing: Preprocessing
    known_statistics: bool


FamilyLoader = Callable[[Path, dict[str, Any]], LoadedFamily]
"""Function from a folder and the content of its `config.json`.

Raises:
    UsageError: the model is of a kind that the family does not read.
    DinomedError: a file is damaged.
"""

FAMILIES: Registry[FamilyLoader] = Registry("backbone family", "dinomed.backbones")
