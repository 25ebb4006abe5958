"""The program of a decoding process: it answers the requests on its standard input until that is closed."""

import os
import signal
import sys
from importlib import import_module
from typing import Any

import numpy as np

from dinomed.images.decode import NO_MEMORY, UnreadableImage
from dinomed.isolation.limits import DecodingLimits, allow_processor_time, limit_process
from dinomed.isolation.messages import read_message, write_message


def main() -> None:
    """Read the limits, report readiness, then compute one answer for each argument of each request."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)  # what a library prints does not mix with the answers
    for number in (signal.SIGINT, signal.SIGTERM):  # for the program, which closes the standard input
        signal.signal(number, signal.SIG_IGN)
    os.environ["DINOMED_DECODE_HERE"] = "1"  # a function that asks for a decoding process is in one
    settings, _ = read_message(requests, 0)
    limits = DecodingLimits(**settings["limits"])
    for module in settings["modules"]:
        import_module(module)
    limit_process(limits)
    write_message(answers, "ready")
    while True:
        try:
            (target, calls), _ = read_message(requests, 0)
        except EOFError:
            return
        module, _, name = target.partition(":")
        function = getattr(import_module(module), name)
        for arguments in calls:
            allow_processor_time(limits.cpu_s)
            _answer(answers, function, arguments)


def _answer(answers: Any, function: Any, arguments: list[Any]) -> None:
    """Write the result of a call: its content and its array, or the reason of an `UnreadableImage`."""
    try:
        content, array = function(*arguments)
    except UnreadableImage as error:
        memory = error.reason == NO_MEMORY
        write_message(answers, {"memory": True} if memory else {"unreadable": [error.path, error.reason]})
    except MemoryError:
        write_message(answers, {"memory": True})
    except Exception as error:  # a bug; the process that waits for the answer raises it
        write_message(answers, {"error": f"{type(error).__name__}: {error}"})
    else:
        assert array is None or isinstance(array, np.ndarray)
        write_message(answers, {"content": content}, array)


if __name__ == "__main__":
    main()
    sys.exit(0)
