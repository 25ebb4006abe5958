"""`dinomed models`: the available backbones and heads, with sources and licences."""

from typing import Any

from dinomed.apps.options import Json


def models(as_json: Json = False) -> None:
    """List backbones, published backbones of other groups, and heads, with their sources and licences.

    Use the name of a backbone with --backbone, the name of a head with `dinomed train TASK --head NAME`. Plug-ins are
    listed by their package metadata; nothing is imported or downloaded. For research use only.
    """
    from dinomed.apps.api.models import list_models
    from dinomed.apps.output import emit

    report = list_models()
    emit(report, True) if as_json else _show(report)


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
    head = ("backbone", "channels", "blocks", "patch", "registers", "weights", "licence", "file")
    emit(report, False, build_table(head, backbones))
    emit(report, False, _published(report["published"]))
    columns = ("summary", "source", "package", "licence")
    adapters = [(f"{row['task']} --head {row['name']}", *(row[key] for key in columns)) for row in report["adapters"]]
    heads = build_table(("adapter", "description", "source", "package", "licence"), adapters)
    heads.caption = report["purpose"]
    emit(report, False, heads)


def _published(rows: list[dict[str, Any]]) -> Any:
    from dinomed.apps.output import build_table

    keys = ("name", "domain", "architecture", "parameters", "licence", "access")
    head = ("published backbone", "images", "architecture", "M parameters", "licence", "access", "start here")
    cells = [(*(row[key] for key in keys), row["start"].removeprefix("start here: ")) for row in rows]
    table = build_table(head, cells)
    table.caption = "docs/backbones.md, --json: mean and std, and what was tested"
    return table
