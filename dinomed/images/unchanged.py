"""Check that an image file has not changed since the scan."""

import os
from pathlib import Path

from dinomed.images.decode import UnreadableImage
from dinomed.io.files import sha256_file


def check_unchanged(path: str | Path, size: int, sha256: str) -> None:
    """Raise if the size or the content of a file differs from the scan.

    The file is read here and again for decoding, but only once from the disk (on one core 0.04 ms of the 1.1 ms for
    decoding 4 kB, 0.4 ms of 26 ms for 230 kB). A missing file is not reported here but by the reader.

    Args:
        size: in bytes.
        sha256: of the whole file, in hexadecimal digits.

    Raises:
        UnreadableImage: the file has changed.
    """
    if not os.path.isfile(path):
        return
    try:
        same = os.path.getsize(path) == size and sha256_file(path) == sha256
    except OSError:
        return
    if not same:
        raise UnreadableImage(path, "changed since the scan; scan again")
