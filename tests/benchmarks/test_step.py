"""The comparison with the step of lightly-train: our step in a process, and a stand-in with known values for theirs."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.long
def test_a_round_compares_our_step_with_a_stand_in(script_path: Callable[[str], Path], tmp_path: Path) -> None:
    arguments_file, figures = (
        tmp_path / "arguments",
        {"seconds": 2.0, "cpu_seconds": 4.0, "images_per_second": 2.0, "gib": 0.25},
    )
    peer = tmp_path / "python"
    peer.write_text(
        f"#!/bin/sh\nshift\necho \"$@\" >> {arguments_file}\necho a warning\necho '{json.dumps(figures)}'\n"
    )
    peer.chmod(0o755)
    words = ["compare", "--peer", peer, "--rounds", "1", "--model", "tiny"]
    done = subprocess.run([sys.executable, script_path("step"), *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    (ours,), (theirs,) = report["runs"]["dinomed"], report["runs"]["lightly"]
    assert theirs == figures
    assert ours["seconds"] > 0
    assert ours["images_per_second"] == pytest.approx(4 / ours["seconds"])
    assert 0.1 < ours["gib"] < 8  # torch alone is some tenths
    assert report["ratio"]["gib"]["median"] == pytest.approx(ours["gib"] / 0.25)
    assert report["ratio"]["seconds"]["median"] == pytest.approx(ours["seconds"] / 2)
    who, setting = arguments_file.read_text().split(" ", 1)
    assert (who, json.loads(setting)["drop_path"]) == ("lightly", 0.3)  # both get the same setting
