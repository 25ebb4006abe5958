"""Signals that end a command: SIGTERM and SIGINT."""

import signal
import sys
import threading
from types import FrameType
from typing import Any

_RESEND_S = 0.1
_SIGNALS = {128 + number: number for number in (signal.SIGTERM, signal.SIGINT)}


class EndingSignals:
    """Context in which SIGTERM raises SystemExit(143), and SIGINT KeyboardInterrupt.

    Python ignores the exceptions of signal handlers in finalisers (`__del__`, generators that the garbage collector
    closes, callbacks of libraries), and the command would run on. Such a signal is sent again until it ends the
    command.

    Attributes:
        exit_code: 143 or 130 if an exception was ignored, else None. The command may have ended before the signal was
            sent again.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._timers: list[threading.Timer] = []
        self._waiting = self._ended = False
        self._report = sys.unraisablehook

    def __enter__(self) -> "EndingSignals":
        self._report, sys.unraisablehook = sys.unraisablehook, self._resend
        signal.signal(signal.SIGTERM, self._handle)  # commands that save their work install their own handler
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell lets background jobs ignore it
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        for timer in self._timers:
            timer.cancel()
            timer.join()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # raised during the exit it would only show a traceback
        if signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = self._report

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Raise the exception of a signal. Inside `_resend` it would be ignored, so the signal is sent again."""
        if self._ended:
            return
        while frame is not None:
            if frame.f_code is EndingSignals._resend.__code__:
                self._send_later(number)
                return
            frame = frame.f_back
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    def _resend(self, ignored: Any) -> None:
        """Send a signal again whose exception was ignored, after the finaliser; report other exceptions."""
        error = ignored.exc_value
        code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "code", None)
        if isinstance(error, KeyboardInterrupt | SystemExit) and code in _SIGNALS:
            self._send_later(_SIGNALS[code])
        else:
            self._report(ignored)

    def _send_later(self, number: int) -> None:
        """Send a signal after `_RESEND_S` seconds, if none is to be sent already."""
        if self._waiting:  # also if a signal arrives during the lines below
            return
        self._waiting, self.exit_code = True, 128 + number
        timer = threading.Timer(_RESEND_S, self._send, [number])
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def _send(self, number: int) -> None:
        """Send a signal to the main thread, which it wakes from a waiting system call."""
        self._waiting = False
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(threading.main_thread().ident or 0, number)
        else:
            signal.raise_signal(number)
