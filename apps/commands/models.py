"""`dinomed models`: what there is to choose from, backbones and heads, with sources and licences."""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from dinomed.apps.options import Json

ENTRY_POINTS = "dinomed.adapters"


def models(as_json: Json = False) -> None:
    """List backbones and heads, with their sources and licences.

    Backbones by name go to --backbone, heads by name to `dinomed train TASK --head NAME`. Those of installed plug-ins
    are listed by what they say of themselves; nothing is imported or fetched. For research use only.
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

    own = [
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
    return own + [_plugin(point) for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name)]


def _plugin(point: EntryPoint) -> dict[str, Any]:
    """A head of another package, by its metadata alone: importing it would run its code."""
    task, _, name = point.name.partition(".")
    about: Any = None if point.dist is None else point.dist.metadata
    return {
        "task": task,
        "name": name,
        "summary": None if about is None else about.get("Summary"),
        "source": point.value,
        "package": None if about is None else f"{about['Name']} {about['Version']}",
        "licence": None if about is None else about.get("License-Expression") or about.get("License"),
    }


def _show(report: dict[str, Any]) -> None:
    from dinomed.apps.output import build_table, emit

    names = {
        None: "random weights, to be pretrained", "Meta AI, DINOv2 (LVD-142M)": "Meta AI, DINOv2",
    }  # fmt: skip
    columns = ("embed_dim", "depth", "patch_size", "registers")
    backbones = [
        (
            row["name"],
            *(row[key] for key in columns),
            names.get(row["source"], row["source"]),
            row["licence"],
            "" if row["source"] is None else "on disk" if row["on_disk"] else "to be fetched",
        )
        for row in report["backbones"]
    ]
    head = ("backbone", "channels", "blocks", "patch", "registers", "weights", "licence", "")
    emit(report, False, build_table(head, backbones))
    columns = ("summary", "source", "package", "licence")
    adapters = [(f"{row['task']} --head {row['name']}", *(row[key] for key in columns)) for row in report["adapters"]]
    adapters.append((report["purpose"], *[None] * len(columns)))
    emit(report, False, build_table(("adapter", "what it is", "source", "package", "licence"), adapters))
