"""Computing results ahead of their use in threads, and splitting items into batches.

Threads and not processes: Pillow, OpenCV and torchvision release the interpreter while they work, and nothing has to be
started or copied.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetch(
    function: Callable[[T], R], items: Iterable[T], workers: int | None = None, ahead: int = 16
) -> Iterator[R]:
    """Apply `function` to each item in threads and yield the results in the order of the items.

    The threads end before the last result is yielded, so a caller that takes exactly all results leaves none behind.
    A generator that is closed earlier does not wait for them. Often the garbage collector closes it, and Python ignores
    the exception of a signal that arrives meanwhile.

    Args:
        workers: threads; None uses one for each processor, at most 8.
        ahead: results that may be complete before they are used, besides one for each thread.
    """
    workers = workers or min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
    waiting: deque[Future[R]] = deque()
    wait = True
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers + ahead:
                yield waiting.popleft().result()
        while waiting:
            result = waiting.popleft().result()
            if not waiting:
                pool.shutdown()
            yield result
    except GeneratorExit:
        wait = False
        raise
    finally:
        pool.shutdown(wait, cancel_futures=True)


def batched(items: Iterable[T], size: int, key: Callable[[T], object] | None = None) -> Iterator[list[T]]:
    """Split items into lists of `size`; the last one may be shorter.

    Args:
        key: a list has items of one key, and is shorter where the key changes; an item of the key None fits any list.

    >>> list(batched("aabAA", 3, str.lower))
    [['a', 'a'], ['b'], ['A', 'A']]
    """
    if key is None:
        iterator = iter(items)
        while batch := list(islice(iterator, size)):
            yield batch
        return
    batch, common = [], None
    for item in items:
        value = key(item)
        if batch and None not in (value, common) and value != common:
            yield batch
            batch, common = [], None
        batch.append(item)
        common = value if common is None else common
        if len(batch) == size:
            yield batch
            batch, common = [], None
    if batch:
        yield batch
