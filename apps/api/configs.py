"""Settings: their JSON Schema for editors, resolved configs, and the difference of two."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dinomed.apps.api.inputs import PathLike, Settings, config_path, override_list
from dinomed.config import Config, load_config
from dinomed.errors import UsageError, did_you_mean

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
RUN_CONFIGS = ("config.yaml", "adapter.yaml")  # in a run folder, in an adapter folder
_CURATION = ("curate", "audit")
_TEXT_OR_TABLE = ("augment", "tune")  # settings of heads that may be one word in place of a table


def config_jobs() -> list[str]:
    """Return the names of the jobs that have settings: pretrain, curate, audit, and the tasks of heads."""
    from dinomed.adapters.task import task_names

    return ["pretrain", *_CURATION, *task_names()]


def config_schema(job: str) -> dict[str, Any]:
    """Return the JSON Schema of the settings of a job, with which an editor completes and checks YAML files.

    The command is ``dinomed config schema``.

    Args:
        job: pretrain, curate, audit, or the task of a head (classify, segment, depth, or that of a plug-in).

    Returns:
        A schema of the 2020-12 dialect. All keys are optional, and `base` names a file to start from. The head of a
        task is one of the schemas of its heads.

    Raises:
        UsageError: no such job.

    Example:
        >>> dinomed.config_schema("pretrain")["properties"]["backbone"]["$ref"]
        '#/$defs/ViTConfig'
    """
    cls = _config_class(job)
    schema = cls.model_json_schema()
    schema.pop("required", None)
    properties = schema["properties"]
    properties["base"] = {"type": "string", "description": "file whose settings these change, relative to this one"}
    if "head" in properties:
        _add_heads(schema, job)
        for name in set(_TEXT_OR_TABLE) & set(properties):
            description = properties[name]["description"]
            properties[name] = {"anyOf": [{"type": "string"}, properties[name]], "description": description}
    return {"$schema": SCHEMA_DIALECT, "title": f"Settings of dinomed {job}", **schema}


def resolve_config(job: str, config: PathLike | None = None, *, settings: Settings | None = None) -> dict[str, Any]:
    """Return all settings of a job, with the defaults of those that a config does not name.

    The command is ``dinomed config show``. What depends on data or weights is resolved when a run starts.

    Args:
        job: as for `config_schema`.
        config: YAML file, a name such as ``"vit_tiny_cpu"``, or the folder of a run or an adapter; None for defaults.
        settings: settings that override the config.

    Returns:
        The settings as nested values for JSON or YAML.

    Raises:
        UsageError: no such job or file, or a setting is wrong.

    Example:
        >>> dinomed.resolve_config("classify", settings={"head.name": "knn"})["head"]["name"]
        'knn'
    """
    return _resolve(job, config, settings).model_dump(mode="json")


def compare_configs(
    job: str, first: PathLike, second: PathLike | None = None, *, settings: Settings | None = None
) -> list[dict[str, Any]]:
    """Compare the settings of two configs after their resolution.

    The command is ``dinomed config diff``.

    Args:
        job: as for `config_schema`.
        first: a config as for `resolve_config`.
        second: another config; None for the defaults.
        settings: settings that override both.

    Returns:
        A row for each setting that differs: `setting`, and its value in `first` and in `second`; None where it does not
        exist.

    Raises:
        UsageError: as `resolve_config`.

    Example:
        >>> rows = dinomed.compare_configs("segment", "segment_unet")
        >>> [row["first"] for row in rows if row["setting"] == "head.name"]
        ['unet']
    """
    values = [dict(_flat(_resolve(job, config, settings).model_dump(mode="json"))) for config in (first, second)]
    names = list(dict.fromkeys(name for side in values for name in side))
    return [
        {"setting": name, "first": values[0].get(name), "second": values[1].get(name)}
        for name in names
        if values[0].get(name) != values[1].get(name)
    ]


def _config_class(job: str) -> type[Config]:
    if job not in config_jobs():
        raise UsageError(f"no settings of {job!r}{did_you_mean(job, config_jobs())}")
    if job == "pretrain":
        from dinomed.pretrain.config import PretrainConfig

        return PretrainConfig
    if job in _CURATION:
        from dinomed.pretrain.curation.audit.audit import AuditConfig
        from dinomed.pretrain.curation.config import CurationConfig

        return CurationConfig if job == "curate" else AuditConfig
    from dinomed.adapters.task import find_task

    return find_task(job).config


def _resolve(job: str, config: PathLike | None, settings: Settings | None) -> Config:
    cls = _config_class(job)
    folder = "pretrain" if job == "pretrain" else "curation" if job in _CURATION else "adapters"
    if config is not None and Path(config).is_dir():
        place = Path(config)
        path = next((place / name for name in RUN_CONFIGS if (place / name).is_file()), None)
        if path is None:
            raise UsageError(f"{place} holds no config ({' or '.join(RUN_CONFIGS)})")
    else:
        path = config_path(config, folder)
    return load_config(cls, path, override_list(settings))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield full names such as ``backbone.depth`` and their values."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _add_heads(schema: dict[str, Any], task: str) -> None:
    """Replace the schema of `head` by those of the heads of the task."""
    from dinomed.adapters.adapter import ADAPTERS
    from dinomed.adapters.catalogue import BUILT_IN
    from dinomed.adapters.fitting.config import adapter_class

    names = [entry.name for entry in BUILT_IN if entry.task == task]
    names += [name.partition(".")[2] for name in ADAPTERS if name.partition(".")[0] == task]
    heads = []
    for name in dict.fromkeys(names):
        head = adapter_class(task, name).Config.model_json_schema()
        schema.setdefault("$defs", {}).update(head.pop("$defs", {}))
        head.pop("required", None)
        head["properties"]["name"] = {"const": name, "description": "name of the head"}
        heads.append({**head, "title": f"head {name}"})
    schema["properties"]["head"] = {"anyOf": heads, "description": schema["properties"]["head"]["description"]}
