"""Graceful stop of a run by a signal."""

import contextlib
import signal
from types import FrameType
from typing import Any


class GracefulStop:
    """Context in which the first SIGTERM or SIGINT ends the run after the current step, the second one immediately.

    `exit_code` is None until a signal arrives, then 128 plus its number.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> "GracefulStop":
        with contextlib.suppress(ValueError):  # not in the main thread: the caller handles signals
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.exit_code is not None:
            raise SystemExit(128 + number)
        self.exit_code = 128 + number
