"""Typed configuration from YAML: a base file, deltas, ``a.b=value`` overrides, and errors that name file and key.

YAML 1.1 silently accepts duplicate keys and reads ``3e-4`` as a string, ``no`` as False, ``010`` as 8 and ``1:30`` as
90. The loader refuses duplicate keys and reads the others as YAML 1.2 does: a number, a string, 10 and a string.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from dinomed.errors import UsageError, did_you_mean, first_line, system_reason

MAX_BYTES = 1_000_000  # a larger file is a mistake or an attack
C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """Base class of all configs: unknown keys are refused, instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_booleans_for_numbers(cls, data: Any) -> Any:
        """Refuse booleans for numbers: pydantic reads ``steps: true`` as 1."""
        for name, value in data.items() if isinstance(data, Mapping) else ():
            field = cls.model_fields.get(name)
            kinds = _kinds(field.annotation) if field else set()
            values = value if isinstance(value, list | tuple) else [value]
            if kinds & {int, float} and bool not in kinds and any(isinstance(item, bool) for item in values):
                raise ValueError(
                    f"{name} is {'true' if value is True else 'false' if value is False else value}, expected a number"
                )
        return data


def _kinds(annotation: Any) -> set[Any]:
    """Return the plain types of a field and of its items."""
    parts = get_args(annotation)
    return set().union(*map(_kinds, parts)) if parts else {annotation}


_MAX_DIGITS = 100  # of an integer; the settings need at most 20


class _Loader(yaml.SafeLoader):
    """Loader of safe YAML with the booleans and numbers of YAML 1.2, and only their tags.

    Duplicate keys and aliases are refused; aliases allow files that expand to any size.
    """

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
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not a string", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} occurs twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_bool(self, node: Any) -> bool:
        text = self.construct_scalar(node)
        if text not in ("true", "True", "false", "False"):
            raise yaml.constructor.ConstructorError(None, None, f"{text!r} is not true or false", node.start_mark)
        return text in ("true", "True")

    def construct_yaml_int(self, node: Any) -> int:
        text = self.construct_scalar(node)
        if len(text) > _MAX_DIGITS:
            message = f"a number of {len(text):,} digits, over the limit of {_MAX_DIGITS}"
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


