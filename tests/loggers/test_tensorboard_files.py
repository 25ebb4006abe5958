"""Event files, read by TensorBoard's own reader."""

import platform
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinomed.loggers.group import LoggerGroup
from dinomed.loggers.logger import LoggedRun

pytestmark = pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")


def read_events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return events.Reload()


def test_scalars_images_and_settings_are_read_back(
    tmp_path: Path, tensorboard_scalars: Callable[[Path, str], list[tuple[int, float]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((socket, "gethostname"), (socket, "getfqdn"), (platform, "node")):
        monkeypatch.setattr(module, name, lambda: "machine-of-jdoe")
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    loggers = LoggerGroup(["jsonl", "tensorboard"], LoggedRun(tmp_path, "a", {"run.steps": 6, "start.file": "w.pt"}))
    loggers.scalars(1, {"loss": 1.5, "lr": 2e-4, "rank": float("nan"), "note": None})
    loggers.image(1, "pca", pixels)
    loggers.scalars(2, {"loss": 1.25})
    assert tensorboard_scalars(tmp_path, "loss") == [(1, 1.5), (2, 1.25)]  # before `close`: a kill loses nothing
    loggers.close()
    events = read_events(tmp_path)
    assert sorted(events.Tags()["scalars"]) == ["loss", "lr"]
    (image,) = events.Images("pca")
    assert (image.step, image.height, image.width) == (1, 4, 6)
    assert image.encoded_image_string.startswith(b"\x89PNG")
    (text,) = events.Tensors("settings")
    assert b'| start.file | "w.pt" |' in text.tensor_proto.string_val[0]
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert "machine-of-jdoe" not in path.name
    assert b"machine-of-jdoe" not in path.read_bytes()


def test_after_a_kill_and_a_resume_every_step_stands_there_once(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    loggers = LoggerGroup(["tensorboard"], LoggedRun(tmp_path, "a", {"run.steps": 6}))
    for step in range(1, 6):
        loggers.scalars(step, {"loss": 10.0 + step} | ({"rank": 3.0} if step < 3 else {}))  # a value was not written
    loggers.image(4, "pca", pixels)
    loggers.close()
    (old,) = (tmp_path / "tensorboard").iterdir()
    with open(old, "ab") as file:
        file.write(old.read_bytes()[:20])  # an event that the kill has cut off
    copy = old.with_name(old.name + "1")
    copy.write_bytes(old.read_bytes())  # an earlier resume was killed before it removed the old file
    rows = [(step, {"loss": 10.0 + step, "rank": 3.0}) for step in (1, 2, 3, 4)]
    times = {event.step: event.wall_time for event in read_events(tmp_path).Scalars("loss")}
    loggers = LoggerGroup(["tensorboard"], LoggedRun(tmp_path, "a", {"run.steps": 6}, first_step=4), rows)
    loggers.image(4, "pca", pixels)  # the files of the checkpoint are completed
    for step in (5, 6):
        loggers.scalars(step, {"loss": 20.0 + step})
    loggers.close()
    scalars = read_events(tmp_path).Scalars("loss")
    assert [(event.step, event.value) for event in scalars] == [
        (1, 11.0), (2, 12.0), (3, 13.0), (4, 14.0), (5, 25.0), (6, 26.0)
    ]  # fmt: skip
    assert [event.wall_time for event in scalars][:4] == [times[step] for step in (1, 2, 3, 4)]
    assert [event.step for event in read_events(tmp_path).Scalars("rank")] == [1, 2, 3, 4]
    assert [event.step for event in read_events(tmp_path).Images("pca")] == [4]
    assert len(read_events(tmp_path).Tensors("settings")) == 1
    assert not old.exists()
    assert not copy.exists()


def test_a_run_that_starts_again_drops_the_events_of_the_killed_one(
    tmp_path: Path, tensorboard_scalars: Callable[[Path, str], list[tuple[int, float]]]
) -> None:
    for value in (1.0, 2.0):
        loggers = LoggerGroup(["tensorboard"], LoggedRun(tmp_path, "a"))
        loggers.scalars(0, {"knn_auroc": value})
        loggers.close()
    assert tensorboard_scalars(tmp_path, "knn_auroc") == [(0, 2.0)]
