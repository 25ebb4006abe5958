"""Output folders: complete results appear in one step, and only one process writes."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dinomed.errors import DinomedError, UsageError
from dinomed.io.files import write_json
from dinomed.io.output_folder import (
    LOCK_FILE,
    STAGE,
    check_writable,
    claimed_file,
    claimed_folder,
    finish_publishing,
    locked,
    open_output_folder,
    prepare_output,
    staged,
)
from dinomed.io.publish import list_ready, publish

MARKER = "result.json"


def write_result(folder: Path, text: str, *, overwrite: bool = False, keep: tuple[str, ...] = ()) -> None:
    with open_output_folder(folder, marker=MARKER, overwrite=overwrite, keep=keep) as stage:
        (stage / "images").mkdir()
        (stage / "images" / "a.txt").write_text(text)
        (stage / MARKER).write_text(text)
        publish(stage, folder, ["images/a.txt", MARKER])


def interrupt(folder: Path, error: type[BaseException], **options: Any) -> None:
    """Begin a result and raise before it is published."""
    with open_output_folder(folder, marker=MARKER, **options) as stage:
        (stage / "state").write_text("epoch 3")
        (stage / MARKER).write_text("half")
        raise error


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {".lock"}


def test_a_result_appears_complete(tmp_path: Path) -> None:
    write_result(tmp_path / "out", "first")
    assert names(tmp_path / "out") == {"images/a.txt", MARKER}
    assert not (tmp_path / "out" / STAGE).exists()
    with pytest.raises(UsageError, match="add `overwrite=True`"):
        write_result(tmp_path / "out", "second")
    write_result(tmp_path / "out", "second", overwrite=True)
    assert (tmp_path / "out" / MARKER).read_text() == "second"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_a_failure_leaves_the_old_result_and_no_part_of_the_new(tmp_path: Path, error: type[BaseException]) -> None:
    out = tmp_path / "out"
    write_result(out, "first")
    with pytest.raises(error):
        interrupt(out, error, overwrite=True)
    assert names(out) == {"images/a.txt", MARKER}
    assert (out / MARKER).read_text() == "first"


def test_a_failure_removes_a_folder_that_it_created_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with pytest.raises(RuntimeError):
            interrupt(tmp_path / name, RuntimeError)
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "empty").is_dir()


def test_kept_files_of_an_unfinished_call_are_there_for_the_next_and_nothing_else_is(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        interrupt(out, KeyboardInterrupt, keep=["state"])
    with open_output_folder(out, marker=MARKER, keep=["state"]) as stage:
        assert (stage / "state").read_text() == "epoch 3"
        assert not (stage / MARKER).exists()
        (stage / "state").unlink()
        (stage / MARKER).write_text("done")
        publish(stage, out, [MARKER])
    assert names(out) == {MARKER}


def test_publishing_stops_before_the_marker_if_a_file_cannot_be_moved(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged(out) as stage:
        (stage / MARKER).write_text("complete")
        with pytest.raises(DinomedError, match="cannot write"):
            publish(stage, out, ["missing.txt", MARKER])
    assert not (out / MARKER).exists()


@pytest.mark.parametrize("outside", ["../a.txt", "/a.txt", "images/../../a.txt"])
def test_paths_outside_the_folder_are_refused_before_anything_is_listed(tmp_path: Path, outside: str) -> None:
    out = tmp_path / "out"
    (tmp_path / "a.txt").write_text("of the user")
    for moved, removed in (([outside], []), ([], [outside])):
        with open_output_folder(out, marker=MARKER) as stage:
            with pytest.raises(DinomedError, match="not a path inside it"):
                publish(stage, out, moved, removed)
            assert list(stage.iterdir()) == []
    assert (tmp_path / "a.txt").read_text() == "of the user"


def test_folders_that_a_new_result_leaves_empty_are_removed_also_after_a_kill(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_result(out, "first")
    (out / "of_the_user").mkdir()
    with open_output_folder(out, marker=MARKER, overwrite=True) as stage:  # which keeps what is ready
        (stage / MARKER).write_text("second")
        list_ready(stage, out, [MARKER], ["images/a.txt"])
    finish_publishing(out, MARKER)
    assert {path.name for path in out.iterdir()} == {MARKER, "of_the_user"}


def test_files_of_the_user_are_never_mixed_with_a_result(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("of the user")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=r"is not empty and holds no result\.json"):
            prepare_output(tmp_path, overwrite=overwrite, marker=MARKER)
    with pytest.raises(UsageError, match="is a file; give a folder"):
        prepare_output(tmp_path / "notes.txt", marker=MARKER)
    assert names(tmp_path) == {"notes.txt"}


def test_a_link_in_the_stage_is_removed_and_its_target_stays(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "a.txt").write_text("of the user")
    stage_path = tmp_path / "out" / STAGE
    stage_path.mkdir(parents=True)
    (stage_path / "link").symlink_to(target)
    with staged(tmp_path / "out") as stage:
        assert not list(stage.iterdir())
    assert (target / "a.txt").read_text() == "of the user"


def test_a_folder_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DinomedError, match=r"is not writable") as refused:
        check_writable(tmp_path / "file" / "out")
    assert "\n" not in str(refused.value)
    with pytest.raises(DinomedError, match="cannot write in"), locked(tmp_path / "file" / "out"):
        pass


def test_a_check_and_a_failed_call_leave_no_new_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "deep"
    check_writable(folder)
    prepare_output(folder, marker=MARKER)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), claimed_file(folder / "a.txt"):
        raise KeyError
    for opened in (open_output_folder, claimed_folder):
        with pytest.raises(KeyError), opened(folder, marker=MARKER):
            raise KeyError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place in (tmp_path / "link", tmp_path / ("x" * 300)):
        with pytest.raises(DinomedError, match="is not writable"):
            check_writable(place)


def test_a_lock_leaves_nothing_where_nothing_was_written(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "key"
    with pytest.raises(KeyError), locked(folder, wait=True):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    folder.mkdir(parents=True)
    with locked(folder):
        assert (folder / LOCK_FILE).is_file()
    assert list(folder.iterdir()) == []  # the folder was there
    with locked(folder):
        (folder / "shard").touch()
    assert sorted(path.name for path in folder.iterdir()) == [LOCK_FILE, "shard"]


def test_a_process_that_waits_gets_the_folder_that_the_other_one_removes(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "key"
    with ThreadPoolExecutor(1) as pool:
        with locked(folder):
            waiting = pool.submit(_write_locked, folder)
            time.sleep(0.3)
            assert not waiting.done()
        assert waiting.result(timeout=20) == ["a"]
    assert folder.is_dir()


def _write_locked(folder: Path) -> list[str]:
    with locked(folder, wait=True):
        (folder / "a").touch()
        return sorted(path.name for path in folder.iterdir() if path.name != LOCK_FILE)


def test_of_two_processes_one_writes_and_the_other_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom dinomed.io.output_folder import open_output_folder\n"
        "from dinomed.io.publish import publish\n"
        "with open_output_folder(sys.argv[1], marker='result.json') as stage:\n"
        "    (stage / 'result.json').write_text('of the first')\n"
        "    print('open', flush=True)\n    sys.stdin.readline()\n"
        "    publish(stage, Path(sys.argv[1]), ['result.json'])\n"
    )
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    with pytest.raises(DinomedError, match="is in use by another process"):
        write_result(out, "of the second", overwrite=True)
    assert not (out / MARKER).exists()
    process.communicate("go on\n")
    assert process.returncode == 0
    assert (out / MARKER).read_text() == "of the first"
    write_result(out, "of the second", overwrite=True)
    assert (out / MARKER).read_text() == "of the second"


def write_half(folder: Path) -> None:
    with claimed_folder(folder, marker=MARKER):
        (folder / "page.html").write_text("half")
        raise KeyboardInterrupt


def test_a_claimed_folder_of_a_killed_call_is_used_again_and_a_complete_one_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        write_half(folder)
    assert {path.name for path in folder.iterdir()} == {"page.html", STAGE}
    with claimed_folder(folder, marker=MARKER):
        (folder / "page.html").write_text("whole")
        (folder / "result.json").write_text("{}")
    assert {path.name for path in folder.iterdir()} == {"page.html", "result.json"}
    with pytest.raises(UsageError, match="already holds a result"), claimed_folder(folder, marker=MARKER):
        pass
    with pytest.raises(KeyboardInterrupt), claimed_folder(tmp_path / "new", marker=MARKER):
        raise KeyboardInterrupt
    assert not (tmp_path / "new").exists()


def test_a_result_whose_publishing_was_killed_is_completed_by_the_next_call(tmp_path: Path) -> None:
    out, stage = tmp_path / "out", tmp_path / "out" / STAGE
    stage.mkdir(parents=True)
    (out / "old.md").touch()
    (out / MARKER).write_text("new")  # moved already
    (stage / "card.md").write_text("new")
    (stage / "state").mkdir()
    write_json(stage / "ready.json", {"move": [MARKER, "card.md"], "remove": [MARKER, "card.md", "old.md"]})
    with pytest.raises(UsageError, match="already holds a result"), open_output_folder(out, marker=MARKER):
        pass
    assert {path.name: path.read_text() for path in out.iterdir()} == {MARKER: "new", "card.md": "new"}


def test_a_list_of_files_outside_the_folder_is_refused(tmp_path: Path) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside.txt"
    (out / STAGE).mkdir(parents=True)
    outside.write_text("of the user")
    for forged in ({"move": [], "remove": ["../outside.txt"]}, {"move": ["../../outside.txt"], "remove": []}, [], {}):
        write_json(out / STAGE / "ready.json", forged)
        with (
            pytest.raises(DinomedError, match=r"is damaged; remove .*, and run"),
            open_output_folder(out, marker=MARKER, overwrite=True),
        ):
            pass
    assert outside.read_text() == "of the user"
