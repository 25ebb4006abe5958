"""Check of the types of arguments of the public functions, so that a wrong one is named instead of failing later."""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from dinomed.errors import UsageError

_WORDS: dict[Any, str] = {
    NoneType: "None", bool: "True or False", int: "a whole number", float: "a number", str: "a text", Path: "a path",
}  # fmt: skip
_NAMED = {
    "Manifest": "a manifest", "FrozenBackbone": "a loaded backbone", "Predictor": "a loaded adapter",
    "ImageIndex": "a loaded index", "HasFolder": "the result of the function that wrote it", "device": "a torch.device",
}  # fmt: skip
_MAX_PATH, _MAX_NAME = 4096, 255  # bytes, on Linux


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that checks the types of its arguments first."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        check_arguments(function, args, kwargs)
        return function(*args, **kwargs)

    return call


def check_arguments(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise if the type of an argument is another than the annotation of its parameter.

    Missing and unknown arguments are left to the call itself. Numbers of NumPy count as numbers. Elements of lists and
    tuples, and keys of mappings, are checked too.

    Raises:
        UsageError: names the argument, its type and the types that are accepted; an empty path is refused too.
    """
    try:
        bound = inspect.signature(function).bind_partial(*args, **kwargs)
    except TypeError:
        return
    for name, value in bound.arguments.items():
        hint = resolve_hint(function, name)
        if name == "device" and type(value).__name__ == "device":  # of torch, which is not imported here
            continue
        if not _fits(value, hint):
            kind = "None" if value is None else f"of type {type(value).__name__}"
            raise UsageError(f"`{name}` is {kind}; give {_describe(hint)}")
        if Path in hint_options(hint) and isinstance(value, str | os.PathLike):
            _check_path(name, os.fsdecode(value), hint)


def _check_path(name: str, path: str, hint: Any) -> None:
    """Raise a `UsageError` for a path that is empty, or longer than a system opens."""
    if path == "":
        raise UsageError(f"`{name}` is an empty text; give {_describe(hint)}")
    sizes = [len(part.encode("utf-8", "surrogatepass")) for part in path.split(os.sep)]
    if max(sizes) > _MAX_NAME or sum(sizes) + len(sizes) > _MAX_PATH:
        raise UsageError(
            f"`{name}` is a path of {len(path):,} characters; a path has at most {_MAX_PATH - 1:,} bytes, and each "
            f"name in it {_MAX_NAME}"
        )


def resolve_hint(function: Callable[..., Any], name: str) -> Any:
    """Return the annotation of a parameter; Any if it names what is imported for type checkers only."""
    hint = function.__annotations__.get(name, Any)
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, function.__globals__)  # the text is that of our own annotation
    except NameError:
        return Any


def hint_options(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the one type."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in inside)
    if hint is Any:
        return True
    if hint in (None, NoneType):
        return value is None
    if origin is Literal:  # the function itself names the known values
        return isinstance(value, tuple({type(option) for option in inside}))
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real)
    if hint is bool:
        return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")
    if hint is Path:
        return isinstance(value, os.PathLike)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(key, inside[0]) for key in value)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        is_list = hasattr(value, "__len__") and hasattr(value, "__iter__")
        if not is_list or isinstance(value, str | bytes | Mapping):
            return False
        if origin is tuple and Ellipsis not in inside and len(value) != len(inside):
            return False
        return not isinstance(value, list | tuple) or all(_fits(element, inside[0]) for element in value)
    return isinstance(value, hint) if isinstance(hint, type) else True


def _describe(hint: Any) -> str:
    """Return the accepted types in words, such as "a path or None"."""
    options = hint_options(hint)
    if Path in options:  # a text is a path then
        options = tuple(option for option in options if option is not str)
    words = list(dict.fromkeys(map(_word, options)))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _word(hint: Any) -> str:
    origin, inside = get_origin(hint), get_args(hint)
    if hint in _WORDS:
        return _WORDS[hint]
    if origin is Literal:
        return ", ".join(map(str, inside))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping"
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        if origin is tuple and Ellipsis not in inside:
            return f"{len(inside)} values"
        elements = {"a text": "texts", "a whole number": "whole numbers", "a number": "numbers", "a path": "paths"}
        element = elements.get(_describe(inside[0]), "")
        return f"a list of {element}" if element else "a list"
    name = getattr(hint, "__name__", str(hint))
    return _NAMED.get(name, f"a {name}")
