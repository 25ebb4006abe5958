"""The offline run of Weights & Biases: its file is a log of LevelDB with messages of wandb's own protocol."""

import getpass
import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinomed.loggers.group import LoggerGroup
from dinomed.loggers.logger import LoggedRun

pytestmark = pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
_BLOCK, _HEADER = 32768, 7  # bytes; of the file and of each of its blocks


def read_records(path: Path) -> Iterator[Any]:
    """Yield the messages of a file ``.wandb``; its reader in Python is no part of wandb any more."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, parts = path.read_bytes(), _HEADER, b""
    assert data.startswith(b":W&B")
    while position + _HEADER <= len(data):
        if _BLOCK - position % _BLOCK < _HEADER:
            position += _BLOCK - position % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + _HEADER])
        if position + _HEADER + length > len(data):  # it is being written
            return
        parts += data[position + _HEADER : position + _HEADER + length]
        position += _HEADER + length
        if kind in (1, 4):  # a whole message, or the last part of one
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def read_run(folder: Path) -> tuple[Any, list[dict[str, Any]], Path]:
    """Return the record of the only run, its history, and its folder."""
    (path,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 60
    records = list(read_records(path))
    while (
        records[-1:] == [] or records[-1].WhichOneof("record_type") != "exit"
    ):  # wandb's service writes a little later
        assert time.monotonic() < deadline
        time.sleep(0.1)
        records = list(read_records(path))
    history = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    return next(record.run for record in records if record.WhichOneof("record_type") == "run"), history, path.parent


def test_a_killed_and_resumed_run_is_one_offline_run_without_a_repeated_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")  # not used: the run is always offline
    monkeypatch.setenv("WANDB_BASE_URL", "http://203.0.113.1:5000")
    for name in ("ENTITY", "NOTES", "TAGS", "RUN_GROUP", "JOB_TYPE", "USERNAME", "USER_EMAIL", "HOST"):
        monkeypatch.setenv(f"WANDB_{name}", "jane-doe")  # not used
    monkeypatch.setenv("WANDB_RESUME", "must")
    monkeypatch.setattr(socket, "gethostname", lambda: "machine-of-jane-doe")
    monkeypatch.setattr(getpass, "getuser", lambda: "jane-doe")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    reporting = os.environ.get("WANDB_ERROR_REPORTING")
    picture = tmp_path / "4.png"
    pixels = np.full((4, 6, 3), 7, np.uint8)
    from PIL import Image

    Image.fromarray(pixels).save(picture)
    loggers = LoggerGroup(["wandb"], LoggedRun(tmp_path, "lesions", {"run.steps": 6, "start.file": "w.pt"}))
    for step in range(1, 6):
        loggers.scalars(step, {"loss": 10.0 + step})
    loggers.close()
    first, history, _ = read_run(tmp_path)
    assert [row["_step"] for row in history] == [1, 2, 3, 4, 5]
    rows = [(step, {"loss": 10.0 + step, "gradient_norm/backbone": 0.5}) for step in (1, 2, 3, 4)]
    resumed = LoggedRun(tmp_path, "lesions", {"run.steps": 6, "start.file": "w.pt"}, first_step=4)
    loggers = LoggerGroup(["wandb"], resumed, [*rows, (4, {"knn_auroc": 0.75})], [(4, "pca", picture)])
    for step in (5, 6):
        loggers.scalars(step, {"loss": 20.0 + step})
    loggers.close()
    run, history, folder = read_run(tmp_path)
    assert (run.run_id, run.display_name, run.project) == (first.run_id, "lesions", "dinomed")
    assert [(row["_step"], row["loss"]) for row in history] == [
        (1, 11.0), (2, 12.0), (3, 13.0), (4, 14.0), (5, 25.0), (6, 26.0)
    ]  # fmt: skip
    assert (history[3]["knn_auroc"], history[3]["gradient_norm/backbone"]) == (0.75, 0.5)
    assert len(list((folder / "files").rglob("pca_4_*.png"))) == 1
    settings = {item.key or "/".join(item.nested_key): item.value_json for item in run.config.update}
    assert (settings["run.steps"], settings["start.file"]) == ("6", '"w.pt"')
    assert (run.host, run.git.remote_url, run.entity, run.notes, run.run_group, run.job_type) == ("",) * 6
    assert (list(run.tags), list(run.settings.item), run.resume) == ([], [], False)
    content = b"".join(path.read_bytes() for path in (tmp_path / "wandb").rglob("*") if path.is_file())
    assert not [name for name in ("jane-doe", str(tmp_path)) if name.encode() in content]
    assert os.environ.get("WANDB_ERROR_REPORTING") == reporting
    assert "failed" not in capsys.readouterr().err
