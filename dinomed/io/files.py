"""Writing so that nothing is ever half-written: a temporary name in the same folder, fsync, rename."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: no locks there
    fcntl = None  # type: ignore[assignment]

from dinomed.errors import DinomedError, UsageError
from dinomed.progress import say


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`; renamed over it when the block ends well, removed when it does not.

    Raises:
        DinomedError: the folder cannot be written, or the disk is full; the old file is untouched.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".tmp-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise DinomedError(f"cannot write {path}: {error.strerror or error}") from None
    temporary = Path(name)
    try:
        yield temporary
        sync(temporary)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files private; these are ordinary outputs
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise DinomedError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def append_text(path: str | Path, text: str) -> None:
    """Add UTF-8 text to a file, a log; a kill may leave a part of its last line.

    Raises:
        DinomedError: it cannot be written (a full disk, mostly).
    """
    try:
        with open(path, "a", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except OSError as error:
        raise DinomedError(f"cannot write {path}: {error.strerror or error}") from None


def write_json(path: str | Path, data: Any) -> None:
    """Write JSON atomically; not-a-number becomes null, as JSON has no other word for it."""
    write_text(path, to_json(data, indent=2) + "\n")


def to_json(data: Any, indent: int | None = None) -> str:
    """Strict JSON (NaN and infinities as null), keys in the order given."""
    return json.dumps(_finite(data), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, float) and not abs(data) < float("inf"):
        return None
    if isinstance(data, dict):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return data


def read_json(path: str | Path) -> Any:
    """Read JSON; a file that is cut off or no JSON is a `DinomedError` naming it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DinomedError(f"{path} cannot be read: {error}") from None


def sha256_file(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file or a folder entry to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(folder: Path) -> None:
    """Make `folder` if need be, and refuse if nothing can be written in it: before the work, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DinomedError(f"output folder {folder} is not writable: {error.strerror or error}") from None


def prepare_output(folder: str | Path, *, overwrite: bool = False, marker: str) -> Path:
    """Make `folder` ready for new output, or refuse.

    A folder that holds something is used again only with `overwrite`, and only if `marker` (the file that this
    kind of output always has) shows that dinomed made it: a mistyped ``-o`` must not mix with a user's own files.

    Raises:
        UsageError: it holds something that may not be replaced, or is a file.
        DinomedError: another process works in it, or it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"output {folder} is a file; give a folder")
    check_free(folder)
    check_writable(folder)
    if any(path.name != ".lock" for path in folder.iterdir()):  # a lock alone: made by a run that ended at once
        if not (folder / marker).exists():
            raise UsageError(f"output folder {folder} is not empty and holds no {marker}; choose another folder")
        if not overwrite:
            raise UsageError(f"output folder {folder} already holds a result; add --overwrite to replace it")
    return folder


def check_free(folder: str | Path, name: str = ".lock") -> None:
    """Refuse if another process holds `folder` (`locked`), without making or holding anything: what it has written by
    then is a part of a result, and would be called something else.

    Raises:
        DinomedError: it is held.
    """
    if fcntl is None or not (Path(folder) / name).is_file():
        return
    with contextlib.suppress(OSError), open(Path(folder) / name) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            raise _in_use(folder) from None


def _in_use(folder: str | Path) -> DinomedError:
    return DinomedError(f"{folder} is in use by another process; wait for it or choose another")


@contextmanager
def locked(folder: str | Path, name: str = ".lock", *, wait: bool = False) -> Iterator[None]:
    """Hold `folder` (made if need be) against other processes; the lock goes with the process, however it ends.

    Raises:
        DinomedError: another process holds it (unless `wait`), or the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / name, "a")  # noqa: SIM115 (closed below, after its own errors)
    except OSError as error:
        raise DinomedError(f"cannot write in {folder}: {error.strerror or error}") from None
    with file:
        if fcntl is None:
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if not wait:
                raise _in_use(folder) from None
            say(f"waiting for another process that works in {folder}")
            fcntl.flock(file, fcntl.LOCK_EX)
        if not _is_still(folder / name, file.fileno()):  # its holder has just removed it: the result is there
            raise _in_use(folder)
        yield


def _is_still(path: Path, handle: int) -> bool:
    """Whether `path` still names the open file `handle`."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
