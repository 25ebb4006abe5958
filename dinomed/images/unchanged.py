"""Check that an image file has not changed since the scan."""

import os
from pathlib import Path

from dinomed.images.decode import UnreadableImage
from dinomed.io.files import sha256_file


def change_time(status: os.stat_result) -> int:
    """Return the time of the last change of a file, ns.

    `st_ctime` is later than `st_mtime` where a program has set the latter back; on Windows it is the time of creation.
    """
    return max(status.st_mtime_ns, status.st_ctime_ns)


def check_unchanged(path: str | Path, size: int, sha256: str, changed_ns: int | None = None) -> None:
    """Raise if the size or the content of a file differs from the scan. A missing file is reported by its reader.

    The file is hashed only if it has another time than at the scan, or if that time is unknown. Hashing takes on one
    core 0.04 ms of the 1.1 ms for decoding 4 kB, 0.4 ms of 26 ms for 230 kB.

    Args:
        size: in bytes.
        sha256: of the whole file, in hexadecimal digits.
        changed_ns: `change_time` at the scan; None for a manifest that was read from a file.

    Raises:
        UnreadableImage: the file has changed.
    """
    try:
        status = os.stat(path)
        same = status.st_size == size and (change_time(status) == changed_ns or sha256_file(path) == sha256)
    except OSError:
        return
    if not same:
        raise UnreadableImage(path, "changed since the scan; scan again")
