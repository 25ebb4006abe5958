"""`dinomed models`: the available backbones and heads, with sources and licences."""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from dinomed.apps.options import Json

ENTRY_POINTS = "dinomed.adapters"


def models(as_json: Json = False) -> None:
    """List backbones and heads, with their sources and licences.

    Use the name of a backbone with --backbone, the name of a head with `dinomed train TASK --head NAME`. Plug-ins are
    listed by their package metadata; nothing is imported or downloaded. For research use only.
    """
    from dinomed.apps.output import emit
    from dinomed.notice import RESEARCH_USE

    report: dict[str, Any] = {"purpose": RESEARCH_USE, "backbones": _backbones(), "adapters": _adapters()}
    emit(report, True) if as_json else _show(report)


def _backbones() -> list[dict[str, Any]]:
    from dinomed.backbones.hub import cache_folder
    from dinomed.backbones.variants import VARIANTS

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
    from dinomed.adapters.catalogue import BUILT_IN

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
    """Return the entry of a plug-in head from its package metadata, without importing it."""
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


def _show(report: dict[str, Any]) -> None:
    from dinomed.apps.output import build_table, emit

    names = {
        None: "random weights, for pretraining", "Meta AI, DINOv2 (LVD-142M)": "Meta AI, DINOv2",
    }  # fmt: skip
    columns = ("embed_dim", "depth", "patch_size", "registers")
    backbones = [
        (
            row["name"],
            *(row[key] for key in columns),
            names.get(row["source"], row["source"]),
            row["licence"],
            "" if row["source"] is None else "on disk" if row["on_disk"] else "not downloaded",
        )
        for row in report["backbones"]
    ]
    head = ("backbone", "channels", "blocks", "patch", "registers", "weights", "licence", "")
    emit(report, False, build_table(head, backbones))
    columns = ("summary", "source", "package", "licence")
    adapters = [(f"{row['task']} --head {row['name']}", *(row[key] for key in columns)) for row in report["adapters"]]
    adapters.append((report["purpose"], *[None] * len(columns)))
    emit(report, False, build_table(("adapter", "description", "source", "package", "licence"), adapters))
