"""Output folders: checked before the work, locked during it, filled in one step at its end."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from dinomed.errors import DinomedError, UsageError, system_reason
from dinomed.io.publish import READY_FILE, move_ready
from dinomed.log import logger

LOCK_FILE = ".lock"
STAGE = ".unfinished"
"""Folder in an output folder in which an unfinished result lies."""
_STATE_OF = {"folds.json": "ensemble.json", "replace.json": "ensemble.json"}
"""Files in a stage that only the output with this marker may remove: the state of a cross-validation."""


def check_writable(folder: Path) -> None:
    """Check that a file can be written in `folder`, or in the nearest folder above it that exists, before the work.

    No folder is made: a request that is refused later leaves none.

    Raises:
        DinomedError: the folder is not writable.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=_nearest(folder)):
            pass
    except OSError as error:
        raise DinomedError(f"output folder {folder} is not writable: {system_reason(error)}") from None


def _nearest(folder: Path) -> Path:
    """Return the folder or the nearest one above it that exists; raise an `OSError` for a path that cannot be made."""
    for place in (folder, *folder.parents):
        try:
            place.stat()
        except FileNotFoundError:
            if place.is_symlink():
                raise
            continue
        return place
    return folder


@contextmanager
def _without_empty(folder: Path) -> Iterator[None]:
    """Remove at the end `folder` and those above it that are missing at the start, if nothing is in them."""
    new = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        yield
    finally:
        for place in new:
            with contextlib.suppress(OSError):
                place.rmdir()


def check_place(path: Path) -> None:
    """Check, without writing and within microseconds, that a file or a folder can be made at `path`.

    Raises:
        DinomedError: the nearest folder that exists is not writable.
    """
    folder = next((place for place in (path, *path.absolute().parents) if os.path.isdir(place)), None)
    if folder is not None and not os.access(folder, os.W_OK | os.X_OK):
        raise DinomedError(f"output folder {folder} is not writable; choose another place, or change its permissions")


def prepare_output(folder: str | Path, *, overwrite: bool = False, marker: str) -> Path:
    """Prepare `folder` for new output.

    A folder with content is used again only with `overwrite`, and only if it holds `marker`, the file that this kind of
    output always has. So a mistyped ``-o`` never mixes output with other files of the user.

    Raises:
        UsageError: the folder holds files that must not be replaced, or is a file.
        DinomedError: another process uses the folder, or it is not writable.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"output {folder} is a file; give a folder")
    check_free(folder)
    check_writable(folder)
    # a run that ended at once leaves only its lock
    if folder.exists() and any(path.name != LOCK_FILE for path in folder.iterdir()):
        if not (folder / marker).exists():
            raise UsageError(f"output folder {folder} is not empty and holds no {marker}; choose another folder")
        if not overwrite:
            raise UsageError(f"output folder {folder} already holds a result; add `overwrite=True` to replace it")
    return folder


@contextmanager
def claimed_folder(folder: str | Path, *, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """Prepare an output folder (`prepare_output`) and lock it until its result is written.

    At the end the lock file is removed; so is the folder, if it is new and nothing was written. The folder of a call
    that was killed, or failed while it wrote, is used again without `overwrite`.

    Yields:
        The folder.

    Raises:
        UsageError, DinomedError: as `prepare_output` and `locked`.
    """
    with _opened(Path(folder), marker, overwrite) as path:
        try:
            _mark_unfinished(path)
            yield path
        finally:
            is_empty = all(entry.name in (STAGE, LOCK_FILE) for entry in path.iterdir())
            if is_empty or (path / marker).exists():
                with contextlib.suppress(OSError):
                    (path / STAGE).rmdir()


@contextmanager
def _opened(folder: Path, marker: str, overwrite: bool) -> Iterator[Path]:
    """Complete what a killed call has begun, prepare the folder and lock it; at the end remove new, empty folders."""
    _check_state(folder, marker)
    finish_publishing(folder, marker)
    check_output(folder, marker=marker, overwrite=overwrite)
    with locked(folder):
        try:
            yield folder
        finally:
            _release(folder / LOCK_FILE)


def check_output(folder: Path, *, marker: str, overwrite: bool = False) -> None:
    """Check, without writing, that `open_output_folder` or `claimed_folder` would take the folder.

    Raises:
        UsageError, DinomedError: as `prepare_output`; or the folder holds an unfinished cross-validation.
    """
    _check_state(folder, marker)
    unfinished = (folder / STAGE).is_dir() and not (folder / marker).exists()
    prepare_output(folder, overwrite=overwrite or unfinished, marker=STAGE if unfinished else marker)


def _check_state(folder: Path, marker: str) -> None:
    if any((folder / STAGE / name).is_file() for name, owner in _STATE_OF.items() if owner != marker):
        raise UsageError(
            f"output folder {folder} holds an unfinished cross-validation; choose another folder, or complete it first "
            "by the same `dinomed train` again"
        )


def _mark_unfinished(folder: Path) -> None:
    try:
        (folder / STAGE).mkdir(exist_ok=True)
    except OSError as error:
        raise DinomedError(f"cannot write {folder}: {system_reason(error)}") from None


@contextmanager
def claimed_file(path: str | Path) -> Iterator[None]:
    """Lock an output file until it is written, by a lock file beside it that is removed at the end.

    New folders in which nothing was written are removed too.

    Raises:
        DinomedError: another process writes the file, or the folder cannot be written.
    """
    path = Path(path)
    name = f".{path.name}.lock"
    with locked(path.parent, name, called=path):
        try:
            yield
        finally:
            _release(path.parent / name)


def _release(lock: Path) -> None:
    """Remove a lock file that this process holds; a system that does not remove open files keeps it."""
    with contextlib.suppress(OSError):
        lock.unlink()


def check_free(folder: str | Path) -> None:
    """Check that no other process holds the lock of `folder` (`locked`), without taking it.

    Called before the content is checked, since the content of a folder in use is incomplete.

    Raises:
        DinomedError: another process holds the lock.
    """
    path = Path(folder) / LOCK_FILE
    if not path.is_file():
        return
    if fcntl is None:
        with contextlib.suppress(OSError), locked(folder):
            return
    with contextlib.suppress(OSError), open(path) as file:
        try:  # a shared lock, which filelock does not offer: two checks at once must not see each other
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES):
                raise _in_use(folder) from None


def _in_use(folder: str | Path) -> DinomedError:
    return DinomedError(f"{folder} is in use by another process; wait, or use another folder")


@contextmanager
def locked(
    folder: str | Path, name: str = LOCK_FILE, *, wait: bool = False, called: str | Path | None = None
) -> Iterator[None]:
    """Lock `folder` against other processes; create it if needed. The lock ends with the process, also if it is killed.

    At the end nothing stays of it where nothing was written: no lock file and no new folder.

    Args:
        folder: folder of the lock file.
        name: name of the lock file.
        wait: wait for another process that holds the lock.
        called: path for messages, if it is not `folder`.

    Raises:
        DinomedError: another process holds the lock (unless `wait`), or the folder cannot be written.
    """
    from filelock import FileLock, Timeout  # takes a tenth of a second, which `dinomed --help` need not wait for

    folder, waits = Path(folder), False

    def check_path(held: int) -> None:
        """Raise if the locked file was removed meanwhile. A network file system renames a removed file that is open."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(held), os.stat(folder / name)):
                return
        raise Timeout(str(folder / name))

    lock = FileLock(folder / name, thread_local=False, fallback_to_soft=False, on_acquired=check_path)
    with _without_empty(folder):
        try:
            while not lock.is_locked:
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    lock.acquire(blocking=waits)
                except (Timeout, FileNotFoundError):  # the other process may have removed the file, or the folder
                    if not wait:
                        raise _in_use(called or folder) from None
                    if not waits:
                        logger.info(f"waiting for another process that uses {folder}")
                    waits = True
        except OSError as error:
            raise DinomedError(f"cannot write in {folder}: {system_reason(error)}") from None
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if all(path.name == name for path in folder.iterdir()):
                    (folder / name).unlink()
            lock.release()


