"""Signals that end a command: SIGTERM and SIGINT."""

import signal
import sys
import threading
from contextlib import suppress
from typing import Any

_RESEND_S = 0.1
_SIGNALS = {128 + number: number for number in (signal.SIGTERM, signal.SIGINT)}


class EndingSignals:
    """Context in which SIGTERM raises SystemExit(143), as SIGINT raises KeyboardInterrupt.

    Python ignores the exceptions of signal handlers in finalisers (`__del__`, generators that the garbage collector
    closes, callbacks of libraries), and the command would run on. Such a signal is sent again until it ends the
    command.

    Attributes:
        exit_code: 143 or 130 if an exception was ignored, else None. The command may have ended before the signal was
            sent again.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._timer: threading.Timer | None = None
        self._report = sys.unraisablehook

    def __enter__(self) -> "EndingSignals":
        self._report, sys.unraisablehook = sys.unraisablehook, self._resend
        signal.signal(signal.SIGTERM, _terminate)  # commands that save their work install their own handler
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            with suppress(SystemExit, KeyboardInterrupt):  # of the signal that is sent again just now
                self._timer.cancel()
                self._timer.join()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # raised during the exit it would only show a traceback
        sys.unraisablehook = self._report

    def _resend(self, ignored: Any) -> None:
        """Send a signal again whose exception was ignored, after the finaliser; report other exceptions."""
        error = ignored.exc_value
        code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "code", None)
        if not isinstance(error, KeyboardInterrupt | SystemExit) or code not in _SIGNALS:
            self._report(ignored)
            return
        self.exit_code = code
        self._timer = threading.Timer(_RESEND_S, _send, [_SIGNALS[code]])
        self._timer.daemon = True
        self._timer.start()


def _send(number: int) -> None:
    """Send a signal to the main thread, which it wakes from a waiting system call."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        signal.raise_signal(number)


def _terminate(signum: int, frame: Any) -> None:
    raise SystemExit(128 + signum)
