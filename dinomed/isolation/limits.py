"""Limits of a decoding process, and their settings in the environment."""

import os
import sys
from dataclasses import dataclass

from dinomed.errors import UsageError


@dataclass(frozen=True)
class DecodingLimits:
    """Limits for one file in a decoding process.

    Attributes:
        memory_bytes: address space besides that of the idle process.
        cpu_s: processor time.
        wall_s: time until the answer, also if the process waits for a disk.
        output_bytes: size of the answer.
    """

    memory_bytes: int = 4 * 2**30
    cpu_s: int = 60
    wall_s: int = 240
    output_bytes: int = 3 * 2**30


def decodes_here() -> bool:
    """Return whether the environment asks for decoding in the program itself, without these limits."""
    return os.environ.get("DINOMED_DECODE_HERE", "") not in ("", "0")


def decoding_limits() -> DecodingLimits:
    """Return the limits that DINOMED_DECODE_GB and DINOMED_DECODE_S set, or the defaults.

    Raises:
        UsageError: a variable is not a positive number.
    """
    gib = _positive("DINOMED_DECODE_GB", DecodingLimits.memory_bytes / 2**30)
    seconds = _positive("DINOMED_DECODE_S", DecodingLimits.cpu_s)
    cpu_s = max(1, round(seconds))
    return DecodingLimits(memory_bytes=round(gib * 2**30), cpu_s=cpu_s, wall_s=4 * cpu_s)


def _positive(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        value = float(text or default)
    except ValueError:
        value = 0
    if not 0 < value < 1e6:
        raise UsageError(f"{name}={text}: expected a positive number")
    return value


def limit_process(limits: DecodingLimits) -> None:
    """Limit the memory of this process, and forbid that it writes files or memory dumps. No effect on Windows."""
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold the pixels of a patient
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform == "linux":  # macOS does not enforce a limit on memory
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, used + limits.memory_bytes)


def allow_processor_time(seconds: int) -> None:
    """Limit the processor time of this process to `seconds` from now on; the system then ends it by SIGXCPU."""
    if sys.platform == "win32":
        return
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, int(usage.ru_utime + usage.ru_stime) + seconds + 1)


def _lower(kind: int, value: int) -> None:
    """Set the soft limit of a resource, below its hard limit."""
    import resource

    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
