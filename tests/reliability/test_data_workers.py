"""A data worker that is killed: the message names the image that it read, and no other."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinomed.errors import DinomedError
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.data import stream
from dinomed.pretrain.data.config import CropConfig
from dinomed.pretrain.data.masking import MaskConfig
from dinomed.pretrain.monitoring.run_log import RunLog


def consume(batches: Iterator[Any], images: stream.CropStream) -> None:
    """Read all batches, as the trainer does: torch may report a dead worker between two of them."""
    try:
        for _ in batches:
            pass
    except RuntimeError as error:
        raise stream.worker_failure(error, images) or error from None


@pytest.mark.parametrize("at", [2, 5])
def test_the_image_that_killed_a_data_worker_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    for index in range(8):
        Image.fromarray(np.full((40, 40, 3), index, np.uint8)).save(tmp_path / f"{index}.png")
    read = stream.read_image

    def deadly(path: str, **options: Any) -> np.ndarray:
        if Path(path).name == f"{at}.png":
            os.kill(os.getpid(), signal.SIGKILL)
        return read(path, **options)

    monkeypatch.setattr(stream, "read_image", deadly)  # data workers are forked, and inherit it
    names = [f"{index}.png" for index in range(8)]
    crops = CropConfig(global_size=32, local_size=16, num_local=0, blur_kernel=3)
    images = stream.CropStream([str(tmp_path / name) for name in names], names, crops, 3, seed=0)
    collate = stream.Collate(MaskConfig(), (4, 4), seed=0)
    batches = stream.load_batches(images, collate, batch_size=2, first_step=0, last_step=4, workers=2, pin=False)
    with pytest.raises(DinomedError, match=rf"^a data worker died or hung while it read {at}\.png \("):
        consume(batches, images)


def test_a_run_that_was_killed_before_its_first_checkpoint_writes_each_line_once(tmp_path: Path) -> None:
    for _ in range(3):
        log = RunLog(tmp_path, PretrainConfig(), 0)
        log.write(0, {"knn": 0.5})
        log.write(1, {"loss": 2.0})
        log.close()
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
    RunLog(tmp_path, PretrainConfig(), 1).close()
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
