"""Checkpoints: whole or not there."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dinomed.errors import DinomedError
from dinomed.io.checkpoint import (
    describe_tensors,
    fill,
    list_checkpoints,
    newest_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    read_whole,
    write_checkpoint,
)


def save(root: Path, step: int) -> Path:
    return write_checkpoint(
        root, f"step_{step:08d}", {"w": torch.full((64,), float(step)), "count": torch.tensor(7.0)}, {"step": step}
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    assert read_checkpoint(folder) == {"step": 3}
    assert {name: tuple(tensor.shape) for name, tensor in describe_tensors(folder).items()} == {"count": (), "w": (64,)}
    tensors = {"w": torch.zeros(64), "count": torch.tensor(0.0)}
    fill(tensors, folder)
    assert torch.equal(tensors["w"], torch.full((64,), 3.0))
    assert tensors["count"] == 7
    assert read_whole(folder, "cou") == {"nt": 7}


@pytest.mark.parametrize("wanted", [{"v": torch.zeros(64)}, {"w": torch.zeros(63)}], ids=["name", "shape"])
def test_what_does_not_fit_is_refused(tmp_path: Path, wanted: dict[str, torch.Tensor]) -> None:
    with pytest.raises(DinomedError, match="cannot be read") as error:
        fill(wanted, save(tmp_path, 3))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "no state"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 1)
    model = save(tmp_path, 2) / "tensors.safetensors"
    content = bytearray(model.read_bytes())
    if damage == "cut":
        model.write_bytes(content[:-8])
    elif damage == "changed":
        content[-1] ^= 1
        model.write_bytes(content)
    elif damage == "missing":
        model.unlink()
    else:
        (model.parent / "state.json").unlink()
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest[1] == {"step": 1}
    assert "damaged" in capsys.readouterr().err


def test_none_readable_is_an_error_and_none_at_all_is_not(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    (save(tmp_path, 1) / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(DinomedError, match="none of the 1 checkpoints"):
        newest_checkpoint(tmp_path)


def test_a_full_disk_leaves_the_old_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    script = f"""
import resource, signal, torch
from pathlib import Path
from dinomed.io.checkpoint import write_checkpoint
from dinomed.errors import DinomedError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_checkpoint(Path({str(tmp_path)!r}), "step_00000002", {{"w": torch.zeros(100_000)}}, {{}})
except DinomedError as error:
    print("refused", error)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert out.stdout.startswith("refused cannot write"), out.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 30):
        save(tmp_path, step)
    prune_checkpoints(tmp_path, 2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000002", "step_00000030"]


KILLS_AT_EVERY_WRITE = """
import os, sys
from pathlib import Path
import torch
from dinomed.io.checkpoint import newest_checkpoint, write_checkpoint

root = Path(sys.argv[1])
WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}


def save(step):
    write_checkpoint(root, f"step_{step:08d}", {"w": torch.full((64,), float(step))}, {"step": step})


def die_at(count):
    seen = 0

    def hook(event, arguments):
        nonlocal seen
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in WRITES) and str(root) in str(arguments[0]):
            seen += 1
            if seen == count:
                os._exit(9)  # as SIGKILL: nothing is flushed, no finally is run

    sys.addaudithook(hook)


save(1)
count = 0
while True:
    count += 1
    child = os.fork()
    if child == 0:
        die_at(count)
        save(2)
        os._exit(0)
    died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    found = newest_checkpoint(root)
    assert found is not None, count
    step = found[1]["step"]
    assert step == 2 or died, (count, step)
    if step == 2 and not died:
        break
    if step == 2:  # it was whole already: the next child begins as this one did
        import shutil

        shutil.rmtree(found[0])
save(3)
assert newest_checkpoint(root)[1]["step"] == 3
print(count)
"""


def test_killed_at_every_single_write_there_is_always_a_whole_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLS_AT_EVERY_WRITE, str(tmp_path / "checkpoints")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5  # as many places to die at
    assert not list((tmp_path / "checkpoints").glob(".tmp-*"))