@contextmanager
def staged(folder: Path, keep: Iterable[str] = ()) -> Iterator[Path]:
    """Open an empty folder `STAGE` in `folder` that collects the files of a result before `publish` moves them.

    It is removed at the end, whatever happens, unless one of `keep` is in it, or a result that `publish` has not moved
    completely.

    Args:
        keep: names in it that an earlier, unfinished call left and that stay, such as the state of a training.
    """
    stage = folder / STAGE
    kept = frozenset(keep)
    try:
        stage.mkdir(parents=True, exist_ok=True)
        for path in stage.iterdir():
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        yield stage
    except OSError as error:
        raise DinomedError(f"cannot write {folder}: {system_reason(error)}") from None
    finally:
        if not any((stage / entry).exists() for entry in (READY_FILE, *kept)):
            shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def open_output_folder(
    folder: str | Path, *, marker: str, overwrite: bool = False, keep: Iterable[str] = ()
) -> Iterator[Path]:
    """Prepare and lock an output folder, and open its stage (`staged`). After a failure no empty folder stays.

    The stage of an earlier, unfinished call is used again without `overwrite`. A result that an earlier call was moving
    when it was killed is moved completely first.

    Args:
        marker: file that shows that the folder holds a complete result (`prepare_output`).
        keep: names in the stage that stay if the call fails or is interrupted.

    Yields:
        The stage.

    Raises:
        UsageError, DinomedError: as `prepare_output`, `locked` and `staged`.
    """
    with _opened(Path(folder), marker, overwrite) as path, staged(path, keep) as stage:
        yield stage


def finish_publishing(folder: Path, marker: str) -> None:
    """Complete what a killed call has begun to publish, and remove the mark that it left beside a complete result."""
    stage = folder / STAGE
    if (stage / READY_FILE).is_file():
        with locked(folder):
            move_ready(stage, folder)
            _release(folder / LOCK_FILE)
    elif (folder / marker).exists() and stage.is_dir():
        check_free(folder)
        with contextlib.suppress(OSError):  # it holds the state of an unfinished call
            stage.rmdir()


def discard_ready(folder: Path) -> None:
    """Remove the list of what a killed call was about to publish in `folder`, so that the next call begins again."""
    check_free(folder)
    (folder / STAGE / READY_FILE).unlink(missing_ok=True)
