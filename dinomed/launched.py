"""Number and rank of the processes that a launcher started, from the environment.

torchrun and `dinomed pretrain --nproc N` set ``WORLD_SIZE`` and ``RANK``. ``RANK`` alone, which a shell may export, has
no meaning.
"""

import os


def was_launched() -> bool:
    """Return whether a launcher started this process as one of several."""
    return _read_number("WORLD_SIZE", 1) > 1


def launched_rank() -> int:
    """Return the rank that the launcher set, also before and after the process group exists; 0 without a launcher."""
    return _read_number("RANK", 0) if was_launched() else 0


def _read_number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default
