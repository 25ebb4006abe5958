"""Options that several commands share, written once: a dataclass of them is one parameter of a command's function.

::

    @dataclass(frozen=True)
    class Serving:
        host: Annotated[str, Option("--host")] = "127.0.0.1"
        port: Annotated[int | None, Option("--port")] = None

    @expand
    def segment(adapter: Adapter, serving: Serving) -> None: ...

Typer sees a function of `adapter`, `host` and `port`, and the function gets a `Serving` of what was given.
"""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Any


def expand(command: Callable[..., None]) -> Callable[..., None]:
    """The command with each parameter that is a dataclass replaced by the fields of it."""
    signature = inspect.signature(command, eval_str=True)
    kinds: dict[str, Any] = {p.name: p.annotation for p in signature.parameters.values() if is_dataclass(p.annotation)}
    flat: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name in kinds:
            flat += [
                inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, annotation=field.type,
                    default=inspect.Parameter.empty if field.default is MISSING else field.default,
                )
                for field in fields(kinds[parameter.name])
            ]  # fmt: skip
        else:
            flat.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(command)
    def run(**given: Any) -> None:
        for name, kind in kinds.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        command(**given)

    run.__signature__ = signature.replace(parameters=flat)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return run
