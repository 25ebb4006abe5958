"""The pieces of a stage, computed by actors of Ray (`dinomed[ray]`): on this machine, or on many.

An actor gets the work once, and then one item after another; it writes nothing and returns its table. An item whose
actor dies is given to a new one, a few times at most; since only the caller writes, and each item has one place, no row
is lost or there twice. Images and stages have to be readable under the same paths everywhere (a shared file system).
"""

import os
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from dinomed.errors import DinomedError, UsageError
from dinomed.log import logger
from dinomed.pretrain.curation.runtime.executor import Executor, LocalExecutor, Work, count_processors

_STORE_BYTES = 200 * 2**20  # tables of pieces are a few MB; Ray would take a third of the machine's memory
_TRIES = 4  # of an item whose actor dies


class RayExecutor:
    """Actors on a cluster at `address`, or on one that is started here and ends with `close`.

    Args:
        workers: actors; by default one for each processor of this machine (or of the cluster).

    Raises:
        UsageError: Ray is not installed, or nothing answers at the address.
    """

    def __init__(self, *, address: str | None = None, workers: int | None = None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
        try:
            import ray
        except ImportError:
            raise UsageError("--engine ray needs Ray: pip install 'dinomed[ray]'") from None
        self._ray = ray
        if ray.is_initialized():
            raise UsageError("--engine ray: Ray runs in this process already; end it first (ray.shutdown())")
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if address is None:
            # short: names of sockets below it may have 107 characters
            self._folder = tempfile.TemporaryDirectory(prefix="dmray", ignore_cleanup_errors=True)
            own: dict[str, Any] = {
                "num_cpus": workers or count_processors(), "object_store_memory": _STORE_BYTES,
                "_temp_dir": self._folder.name, "include_dashboard": False,
            }  # fmt: skip
        else:
            own = {"address": address}
        try:
            ray.init(log_to_driver=False, configure_logging=False, **own)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:150]
            raise UsageError(f"--ray-address {address}: no cluster of Ray answers ({reason})") from None
        self.workers = workers or max(int(ray.cluster_resources().get("CPU", 1)), 1)
        logger.info(f"Ray: {self.workers} workers")

    def map(self, work: Work, items: Iterable[Any]) -> Iterator[pa.Table]:
        """`work` of each item, in their order; at most two items for each worker are under way.

        Raises:
            DinomedError: what the work raises, or an item that workers die of again and again.
        """
        import torch

        ray = self._ray
        actor = ray.remote(num_cpus=1, max_restarts=0)(_Worker)
        shared = ray.put(work)
        threads = torch.get_num_threads()

        def start() -> Any:
            return actor.remote(shared, threads)

        pool = [start() for _ in range(self.workers)]
        waiting: deque[tuple[Any, int, Any, int]] = deque()  # answer, worker, item, tries
        todo = iter(items)
        turn = 0
        try:
            while True:
                while len(waiting) < 2 * self.workers:
                    item = next(todo, _NO_MORE)
                    if item is _NO_MORE:
                        break
                    waiting.append((pool[turn].run.remote(item), turn, item, 1))
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
                            f"workers of Ray died {_TRIES} times at the same piece "
                            f"({str(error).splitlines()[0][:100]}); give them more memory, or a smaller shard_size"
                        ) from None
                    logger.warning(f"a worker of Ray died; its piece is computed again (try {tries + 1} of {_TRIES})")
                    pool[place] = start()
                    # what else it had to do is asked for again too, each in its place
                    first = (pool[place].run.remote(item), place, item, tries + 1)
                    rest = [
                        (pool[place].run.remote(its), place, its, times)
                        if where == place
                        else (reply, where, its, times)
                        for reply, where, its, times in waiting
                    ]
                    waiting = deque([first, *rest])
        finally:
            for worker in pool:
                ray.kill(worker)

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
    """Holds the work in a process of its own."""

    def __init__(self, work: Work, threads: int) -> None:
        import torch

        from dinomed.log import set_level

        torch.set_num_threads(threads)  # products are then rounded as in the process that asks
        set_level("warning")
        self.work = work

    def run(self, item: Any) -> pa.Table:
        return self.work(item)
