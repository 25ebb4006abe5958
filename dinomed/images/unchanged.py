"""Check that an image has not changed since the scan."""

import os
from pathlib import Path

from dinomed.errors import DinomedError
from dinomed.images.decode import UnreadableImage
from dinomed.images.frames import frame_digest, image_file, parse_frame, read_frame
from dinomed.images.intensity import IntensityConfig, match_channels
from dinomed.io.files import sha256_file

REMEDY = "; scan again"


class ChangedImage(UnreadableImage):
    """An image that differs from the scan; its reason ends with `REMEDY`."""


def lost_image(error: UnreadableImage) -> DinomedError:
    """Return the error of work that needs each image of a manifest, for one that cannot be read any more."""
    if isinstance(error, ChangedImage):
        return DinomedError(str(error))
    return DinomedError(f"{error}; it could be read when the manifest was made: scan the folder again")


def change_time(status: os.stat_result) -> int:
    """Return the time of the last change of a file, ns.

    `st_ctime` is later than `st_mtime` where a program has set the latter back; on Windows it is the time of creation.
    """
    return max(status.st_mtime_ns, status.st_ctime_ns)


def content_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file, or of the decoded pixels of a frame, in hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
        UnreadableImage: the frame cannot be decoded.
    """
    frame = parse_frame(path)
    if frame is None:
        return sha256_file(path)
    return frame_digest(match_channels(read_frame(path, frame, IntensityConfig())[1], 3))


def check_unchanged(
    path: str | Path, size: int, sha256: str, changed_ns: int | None = None, checked_ns: int = 0
) -> None:
    """Raise if the size or the content of an image differs from the scan. A missing file is reported by its reader.

    Of a frame, the size is that of its video, and the content is its decoded pixels. The content is hashed only if the
    file has another time than at the scan, or if that time is unknown, and if it has changed since an earlier check.
    Hashing a file takes on one core 0.04 ms of the 1.1 ms for decoding 4 kB, 0.4 ms of 26 ms for 230 kB.

    Args:
        size: of the file, in bytes.
        sha256: `content_digest` at the scan.
        changed_ns: `change_time` at the scan; None for a manifest that was read from a file.
        checked_ns: time at which an earlier check began that found no change, ns; 0 for none.

    Raises:
        ChangedImage: the file has changed.
        UnreadableImage: the frame cannot be decoded.
    """
    try:
        status = os.stat(image_file(path))
        time = change_time(status)
        same = status.st_size == size and (time == changed_ns or time < checked_ns or content_digest(path) == sha256)
    except OSError:
        return
    if not same:
        raise ChangedImage(path, f"changed since the scan{REMEDY}")
