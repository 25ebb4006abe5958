"""`dinomed config schema`, `show` and `diff`: settings for editors, resolved, and compared."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from dinomed.apps.options import Json

Job = Annotated[str, Argument(help="pretrain, curate, audit, or the task of a head: classify, segment, depth.")]
ConfigFile = Annotated[
    str | None,
    Argument(help="YAML file, a name such as vit_tiny_cpu, or the folder of a run or an adapter [the defaults]."),
]
SetOption = Annotated[list[str] | None, Option("--set", help="Override one setting: a.b=value.")]


def schema(
    job: Job,
    out: Annotated[Path | None, Option("--output", "-o", help="File to write [stdout].", show_default=False)] = None,
) -> None:
    """Print the JSON Schema of the settings of a job.

    An editor with a YAML language server completes and checks a config whose first line is
    `# yaml-language-server: $schema=FILE`.
    """
    from dinomed.apps.api.configs import SCHEMA_DIALECT, config_schema
    from dinomed.apps.ending import print_end
    from dinomed.errors import UsageError
    from dinomed.io.files import to_json, write_text
    from dinomed.log import logger

    text = to_json(config_schema(job), indent=2)
    if out is None:
        print(text)
        return
    if out.exists() and f'"$schema": "{SCHEMA_DIALECT}"'.encode() not in out.read_bytes()[:200]:
        raise UsageError(f"output {out} exists and is no JSON Schema; choose another file")
    write_text(out, text + "\n")
    logger.info(f"{out}: first line of a config that uses it: # yaml-language-server: $schema={out}")
    print_end([out], (["config", "show"], {"job": job}))


def show(job: Job, config: ConfigFile = None, settings: SetOption = None, as_json: Json = False) -> None:
    """Print all settings of a job, with the defaults of those that a config does not name.

    The output is YAML that --config reads. What depends on data or weights is resolved when a run starts.
    """
    from dinomed.apps.api.configs import resolve_config
    from dinomed.apps.output import emit
    from dinomed.config import dump_yaml

    values = resolve_config(job, config, settings=settings)
    if as_json:
        emit(values, True)
        return
    print(dump_yaml(values), end="")


def diff(
    job: Job,
    first: Annotated[str, Argument(help="YAML file, a name, or the folder of a run or an adapter.")],
    second: ConfigFile = None,
    settings: SetOption = None,
    as_json: Json = False,
) -> None:
    """Print the settings in which two configs differ after their resolution.

    Without SECOND, FIRST is compared with the defaults.
    """
    from dinomed.apps.api.configs import compare_configs
    from dinomed.apps.output import build_table, emit

    rows = compare_configs(job, first, second, settings=settings)
    if as_json:
        emit({"job": job, "first": first, "second": second, "differences": rows}, True)
        return
    table = build_table(
        ("setting", str(first), "defaults" if second is None else str(second)),
        [(row["setting"], *(_text(row[side]) for side in ("first", "second"))) for row in rows],
    )
    table.caption = f"{len(rows)} settings differ" if rows else "no setting differs"
    emit({}, False, table)


def _text(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
