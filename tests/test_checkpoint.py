"""Checkpoints: whole or not there."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dinomed.checkpoint import (
    describe_tensors,
    fill,
    list_checkpoints,
    newest_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    read_whole,
    write_checkpoint,
)
from dinomed.errors import DinomedError


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
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found[1] == {"step": 1}
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
from dinomed.checkpoint import write_checkpoint
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
