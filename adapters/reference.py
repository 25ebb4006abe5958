"""From a bundle to its backbone and back: a path relative to the bundle, so that both move together."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dinomed.adapters.record import BackboneReference
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.variants import VARIANTS
from dinomed.datasets.manifest import relative_root
from dinomed.errors import MissingFileError, UsageError


def find_backbone(
    folder: str | Path,
    reference: BackboneReference,
    preprocessing: Preprocessing,
    other_place: str | Path | None = None,
    device: str | torch.device = "cpu",
    load: Callable[..., FrozenBackbone] = load_backbone,
    *,
    kind: str = "adapter",
    remedy: str = "train again",
) -> FrozenBackbone:
    """Load the backbone on which an adapter or an index was made.

    Args:
        folder: of the adapter or index; the path in `reference` is relative to it.
        reference: the backbone as the record names it.
        preprocessing: that of the record; its image size and its aspect are used.
        other_place: folder, weights file or name of the backbone, if it is no longer where `reference` says.
        load: function with the arguments of `load_backbone`.
        kind: what `folder` holds, for messages.
        remedy: what makes `folder` anew, for messages.

    Raises:
        MissingFileError: the backbone is missing.
        UsageError: its fingerprint is another one; both are named.
    """
    place: Path | None
    if other_place is not None:
        is_file = Path(other_place).is_file() and reference.name in VARIANTS
        name, place = (reference.name, Path(other_place)) if is_file else (str(other_place), None)
    else:
        relative = reference.path or reference.weights
        place = None if relative is None else Path(os.path.normpath(Path(folder) / relative))
        if place is not None and not os.path.exists(place):  # `Path.exists` raises for a name that is too long
            raise MissingFileError(f"the backbone of {kind} {folder} is not at {place}; say where: `backbone=PATH`")
        name, place = (str(place), None) if reference.path else (reference.name, place)
    stated: dict[str, Any] = {} if reference.mean is None else {"mean": reference.mean, "std": reference.std}
    square = {"image_size": preprocessing.image_size, "aspect": preprocessing.aspect}
    backbone = load(name, weights=place, device=device, **square, **stated)
    if backbone.fingerprint != reference.fingerprint:
        raise UsageError(
            f"{kind} {folder} was made on backbone {reference.name} with fingerprint {reference.fingerprint[:16]}, but "
            f"{other_place or backbone.source or backbone.name} has {backbone.fingerprint[:16]}; give the right one by "
            f"`backbone=PATH`, or {remedy}"
        )
    return backbone


def refer_to(backbone: FrozenBackbone, folder: Path) -> BackboneReference:
    """Return the reference by which a bundle in `folder` names the backbone."""
    source = None if backbone.source is None else Path(backbone.source)
    relative = None if source is None else relative_root(source, folder)
    is_file = source is not None and source.is_file() and backbone.name in VARIANTS
    stated: dict[str, Any] = {}
    if backbone.stated_statistics:
        stated = {"mean": backbone.preprocessing.mean, "std": backbone.preprocessing.std}
    return BackboneReference(
        name=backbone.name,
        path=None if is_file else relative,
        weights=relative if is_file else None,
        fingerprint=backbone.fingerprint,
        embed_dim=backbone.embed_dim,
        **stated,
    )
