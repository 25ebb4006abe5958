"""Signals whose exceptions Python ignores: sent again until they end the command, and never after its end."""

import os
import signal
import sys
import threading
import time
from typing import Any

import pytest

from dinomed.apps import ending_signals
from dinomed.apps.ending_signals import EndingSignals


class Interrupted:
    """An object whose finaliser receives SIGINT."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def wait(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


def drop_and_wait(kind: type) -> None:
    kind()
    wait(10)


def test_signals_that_were_ignored_are_not_sent_after_the_end() -> None:
    with EndingSignals() as ending:
        Interrupted()
        Interrupted()
    wait(0.4)
    assert ending.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_arrives_before_the_first_is_sent_again_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*arguments: Any) -> threading.Timer:
        os.kill(os.getpid(), signal.SIGINT)
        return timer(*arguments)

    timer = threading.Timer
    monkeypatch.setattr(ending_signals.threading, "Timer", start)
    with pytest.raises(KeyboardInterrupt), EndingSignals():
        drop_and_wait(Interrupted)


def test_a_signal_during_the_report_of_another_exception_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    class Faulty:
        def __del__(self) -> None:
            raise ValueError

    reports = []

    def report(ignored: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        reports.append(ignored.exc_type)

    monkeypatch.setattr(sys, "unraisablehook", report)
    with pytest.raises(KeyboardInterrupt), EndingSignals() as ending:
        drop_and_wait(Faulty)
    assert (reports, ending.exit_code) == ([ValueError], 130)
