"""Folders that two processes want at once."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dinomed.errors import DinomedError, UsageError
from dinomed.io.files import append_text
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
        pass
    check_free(tmp_path / "done")
    assert [path.name for path in (tmp_path / "done").iterdir()] == [".lock"]


def test_a_lock_that_its_holder_removed_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened before, locked after: two could hold the same folder, by two files of that name."""
    from dinomed.io import output_folder

    real = output_folder.fcntl.flock

    def removed(file: object, how: int) -> None:
        real(file, how)
        (tmp_path / ".lock").unlink()

    monkeypatch.setattr(output_folder.fcntl, "flock", removed)
    with pytest.raises(DinomedError, match="in use"), locked(tmp_path):
        pass


def test_a_full_disk_names_the_log() -> None:
    with pytest.raises(DinomedError, match=r"cannot write /dev/full: No space left"):
        append_text("/dev/full", "a line\n")
