"""Names to factories, with the nearest name when one is misspelt, and entry points for plug-ins."""

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from dinomed.errors import UsageError, did_you_mean
from dinomed.log import logger

T = TypeVar("T")


class Registry(Generic[T]):
    """A dict with manners.

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
                logger.warning(f"plug-in {point.value}: there is a {self.kind} {point.name!r} already; it is not used")
                continue
            try:
                item = point.load()
            except Exception as error:  # another's code may raise anything; ours goes on without it
                said = (str(error).splitlines() or [type(error).__name__])[0]
                logger.warning(f"plug-in {point.value} ({self.kind} {point.name!r}) cannot be loaded: {said}")
                continue
            self._items.setdefault(point.name, item)  # its module may have registered it by itself

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
