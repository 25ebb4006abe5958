"""Turns: one computation at a time, in the order of arrival, for clients that still wait."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

MAX_WAITING = 64  # further visitors get a message that the demo is busy
CHECK_S = 0.5  # how often a waiting request checks that its client is there


class Busy(Exception):
    """Too many requests wait."""


class Gone(Exception):
    """The client of a request has closed its connection."""


class Turns:
    """Runs functions in a thread, one at a time.

    A request that waits is dropped when its client has gone, so that abandoned requests do not delay the next visitor.
    """

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        self.max_waiting, self.waiting = max_waiting, 0
        self._lock = asyncio.Lock()

    async def run(self, compute: Callable[[], Any], is_gone: Callable[[], Awaitable[bool]]) -> Any:
        """Return the result of `compute`.

        Raises:
            Busy: `max_waiting` requests wait already.
            Gone: the client left before its turn.
        """
        if self.waiting >= self.max_waiting:
            raise Busy
        self.waiting += 1
        try:
            await self._acquire(is_gone)
        finally:
            self.waiting -= 1
        try:
            if await is_gone():
                raise Gone
            return await asyncio.to_thread(compute)
        finally:
            self._lock.release()

    async def _acquire(self, is_gone: Callable[[], Awaitable[bool]]) -> None:
        turn = asyncio.ensure_future(self._lock.acquire())
        try:
            while not (await asyncio.wait({turn}, timeout=CHECK_S))[0]:
                if await is_gone():
                    raise Gone
        except BaseException:
            if not turn.cancel() and not turn.cancelled():  # the turn came in the meantime: give it back
                self._lock.release()
            raise
