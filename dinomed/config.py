"""Typed configuration from YAML: a base file and short deltas, `a.b=value` overrides, errors that name file and key.

Plain YAML has traps that cost a night of training: a duplicate key wins silently, ``3e-4`` is a string, ``no`` is
False, ``010`` is 8 and ``1:30`` is 90. The loader here refuses the first and reads the others as YAML 1.2 does: a
number, a word, 10 and a word.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from dinomed.errors import UsageError, did_you_mean

MAX_BYTES = 1_000_000  # a config is a page of text; more is a mistake or an attack
C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """Base of every config: unknown keys are refused, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, data: Any) -> Any:
        """``steps: true`` would be taken as 1."""
        for name, value in data.items() if isinstance(data, Mapping) else ():
            field = cls.model_fields.get(name)
            kinds = _kinds(field.annotation) if field else set()
            values = value if isinstance(value, list | tuple) else [value]
            if kinds & {int, float} and bool not in kinds and any(isinstance(one, bool) for one in values):
                raise ValueError(
                    f"{name} is {'true' if value is True else 'false' if value is False else value}, expected a number"
                )
        return data


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that a field can be of, those of its items too."""
    parts = get_args(annotation)
    return set().union(*map(_kinds, parts)) if parts else {annotation}


class _Loader(yaml.SafeLoader):
    """Safe YAML with 1.2 booleans and numbers, no duplicate keys, no aliases (so no "billion laughs"), no tags but
    those of such values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_bool(self, node: Any) -> bool:
        text = self.construct_scalar(node)
        if text not in ("true", "True", "false", "False"):
            raise yaml.constructor.ConstructorError(None, None, f"{text!r} is not true or false", node.start_mark)
        return text in ("true", "True")

    def construct_yaml_int(self, node: Any) -> int:
        text = self.construct_scalar(node)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: a word that looks like a number to it is quoted."""


_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}
_Loader.yaml_constructors = {
    tag: build for tag, build in yaml.SafeLoader.yaml_constructors.items() if tag is None or tag in _TAGS
}
_Loader.add_constructor("tag:yaml.org,2002:bool", _Loader.construct_yaml_bool)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, regexp)
        for tag, regexp in resolvers
        if tag not in {f"tag:yaml.org,2002:{t}" for t in ("bool", "int", "float", "timestamp")}
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf)$|^\.(?:nan|NaN)$"),
    list("-+0123456789."),
)
_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML text; `source` names it in errors."""
    if len(text) > MAX_BYTES:
        raise UsageError(f"{source}: larger than {MAX_BYTES:,} bytes; this is not a config")
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UsageError(f"{source}, line {line}: {error.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UsageError(f"{source}: not valid YAML ({str(error).splitlines()[0]})") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read one YAML mapping, merged over the file that its ``base:`` key names (relative to it), if any."""
    return _read_chain(Path(path), ())


def _read_chain(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    try:
        resolved = path.resolve()
        if resolved in chain:
            raise UsageError(f"{path}: its chain of `base:` files comes back to itself")
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_BYTES + 1)  # a device has no size, and no end
    except FileNotFoundError:
        raise UsageError(f"config {path} does not exist") from None
    except (OSError, ValueError, RuntimeError) as error:  # not UTF-8; a NUL in the name; a loop of links
        raise UsageError(f"config {path} cannot be read: {error}") from None
    data = parse_yaml(text, str(path))
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise UsageError(f"{path}: a config is a mapping of keys to values, not a {type(data).__name__}")
    base = data.pop("base", None)
    if base is None:
        return data
    return merge(_read_chain(path.parent / str(base), (*chain, resolved)), data)


def merge(base: Mapping[str, Any], delta: Mapping[str, Any]) -> dict[str, Any]:
    """`delta` over `base`, mapping by mapping; anything else is replaced.

    >>> merge({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}})
    {'a': {'x': 1, 'y': 3}}
    """
    out = dict(base)
    for key, value in delta.items():
        old = out.get(key)
        out[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """``["optim.lr=3e-4"]`` to a nested mapping; values are read as YAML."""
    out: dict[str, Any] = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        keys = name.strip().split(".")
        if not equals or not all(keys):
            raise UsageError(f"--set {text!r}: expected a.b=value")
        nested: Any = parse_yaml(value, f"--set {text}")
        for key in reversed(keys):
            nested = {key: nested}
        out = merge(out, nested)
    return out


def build_config(cls: type[C], data: Mapping[str, Any], source: str) -> C:
    """Validate `data`; a `UsageError` names `source`, the key's path, and the nearest key if one is unknown."""
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        lines = [_explain(cls, problem) for problem in error.errors()]
        more = f" (and {len(lines) - 3} more)" if len(lines) > 3 else ""
        raise UsageError(f"{source}: " + "; ".join(lines[:3]) + more) from None


def load_config(cls: type[C], path: str | Path | None, overrides: Iterable[str] = ()) -> C:
    """The config of `path` (or the defaults), with overrides on top."""
    data = read_yaml(path) if path is not None else {}
    source = str(path) if path is not None else "config"
    overrides = list(overrides)
    if overrides:
        data = merge(data, parse_overrides(overrides))
        source += " with --set"
    return build_config(cls, data, source)


def to_yaml(config: Config) -> str:
    """The resolved config, as YAML that `load_config` reads back to an equal one."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _explain(cls: type[BaseModel], problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where!r}{did_you_mean(where.rpartition('.')[2], _keys_at(cls, problem['loc'][:-1]))}"
    given = problem.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool | None) else ""
    return f"{where + ': ' if where else ''}{problem['msg'].removeprefix('Value error, ')}{shown}"


def _keys_at(cls: type[BaseModel], path: Iterable[Any]) -> list[str]:
    models: list[type[BaseModel]] = [cls]
    for step in path:
        found: list[type[BaseModel]] = []
        for model in models:
            if step in model.model_fields:
                annotation = model.model_fields[step].annotation
                candidates = (annotation, *get_args(annotation))
                found += [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        models = found or models
    return [key for model in models for key in model.model_fields]
