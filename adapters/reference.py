"""From a bundle to its backbone and back: a path relative to the bundle, so that both move together."""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from dinomed.adapters.record import AdapterRecord, BackboneReference
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.backbones.variants import VARIANTS
from dinomed.errors import DinomedError, UsageError


def find_backbone(
    folder: str | Path,
    record: AdapterRecord,
    given: str | Path | None = None,
    device: str | torch.device = "cpu",
    load: Callable[..., FrozenBackbone] = load_backbone,
) -> FrozenBackbone:
    """The backbone that the adapter was made on, or `given` in its place if it is the same one elsewhere. `load` takes
    what `load_backbone` does.

    Raises:
        DinomedError: it is not there.
        UsageError: it is another one; both fingerprints are named.
    """
    reference, size = record.backbone, record.preprocessing.image_size
    place: Path | None
    if given is not None:
        name, place = (reference.name, Path(given)) if Path(given).is_file() else (str(given), None)
    else:
        relative = reference.path or reference.weights
        place = None if relative is None else Path(os.path.normpath(Path(folder) / relative))
        if place is not None and not place.exists():
            raise DinomedError(f"the backbone of adapter {folder} is not at {place}; say where: --backbone PATH")
        name, place = (str(place), None) if reference.path else (reference.name, place)
    found = load(name, weights=place, image_size=size, device=device)
    if found.fingerprint != reference.fingerprint:
        raise UsageError(
            f"adapter {folder} was made on backbone {reference.name} with fingerprint {reference.fingerprint[:16]}, "
            f"but {given or found.source or found.name} has {found.fingerprint[:16]}; "
            "give the one it was made on (--backbone PATH), or train again"
        )
    return found


def refer_to(backbone: FrozenBackbone, folder: Path) -> BackboneReference:
    """How a bundle in `folder` names the backbone."""
    source = None if backbone.source is None else Path(backbone.source)
    relative = None if source is None else _relative(source, folder)
    is_file = source is not None and source.is_file()
    assert not is_file or backbone.name in VARIANTS
    return BackboneReference(
        name=backbone.name,
        path=None if is_file else relative,
        weights=relative if is_file else None,
        fingerprint=backbone.fingerprint,
        embed_dim=backbone.embed_dim,
    )


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive (Windows)
        return path.resolve().as_posix()
