"""Registries of factories by name, with entry points for plug-ins."""

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from dinomed.errors import UsageError, did_you_mean, first_line
from dinomed.log import logger

T = TypeVar("T")


class Registry(Generic[T]):
    """Items by name; an unknown name raises a `UsageError` with the nearest name.

    Args:
        kind: noun for messages, such as ``backbone``.
        entry_point_group: entry points that add items; they are loaded at the first unknown name.

    >>> fruit = Registry("fruit")
    >>> @fruit.register("apple")
    ... class Apple: ...
    >>> fruit["aple"]
    Traceback (most recent call last):
    dinomed.errors.UsageError: unknown fruit 'aple'; did you mean 'apple'?
    """

    def __init__(self, kind: str, entry_point_group: str | None = None) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}
        self._group = entry_point_group

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that adds an item."""

        def add(item: T) -> T:
            if name in self._items:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._items[name] = item
            return item

        return add

    def _load_plugins(self) -> None:
        group, self._group = self._group, None
        for point in entry_points(group=group) if group else ():
            if point.name in self._items:
                logger.warning(f"plug-in {point.value} is not used: {self.kind} {point.name!r} exists already")
                continue
            try:
                item = point.load()
            except Exception as error:  # code of a plug-in may raise any error; dinomed continues without it
                logger.warning(
                    f"plug-in {point.value} ({self.kind} {point.name!r}) cannot be loaded: {first_line(error)}"
                )
                continue
            self._items.setdefault(point.name, item)  # its module may have registered it already

    def __getitem__(self, name: str) -> T:
        if name not in self._items:
            self._load_plugins()
        try:
            return self._items[name]
        except KeyError:
            raise UsageError(f"unknown {self.kind} {name!r}{did_you_mean(name, self._items)}") from None

    def __contains__(self, name: object) -> bool:
        self._load_plugins()
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        self._load_plugins()
        return iter(sorted(self._items))
