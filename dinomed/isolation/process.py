"""One decoding process, seen from the program that uses it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np

from dinomed.isolation.limits import DecodingLimits
from dinomed.isolation.messages import read_message, write_message

_START_S = 120
_CODE = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from dinomed.isolation.worker import main; main()"


class WorkerEnded(Exception):
    """A decoding process ended without an answer. `reason` is None if a second try may succeed."""

    def __init__(self, reason: str | None) -> None:
        super().__init__(reason)
        self.reason = reason


class DecodingProcess:
    """A decoding process. It starts at once; the first answer waits until it is ready.

    Args:
        limits: for each file.
        modules: names of the modules that it imports before it is ready.
    """

    def __init__(self, limits: DecodingLimits, modules: Sequence[str]) -> None:
        self.limits, self.deadline, self.expired = limits, float("inf"), False
        self._ready = False
        environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        paths = [path or os.getcwd() for path in sys.path]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _CODE, json.dumps(paths)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        with suppress(OSError):
            self._write({"limits": asdict(limits), "modules": list(modules)})

    def wait_until_ready(self) -> None:
        """Wait for the first message.

        Raises:
            WorkerEnded: the process could not start.
        """
        if not self._ready:
            self._read(_START_S)
            self._ready = True

    def request(self, target: str, calls: Sequence[Sequence[Any]]) -> None:
        """Send arguments for calls of the function `target`, ``module:name``. There is one answer for each."""
        with suppress(OSError):  # a process that has ended is noticed when its answer is read
            self._write([target, [list(call) for call in calls]])

    def answer(self) -> tuple[Any, np.ndarray | None]:
        """Return the next answer.

        Raises:
            WorkerEnded: the process has ended, or was ended because of its limits.
        """
        return self._read(self.limits.wall_s)

    def expire(self) -> None:
        """End the process if it is past its deadline."""
        if time.monotonic() > self.deadline:
            self.expired = True
            self.process.kill()

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()

    def _write(self, content: Any) -> None:
        assert self.process.stdin is not None
        write_message(self.process.stdin, content)  # type: ignore[arg-type]

    def _read(self, seconds: float) -> tuple[Any, np.ndarray | None]:
        assert self.process.stdout is not None
        self.deadline = time.monotonic() + seconds
        try:
            return read_message(self.process.stdout, self.limits.output_bytes)  # type: ignore[arg-type]
        except EOFError:
            raise WorkerEnded(self._reason()) from None
        except (ValueError, TypeError, MemoryError):
            self.process.kill()
            raise WorkerEnded("its decoded pixels exceed the limit of a decoding process") from None
        finally:
            self.deadline = float("inf")

    def _reason(self) -> str | None:
        """Return why the process ended, if its limits did it."""
        code = self.process.wait()
        if self.expired:
            return f"not decoded within {self.limits.wall_s} s"
        if hasattr(signal, "SIGXCPU") and code == -signal.SIGXCPU:
            return f"needs more than {self.limits.cpu_s} s of processor time to decode"
        return None

    def how_it_ended(self) -> str:
        """Return the signal or the exit code of an ended process."""
        code = self.process.wait()
        with suppress(ValueError):
            return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"exit code {code}"
