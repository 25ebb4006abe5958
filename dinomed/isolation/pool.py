"""Decoding of files from outside in separate processes, with limits on memory and time for each file.

A file that exceeds a limit or ends its process is unreadable; the other files of the same request are decoded by a new
process. A process that ended for another reason may have been ended from outside: the file is tried once more, in a new
process of its own, before it is called unreadable.

The processes are kept for the next request, and end with the program.
"""

import atexit
import os
import threading
import time
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from dinomed.errors import DinomedError
from dinomed.images.decode import UnreadableImage
from dinomed.isolation.limits import decodes_here, decoding_limits
from dinomed.isolation.process import DecodingProcess, WorkerEnded

Answer = tuple[Any, np.ndarray | None]
"""Content of JSON types, and an array or None."""
_MODULES = ("dinomed.datasets.scan.facts",)
_WATCH_S = 0.5
_REMEDY = "free memory, or set DINOMED_DECODE_HERE=1 to decode without limits"


class EndedDecoding(UnreadableImage):
    """A file that exceeded a limit or ended its decoding process."""


class DecodingPool:
    """A pool of decoding processes that several threads use at the same time; each thread has a process of its own."""

    def __init__(self) -> None:
        self.limits, self.isolated, self._owner = decoding_limits(), not decodes_here(), os.getpid()
        self._idle: list[DecodingProcess] = []
        self._all: set[DecodingProcess] = set()
        self._lock = threading.Lock()
        self._watchdog: threading.Thread | None = None

    def start(self, count: int) -> None:
        """Start processes so that at least `count` are idle."""
        if self.isolated:
            for _ in range(count - len(self._idle)):
                self._give_back(self._new())

    def run(self, target: str, calls: Sequence[Sequence[Any]]) -> list[Answer | UnreadableImage]:
        """Call a function in a decoding process, once for each of `calls`.

        Args:
            target: ``module:function`` of dinomed; it returns an `Answer`.
            calls: arguments of JSON types, the first one the path of a file.

        Returns:
            The answer for each call, or the error of its file.

        Raises:
            DinomedError: no process can be started, or the function raised an error that does not concern its file.
        """
        if not self.isolated:
            return [_call_here(target, call) for call in calls]
        answers: list[Answer | UnreadableImage] = []
        while len(answers) < len(calls):
            process = self._take()
            try:
                complete = self._collect(process, target, calls, answers)
            except BaseException:
                self._remove(process)
                raise
            if complete:
                self._give_back(process)
                break
            self._remove(process)
        return answers

    def _collect(
        self, process: DecodingProcess, target: str, calls: Sequence[Sequence[Any]], answers: list[Any]
    ) -> bool:
        """Append the answers that are missing; return False if the process cannot be used for another request."""
        process.request(target, calls[len(answers) :])
        while len(answers) < len(calls):
            try:
                answer = process.answer()
            except WorkerEnded as ended:
                call = calls[len(answers)]
                answers.append(
                    self._second_try(target, call)
                    if ended.reason is None
                    else EndedDecoding(str(call[0]), ended.reason)
                )
                return False
            if "memory" in answer[0]:  # the files before may have used the memory up
                answers.append(self._second_try(target, calls[len(answers)]))
                return False
            answers.append(_unpack(answer))
        return True

    def close(self) -> None:
        """End all processes; no effect in a forked process."""
        if os.getpid() != self._owner:
            return
        for process in list(self._all):
            self._remove(process)
        self._idle.clear()

    def _second_try(self, target: str, call: Sequence[Any]) -> Answer | UnreadableImage:
        """Call a function in a new process that has not read another file."""
        process = self._new()
        try:
            process.wait_until_ready()
            process.request(target, [call])
            answer = process.answer()
        except WorkerEnded as ended:
            return EndedDecoding(str(call[0]), ended.reason or f"its decoder ended by {process.how_it_ended()}")
        finally:
            self._remove(process)
        if "memory" in answer[0]:
            limit = self.limits.memory_bytes / 2**30
            return EndedDecoding(str(call[0]), f"needs more than {limit:g} GiB to decode; set DINOMED_DECODE_GB")
        return _unpack(answer)

    def _new(self) -> DecodingProcess:
        try:
            process = DecodingProcess(self.limits, _MODULES)
        except OSError as error:
            raise DinomedError(f"cannot start a decoding process ({error.strerror}); {_REMEDY}") from None
        with self._lock:
            self._all.add(process)
            if self._watchdog is None:
                self._watchdog = threading.Thread(target=self._watch, name="decoding watchdog", daemon=True)
                self._watchdog.start()
        return process

    def _take(self) -> DecodingProcess:
        """Return an idle process, or a new one."""
        with self._lock:
            process = self._idle.pop() if self._idle else None
        if process is not None and process.process.poll() is not None:  # ended while it was idle
            self._remove(process)
            process = None
        process = process or self._new()
        try:
            process.wait_until_ready()
        except WorkerEnded:
            self._remove(process)
            raise DinomedError(f"a decoding process did not start ({process.how_it_ended()}); {_REMEDY}") from None
        except BaseException:
            self._remove(process)
            raise
        return process

    def _give_back(self, process: DecodingProcess) -> None:
        with self._lock:
            self._idle.append(process)

    def _remove(self, process: DecodingProcess) -> None:
        process.close()
        with self._lock:
            self._all.discard(process)

    def _watch(self) -> None:
        """End the processes that are past their deadline."""
        while True:
            time.sleep(_WATCH_S)
            with self._lock:
                processes = list(self._all)
            for process in processes:
                process.expire()


def _unpack(answer: Answer) -> Answer | UnreadableImage:
    content, array = answer
    if "unreadable" in content:
        return UnreadableImage(*content["unreadable"])
    if "error" in content:
        raise DinomedError(f"a decoding process failed: {content['error']}")
    return content["content"], array


def _call_here(target: str, call: Sequence[Any]) -> Answer | UnreadableImage:
    """Call a function in this process."""
    module, _, name = target.partition(":")
    try:
        answer: Answer = getattr(import_module(module), name)(*call)
    except UnreadableImage as error:
        return error
    return answer


def shared_pool() -> DecodingPool:
    """Return the pool of this process; a forked process gets its own."""
    return _pool_of(os.getpid())


@cache
def _pool_of(_process_id: int) -> DecodingPool:
    pool = DecodingPool()
    atexit.register(pool.close)
    return pool
