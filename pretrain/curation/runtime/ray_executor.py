"""Ray executor (`dinomed[ray]`): actors on this machine or on a cluster compute the items of a stage.

The actors serve all stages: starting one takes seconds, most of them to import torch. An actor fetches the work of a
stage once, then receives one item after another. It writes no files and returns its table. If an actor dies, its items
are given to a new one, a limited number of times. Only the caller writes, and each item has one place, so no row is
lost or duplicated. Images and caches must be readable under the same paths on all machines (a shared file system).
"""

import itertools
import os
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from dinomed.errors import DinomedError, UsageError, first_line
from dinomed.log import logger
from dinomed.pretrain.curation.runtime.executor import Executor, LocalExecutor, Work, count_processors

_STORE_BYTES = 200 * 2**20  # tables are a few MB; by default Ray takes a third of the memory
_TRIES = 4  # attempts at an item whose actor dies


class RayExecutor:
    """Computes with actors on a cluster at `address`, or on a local cluster that `close` ends.

    Args:
        workers: number of actors; by default one per processor of this machine or of the cluster.

    Raises:
        UsageError: Ray is not installed, or nothing answers at the address.
    """

    def __init__(self, *, address: str | None = None, workers: int | None = None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray sends usage statistics otherwise
        try:
            import ray
        except ImportError:
            raise UsageError("`executor=ray` needs Ray: pip install 'dinomed[ray]'") from None
        self._ray = ray
        if ray.is_initialized():
            raise UsageError("`executor=ray`: Ray already runs in this process; stop it first (ray.shutdown())")
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if address is None:
            # a short path: socket names have at most 107 characters
            self._folder = tempfile.TemporaryDirectory(prefix="dmray", ignore_cleanup_errors=True)
            options: dict[str, Any] = {
                "num_cpus": workers or count_processors(), "object_store_memory": _STORE_BYTES,
                "_temp_dir": self._folder.name, "include_dashboard": False,
            }  # fmt: skip
        else:
            options = {"address": address}
        try:
            ray.init(log_to_driver=False, configure_logging=False, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = first_line(error, 150)
            raise UsageError(f"`ray_address={address}`: no Ray cluster answers ({reason})") from None
        self.workers = workers or max(int(ray.cluster_resources().get("CPU", 1)), 1)
        self._pool: list[Any] = []
        self._works = itertools.count()
        logger.info(f"Ray: {self.workers} workers")

    def map(self, work: Work, items: Iterable[Any]) -> Iterator[pa.Table]:
        """Yield ``work(item)`` for each item, in order. At most two items per worker are submitted at a time.

        Raises:
            DinomedError: the work raises it, or workers die repeatedly at the same item.
        """
        ray = self._ray
        key, shared = next(self._works), [ray.put(work)]  # in a list, so that Ray passes the reference itself
        while len(self._pool) < self.workers:
            self._pool.append(self._start())

        def submit(place: int, item: Any) -> Any:
            return self._pool[place].run.remote(key, shared, item)

        waiting: deque[tuple[Any, int, Any, int]] = deque()  # answer, worker, item, tries
        todo = iter(items)
        turn = 0
        while True:
            while len(waiting) < 2 * self.workers:
                item = next(todo, _NO_MORE)
                if item is _NO_MORE:
                    break
                waiting.append((submit(turn, item), turn, item, 1))
                turn = (turn + 1) % self.workers
            if not waiting:
                return
            answer, place, item, tries = waiting.popleft()
            try:
                yield ray.get(answer)
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                raise cause if isinstance(cause, DinomedError) else error from None
            except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
                if tries == _TRIES:
                    raise DinomedError(
                        f"Ray workers died {_TRIES} times at the same shard "
                        f"({first_line(error)}); give them more memory, or a smaller shard_size"
                    ) from None
                logger.warning(f"a Ray worker died; its shard is computed again (attempt {tries + 1} of {_TRIES})")
                self._pool[place] = self._start()
                # its other items are submitted again too, each in its place
                first = (submit(place, item), place, item, tries + 1)
                waiting_items = [
                    (submit(place, its), place, its, times) if where == place else (reply, where, its, times)
                    for reply, where, its, times in waiting
                ]
                waiting = deque([first, *waiting_items])

    def _start(self) -> Any:
        import torch

        actor = self._ray.remote(num_cpus=1, max_restarts=0)(_Worker)
        return actor.remote(torch.get_num_threads())

    def close(self) -> None:
        self._ray.shutdown()
        if self._folder is not None:
            self._folder.cleanup()


def build_executor(name: str, *, address: str | None = None, workers: int | None = None) -> Executor:
    """Return the executor `local` or `ray`.

    Args:
        address: of a running Ray cluster; None starts one on this machine.
        workers: number of Ray workers.

    Raises:
        UsageError: Ray is not installed, or no cluster answers.
    """
    return LocalExecutor() if name == "local" else RayExecutor(address=address, workers=workers)


_NO_MORE = object()


class _Worker:
    """Actor: holds the work of the present stage in its own process."""

    def __init__(self, threads: int) -> None:
        import torch

        from dinomed.log import set_level

        torch.set_num_threads(threads)  # so that products are rounded as in the calling process
        set_level("warning")
        self._key: int | None = None
        self._work: Work | None = None

    def run(self, key: int, shared: list[Any], item: Any) -> pa.Table:
        if key != self._key or self._work is None:
            import ray

            self._work = None  # the memory of the stage before is freed first
            self._work, self._key = ray.get(shared[0]), key
        return self._work(item)
