"""Groups of options that several commands share: a dataclass of options is one parameter of a command.

::

    @dataclass(frozen=True)
    class Serving:
        host: Annotated[str, Option("--host")] = "127.0.0.1"
        port: Annotated[int | None, Option("--port")] = None

    @expand
    def segment(adapter: Adapter, serving: Serving) -> None: ...

Typer sees a function with the parameters `adapter`, `host` and `port`; the function receives a `Serving`.
"""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Any


def expand(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with each dataclass parameter replaced by the fields of the dataclass."""
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
    def run(**options: Any) -> None:
        for name, kind in kinds.items():
            options[name] = kind(**{field.name: options.pop(field.name) for field in fields(kind)})
        command(**options)

    run.__signature__ = signature.replace(parameters=flat)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return run
