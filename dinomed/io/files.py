"""Atomic writing of files (temporary file in the same folder, fsync, rename), JSON, checksums and names of files."""

import errno
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from dinomed.errors import DinomedError, first_line, system_reason


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` after the block, or remove it after an error.

    Raises:
        DinomedError: the folder cannot be written, or the disk is full; the old file is unchanged.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".tmp-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise DinomedError(f"cannot write {path}: {system_reason(error)}") from None
    temporary = Path(name)
    try:
        yield temporary
        sync(temporary)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp creates private files
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise DinomedError(f"cannot write {path}: {system_reason(error)}") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically.

    Raises:
        DinomedError: the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def append_text(path: str | Path, text: str) -> None:
    """Append UTF-8 text to a file such as a log; a killed process may leave an incomplete last line.

    Raises:
        DinomedError: the file cannot be written, such as on a full disk.
    """
    try:
        with open(path, "a", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except OSError as error:
        raise DinomedError(f"cannot write {path}: {system_reason(error)}") from None


def write_json(path: str | Path, data: Any) -> None:
    """Write JSON atomically; NaN and infinities become null, since JSON does not have them.

    Raises:
        DinomedError: the file cannot be written.
    """
    write_text(path, to_json(data, indent=2) + "\n")


def to_json(data: Any, indent: int | None = None) -> str:
    """Return strict JSON (NaN and infinities as null) with keys in the given order."""
    return json.dumps(_finite(data), indent=indent, ensure_ascii=False, allow_nan=False)


def hash_json(data: Any) -> str:
    """Return the SHA-256 of the strict JSON of `data`, 64 hex digits."""
    return hashlib.sha256(to_json(data).encode()).hexdigest()


def _finite(data: Any) -> Any:
    if isinstance(data, float) and not abs(data) < float("inf"):
        return None
    if isinstance(data, dict):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return data


def read_json(path: str | Path, remedy: str = "copy it again, or write it again") -> Any:
    """Read JSON in UTF-8.

    Args:
        remedy: end of the message if the content is no JSON.

    Raises:
        DinomedError: the file is missing, cut off, no text or no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DinomedError(f"{path} cannot be read: {system_reason(error)}") from None
    except UnicodeDecodeError:
        reason = "it is not UTF-8 text"
    except json.JSONDecodeError as error:
        reason = f"not valid JSON, line {error.lineno}: {error.msg}" if error.doc.strip() else "it is empty"
    except RecursionError:
        reason = "its values are nested too deeply"
    except ValueError as error:  # such as a number of more than 4300 digits
        reason = f"not valid JSON ({first_line(error)})"
    raise DinomedError(f"{path} cannot be read: {reason}; {remedy}")


def sha256_file(path: str | Path) -> str:
    """Return the SHA-256 of a file in 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_names(images: Sequence[str], suffix: str = ".png") -> list[str]:
    """Return a relative path for each image: its own with the suffix .png.

    Where two images would share a path, as a.jpg and a.png do, both keep their whole name: a.jpg.png, a.png.png.

    >>> file_names(["x/a.jpg", "b.jpg", "b.png"])
    ['x/a.png', 'b.jpg.png', 'b.png.png']
    """
    whole = [False] * len(images)
    while True:
        names = [
            image + suffix if keep else str(PurePosixPath(image).with_suffix(suffix))
            for image, keep in zip(images, whole, strict=True)
        ]
        counts = Counter(name.casefold() for name in names)  # some file systems know no case
        clash = [counts[name.casefold()] > 1 and not keep for name, keep in zip(names, whole, strict=True)]
        if not any(clash):
            return names
        whole = [keep or new for keep, new in zip(whole, clash, strict=True)]


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk. A folder that the system does not open, as on Windows, is not flushed."""
    try:
        _sync(path, os.O_RDONLY)
    except OSError as error:
        if os.path.isdir(path) and error.errno == errno.EACCES:
            return
        if error.errno not in (errno.EBADF, errno.EACCES):
            raise
        _sync(path, os.O_RDWR)  # Windows flushes a file only through a handle that may write


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
