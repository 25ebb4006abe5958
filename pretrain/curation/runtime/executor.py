"""Where the pieces of a stage are computed: in this process, or by the workers of Ray.

An engine maps a piece of work over items, in their order. The work is a value that can be sent to another process; what
it needs (images, vectors) it reads from files, and what it computes it returns: only the caller writes. So whichever
engine runs, and whatever dies, each piece is written once.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import pyarrow as pa

Work = Callable[[Any], pa.Table]


class Engine(Protocol):
    name: str

    def map(self, work: Work, items: Iterable[Any]) -> Iterator[pa.Table]:
        """`work` of each item, in their order."""
        ...

    def close(self) -> None: ...


class LocalEngine:
    """In this process; the work has threads of its own."""

    name = "local"

    def map(self, work: Work, items: Iterable[Any]) -> Iterator[pa.Table]:
        return map(work, items)

    def close(self) -> None:
        pass


def build_engine(name: str, *, address: str | None = None, workers: int | None = None) -> Engine:
    """`local` or `ray`; `address` is that of a Ray cluster, `workers` the number of its actors.

    Raises:
        UsageError: Ray is not installed, or no cluster answers.
    """
    if name == "local":
        return LocalEngine()
    from dinomed.pretrain.curation.runtime.ray_executor import RayEngine

    return RayEngine(address=address, workers=workers)