class _Dumper(yaml.SafeDumper):
    """Dumper for `_Loader`: a string that `_Loader` reads as a number is quoted."""


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
    """Parse YAML text.

    Args:
        source: name of the text in error messages.

    Raises:
        UsageError: the text is too long or is no valid YAML.
    """
    if len(text) > MAX_BYTES:
        raise UsageError(f"{source}: larger than {MAX_BYTES:,} bytes; give a config file")
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UsageError(f"{source}, line {line}: {error.problem}") from None
    except Exception as error:  # PyYAML raises errors of many types, such as an IndexError for `!!float ""`
        raise UsageError(f"{source}: not valid YAML ({first_line(error)})") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping, merged over the file that its key ``base`` names, relative to its own folder.

    Raises:
        UsageError: a file does not exist, cannot be read, or is no mapping; or the ``base`` keys form a loop.
    """
    return _read_chain(Path(path), ())


def _read_text(path: Path) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(MAX_BYTES + 1)  # a device has no size and no end
    except FileNotFoundError:
        raise UsageError(f"config {path} does not exist") from None
    except UnicodeDecodeError:
        raise UsageError(f"config {path} is not UTF-8 text; give a YAML file, saved in UTF-8") from None
    except OSError as error:
        raise UsageError(f"config {path} cannot be read: {system_reason(error)}") from None


def _read_chain(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    try:
        resolved = path.resolve()
        if resolved in chain:
            raise UsageError(f"{path}: the `base:` keys form a loop; remove one")
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the name; a loop of links
        raise UsageError(f"config {path} cannot be read: {error}") from None
    data = parse_yaml(_read_text(path), str(path))
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise UsageError(f"{path}: a config is a mapping of keys to values, not a {type(data).__name__}")
    base = data.pop("base", None)
    if base is None:
        return data
    place = path.parent / str(base)
    if not os.path.lexists(place):
        raise UsageError(f"{path}: its base {place} does not exist; give a path relative to the folder of {path.name}")
    return merge(_read_chain(place, (*chain, resolved)), data)


def merge(base: Mapping[str, Any], delta: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `delta` over `base`: mappings are merged key by key, other values are replaced.

    >>> merge({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}})
    {'a': {'x': 1, 'y': 3}}
    """
    out = dict(base)
    for key, value in delta.items():
        old = out.get(key)
        out[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Parse overrides such as ``["optim.lr=3e-4"]`` to a nested mapping; values are read as YAML.

    Raises:
        UsageError: an override is not ``a.b=value``.
    """
    out: dict[str, Any] = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        keys = name.strip().split(".")
        if not equals or not all(keys):
            raise UsageError(f"`settings=['{text}']`: expected a.b=value")
        nested: Any = parse_yaml(value, f"`settings=['{text}']`")
        for key in reversed(keys):
            nested = {key: nested}
        out = merge(out, nested)
    return out


def build_config(cls: type[C], data: Mapping[str, Any], source: str) -> C:
    """Validate `data`.

    Raises:
        UsageError: names `source`, the path of the key, and for an unknown key the nearest one.
    """
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        lines = [_explain(cls, problem) for problem in error.errors()]
        suffix = f" (and {len(lines) - 3} more)" if len(lines) > 3 else ""
        raise UsageError(f"{source}: " + "; ".join(lines[:3]) + suffix) from None


def read_saved_config(cls: type[C], path: Path) -> C:
    """Read a config that `to_yaml` wrote, without a `base`.

    Raises:
        UsageError: the file does not exist, is damaged, or has other keys than `cls`.
    """
    return build_config(cls, parse_yaml(_read_text(path), str(path)), str(path))


def load_config(cls: type[C], path: str | Path | None, overrides: Iterable[str] = ()) -> C:
    """Load the config of `path`, or the defaults for None, and apply the overrides.

    Raises:
        UsageError: as `read_yaml`, `parse_overrides` and `build_config`.
    """
    data = read_yaml(path) if path is not None else {}
    source = str(path) if path is not None else "config"
    overrides = list(overrides)
    if overrides:
        data = merge(data, parse_overrides(overrides))
        source += " with `settings`"
    return build_config(cls, data, source)


def to_yaml(config: Config) -> str:
    """Return the resolved config as YAML; `load_config` reads it back to an equal config."""
    return dump_yaml(config.model_dump(mode="json"))


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Return YAML that `parse_yaml` reads back to equal values."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _explain(cls: type[BaseModel], problem: Any) -> str:
    """Return the message for one validation error."""
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where!r}{did_you_mean(where.rpartition('.')[2], _keys_at(cls, problem['loc'][:-1]))}"
    value = problem.get("input")
    shown = f" (given: {value!r})" if isinstance(value, str | int | float | bool | None) else ""
    return f"{where + ': ' if where else ''}{problem['msg'].removeprefix('Value error, ')}{shown}"


def _keys_at(cls: type[BaseModel], path: Iterable[Any]) -> list[str]:
    """Return the keys that are valid at a path."""
    models: list[type[BaseModel]] = [cls]
    for step in path:
        nested: list[type[BaseModel]] = []
        for model in models:
            if step in model.model_fields:
                annotation = model.model_fields[step].annotation
                candidates = (annotation, *get_args(annotation))
                nested += [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        models = nested or models
    return [key for model in models for key in model.model_fields]


def flatten_settings(config: Config) -> dict[str, Any]:
    """Return all settings of a config by their full names, such as ``backbone.embed_dim``."""
    return _flatten(config.model_dump(mode="json"))


def _flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        flat |= _flatten(value, name + ".") if isinstance(value, dict) else {name: value}
    return flat
