"""Files that are written atomically, and folders that two processes want at once."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dinomed.errors import DinomedError, UsageError
from dinomed.io import output_folder
from dinomed.io.files import append_text, sync, write_text
from dinomed.io.output_folder import check_free, locked, prepare_output

HOLD = (
    "import sys; from dinomed.io.output_folder import locked\n"
    "with locked(sys.argv[1]): print('held', flush=True); input()"
)


@contextmanager
def held_by_another(folder: Path) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield
    finally:
        process.communicate("\n", timeout=300)


def test_what_another_process_has_begun_to_write_is_in_use_and_not_a_strange_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with held_by_another(folder):
        (folder / "log.jsonl").write_text("")  # its first file, before the one that says what the folder is
        with pytest.raises(DinomedError, match="is in use by another process"):
            prepare_output(folder, marker="config.yaml")
    with pytest.raises(UsageError, match="holds no"):
        prepare_output(folder, marker="config.yaml")


def test_a_free_folder_is_neither_made_nor_changed(tmp_path: Path) -> None:
    check_free(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with locked(tmp_path / "done"):
        (tmp_path / "done" / "result").touch()
    check_free(tmp_path / "done")
    assert sorted(path.name for path in (tmp_path / "done").iterdir()) == [".lock", "result"]


def test_a_lock_that_its_holder_removed_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened before, locked after: two could hold the same folder, by two files of that name."""
    fcntl = pytest.importorskip("fcntl")
    real = fcntl.flock

    def removed(file: object, how: int) -> None:
        real(file, how)
        (tmp_path / ".lock").unlink(missing_ok=True)

    monkeypatch.setattr(fcntl, "flock", removed)
    with pytest.raises(DinomedError, match="in use"), locked(tmp_path):
        pass


def test_a_lock_whose_file_another_process_renamed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a network file system does with a removed file that is open: the file has a link, but another name."""
    fcntl = pytest.importorskip("fcntl")
    real, renamed = fcntl.flock, list[Path]()

    def rename_twice(file: object, how: int) -> None:
        real(file, how)
        if len(renamed) < 2 and how & fcntl.LOCK_EX:
            renamed.append((tmp_path / ".lock").rename(tmp_path / f".nfs{len(renamed)}"))

    monkeypatch.setattr(fcntl, "flock", rename_twice)
    with pytest.raises(DinomedError, match="in use"), locked(tmp_path):
        pass
    renamed.clear()
    with locked(tmp_path, wait=True):  # by the third file of this name
        assert len(renamed) == 2
        assert (tmp_path / ".lock").is_file()


def test_a_file_system_without_locks_is_not_called_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / ".lock").write_text("")

    def refuse(code: int) -> None:
        def fails(file: object, how: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(fcntl, "flock", fails)

    refuse(errno.ENOLCK)
    check_free(tmp_path)
    with pytest.raises(DinomedError, match=f"cannot write in .*{os.strerror(errno.ENOLCK)}"), locked(tmp_path):
        pass
    for code in (errno.EAGAIN, errno.EACCES):
        refuse(code)
        with pytest.raises(DinomedError, match="is in use by another process"):
            check_free(tmp_path)


def test_the_lock_of_a_killed_process_is_free_although_its_workers_live(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom dinomed.io.output_folder import locked\n"
        "with locked(sys.argv[1]):\n"
        "    parent = os.getpid()\n"
        "    if os.fork() == 0:\n"
        "        os.kill(parent, 9)\n        print('held', flush=True)\n        sys.stdin.read()\n        os._exit(0)\n"
        "    sys.stdin.read()\n"
    )
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert process.wait(timeout=300) == -9
        with locked(tmp_path):  # while the forked worker waits for its input
            pass
        check_free(tmp_path)


def test_without_fcntl_a_folder_in_use_is_seen_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where a lock can only be tried."""
    monkeypatch.setattr(output_folder, "fcntl", None)
    with held_by_another(tmp_path):
        for refused in (lambda: check_free(tmp_path), lambda: prepare_output(tmp_path, marker="config.yaml")):
            with pytest.raises(DinomedError, match="is in use by another process"):
                refused()
    check_free(tmp_path)
    assert prepare_output(tmp_path, marker="config.yaml") == tmp_path
    check_free(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_waiting_for_a_lock_takes_it_when_the_other_process_has_ended(tmp_path: Path) -> None:
    with held_by_another(tmp_path):
        with pytest.raises(DinomedError, match="in use"), locked(tmp_path):
            pass
        waiting = subprocess.Popen(
            [sys.executable, "-c", HOLD.replace("sys.argv[1]", "sys.argv[1], wait=True"), str(tmp_path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert waiting.stderr is not None
        assert "waiting for another process" in waiting.stderr.readline()
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "held\n"
    with pytest.raises(DinomedError, match="in use"), locked(tmp_path):
        pass
    waiting.communicate("\n", timeout=300)


def test_a_full_disk_names_the_log() -> None:
    with pytest.raises(DinomedError, match=r"cannot write /dev/full: No space left"):
        append_text("/dev/full", "a line\n")


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Refuse as Windows does: folders are not opened, and read-only handles are not flushed. Return what is flushed."""
    opened, flushed = {}, []
    real_open, real_fsync = os.open, os.fsync

    def open_file(path: str | Path, flags: int, *rest: int, **named: int) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        handle = real_open(path, flags, *rest, **named)
        opened[handle] = (str(path), flags)
        return handle

    def flush(handle: int) -> None:
        path, flags = opened[handle]
        if not flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EBADF, "Bad file descriptor")
        real_fsync(handle)
        flushed.append(path)

    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "fsync", flush)
    return flushed


def test_files_are_written_and_flushed_where_windows_refuses(tmp_path: Path, windows: list[str]) -> None:
    write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"
    (temporary,) = windows
    assert Path(temporary).parent == tmp_path  # the file was flushed before its rename, and no folder


def test_a_failure_to_flush_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    for path in (tmp_path, tmp_path / "a.txt"):
        if path != tmp_path:
            path.write_text("text")
        with pytest.raises(OSError, match="Input/output"):
            sync(path)
