"""Reference of all settings of a job, made from the JSON Schema of its config classes."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from dinomed.adapters.catalogue import BUILT_IN, HeadConfig
from dinomed.apps.api.configs import config_schema, resolve_config

Schema = dict[str, Any]
_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_USE = {
    "pretrain": "dinomed pretrain FILE",
    "curate": "dinomed curate --config FILE",
    "audit": "dinomed audit --config FILE",
}


def settings_page(job: str) -> str:
    """Return the page of a job: a table of settings for each table of the YAML file, and for each head."""
    schema = config_schema(job)
    command = _USE.get(job, f"dinomed train {job} --config FILE")
    lines = [
        f"# Settings of {job}",
        "",
        f"`{command}` reads them from YAML; `--set NAME=VALUE` changes single ones. `dinomed config show {job}` prints "
        "them all. Every setting has a default and may be left out.",
    ]
    if "head" in schema["properties"]:
        for head in schema["properties"]["head"]["anyOf"]:
            head["description"] = _head_text(job, head)
        lines += ["", "The defaults of `fit` are those of the linear head; some heads and an augmentation have others."]
    lines += _tables(schema, schema["$defs"], resolve_config(job), "", "Top level")
    return "\n".join(lines) + "\n"


def _tables(table: Schema, defs: Schema, defaults: Mapping[str, Any], prefix: str, title: str) -> Iterator[str]:
    """Yield the lines of a table of settings and of the tables below it."""
    rows, below = [], []
    for name, setting in table["properties"].items():
        variants = [defs[ref] for ref in _references(setting)] + [
            kind for kind in _kinds(setting) if "properties" in kind
        ]
        default = defaults.get(name, setting.get("default", setting.get("const")))
        below += [(variant, default, f"{prefix}{name}") for variant in variants]
        shown = "required" if name in table.get("required", ()) else _code(default)
        shown = "its own table" if variants and isinstance(default, Mapping) else shown
        kind = "table" if variants else type_text(setting)
        rows.append(f"| `{prefix}{name}` | {kind} | {shown} | {_cell(setting.get('description', ''))} |")
    yield from ("", f"## {title}", "", _paragraph(table.get("description", "")), "")
    yield from ("| name | type | default | meaning |", "|---|---|---|---|", *rows)
    for variant, default, full in below:
        values = default if isinstance(default, Mapping) else {}
        alternatives = sum(other == full for _, _, other in below) > 1
        label = _variant_name(variant) if alternatives else ""
        if alternatives and values.get("name", values.get("kind")) != label:
            values = {}
        yield from _tables(variant, defs, values, f"{full}.", f"{full}{f': {label}' if label else ''}")


def _head_text(task: str, head: Schema) -> str:
    """Return what a head is and where it comes from, then the remarks on its settings, if it has any of its own."""
    name = head["properties"]["name"]["const"]
    text = "".join(f"{e.summary} ({e.source}).\n\n" for e in BUILT_IN if (e.task, e.name) == (task, name))
    return text if head["description"] == HeadConfig.__doc__ else text + head["description"]


def type_text(setting: Schema) -> str:
    """Return the type of a setting with its limits: ``integer ≥ 1``, ``list of number``, ```a` or `b```."""
    kinds = _kinds(setting)
    if kinds:
        return " or ".join(dict.fromkeys(type_text(kind) for kind in kinds))
    if "enum" in setting or "const" in setting:
        return " or ".join(_code(value) for value in setting.get("enum", [setting.get("const")]))
    limits = [f"{sign} {setting[key]:g}" for key, sign in _LIMITS.items() if key in setting]
    kind = setting.get("type", "any value")
    if kind == "array":
        items = setting.get("items") or next(iter(setting.get("prefixItems", [])), {})
        return (
            f"list of {len(setting['prefixItems'])} values"
            if "prefixItems" in setting
            else f"list of {type_text(items)}"
        )
    return " ".join(["table" if kind == "object" else kind, *limits])


def _kinds(setting: Schema) -> list[Schema]:
    return setting.get("anyOf") or setting.get("oneOf") or []


def _references(setting: Schema) -> list[str]:
    """Return the names of the tables that a setting may be."""
    return [part["$ref"].rpartition("/")[2] for part in [setting, *_kinds(setting)] if "$ref" in part]


def _variant_name(variant: Schema) -> str:
    key = variant["properties"].get("name") or variant["properties"].get("kind") or {}
    return str(key.get("const", variant.get("title", "")))


def _code(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`".replace("|", "\\|")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _paragraph(text: str) -> str:
    return text.replace("``", "`").strip()
