"""List of the available backbones and heads, with their sources and licences."""

from dataclasses import asdict
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from dinomed.adapters.catalogue import BUILT_IN
from dinomed.backbones.hub import cache_folder
from dinomed.backbones.published import PUBLISHED
from dinomed.backbones.variants import VARIANTS
from dinomed.notice import RESEARCH_USE

ENTRY_POINTS = "dinomed.adapters"


def list_models() -> dict[str, Any]:
    """Return the available backbones and heads, with their sources and licences.

    Nothing is downloaded, and no plug-in is imported: heads of installed plug-ins are listed from their package
    metadata. The command is ``dinomed models``.

    Returns:
        ``backbones``: names for `load_backbone`, with `embed_dim`, `depth`, `patch_size`, `licence` and `url`.
        ``published``: backbones of other groups for `load_backbone`, with `domain`, `licence`, `access`, `values` (mean
            and std), `tested` and `start`.
        ``adapters``: heads for `train`, with `task`, `name`, `summary`, `source`, `package` and `licence`.

    Example:
        >>> [row["name"] for row in dinomed.list_models()["adapters"] if row["task"] == "depth"]
        ['linear', 'linear4', 'dpt']
    """
    published = [{**asdict(row), "command": row.command, "tested": row.tested} for row in PUBLISHED]
    return {
        "purpose": RESEARCH_USE,
        "backbones": _backbones(),
        "published": published,
        "adapters": _adapters(),
    }


def _backbones() -> list[dict[str, Any]]:
    rows = []
    for name in VARIANTS:
        variant = VARIANTS[name]
        release = variant.release
        file = None if release is None else cache_folder() / "weights" / release.file_name
        rows.append(
            {
                "name": name,
                "embed_dim": variant.embed_dim,
                "depth": variant.depth,
                "heads": variant.num_heads,
                "patch_size": variant.patch_size,
                "registers": variant.num_registers,
                "source": None if release is None else release.source,
                "licence": None if release is None else release.licence,
                "url": None if release is None else release.url,
                "sha256": None if release is None else release.sha256,
                "on_disk": None if file is None or not file.is_file() else str(file),
            }
        )
    return rows


def _adapters() -> list[dict[str, Any]]:
    built_in = [
        {
            "task": entry.task,
            "name": entry.name,
            "summary": entry.summary,
            "source": entry.source,
            "package": "dinomed",
            "licence": "Apache-2.0",
        }
        for entry in BUILT_IN
    ]
    return built_in + [
        _plugin(point) for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name)
    ]


def _plugin(point: EntryPoint) -> dict[str, Any]:
    """Describe a head of another package from the package metadata, because an import would run its code."""
    task, _, name = point.name.partition(".")
    metadata: Any = None if point.dist is None else point.dist.metadata
    return {
        "task": task,
        "name": name,
        "summary": None if metadata is None else metadata.get("Summary"),
        "source": point.value,
        "package": None if metadata is None else f"{metadata['Name']} {metadata['Version']}",
        "licence": None if metadata is None else metadata.get("License-Expression") or metadata.get("License"),
    }
