"""Data workers: a signal to all processes of a job ends no worker before the trainer has saved."""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_sharer
from pathlib import Path

import pytest
import torch

from dinomed.datasets.manifest import read_manifest
from dinomed.errors import DinomedError
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.data import stream
from dinomed.pretrain.data.stream import Collate, CropStream, RawBatch, load_batches

Load = Callable[[int], Iterator[RawBatch]]


@pytest.fixture
def load(tiny: Callable[..., PretrainConfig], pictures: Path) -> Load:
    config, manifest = tiny(), read_manifest(pictures)
    paths = [str(manifest.path(i)) for i in range(len(manifest))]
    crops = CropStream(paths, manifest.column("image"), config.crops, 3, seed=0)

    def load(workers: int) -> Iterator[RawBatch]:
        collate = Collate(config.masks, (4, 4), 0)
        return load_batches(crops, collate, batch_size=2, first_step=0, last_step=12, workers=workers, pin=False)

    return load


def hang(*_: object, **__: object) -> None:
    time.sleep(600)


def test_a_worker_that_hangs_does_not_outlive_the_error(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "LOADER_TIMEOUT_S", 2)
    monkeypatch.setattr(stream, "read_image", hang)
    before = set(multiprocessing.active_children())
    load: Load = request.getfixturevalue("load")  # the stream takes its reader when it is made
    with pytest.raises(DinomedError, match="a data worker died or hung"):
        next(load(1))
    for worker in set(multiprocessing.active_children()) - before:
        worker.join(60)  # this process would wait for it without end when it exits
        assert not worker.is_alive()


def test_a_worker_that_gets_the_signal_of_the_trainer_goes_on(load: Load) -> None:
    expected = [batch.globals for batch in load(0)]
    before = set(multiprocessing.active_children())
    batches = load(1)
    actual = [next(batches).globals]
    (worker,) = set(multiprocessing.active_children()) - before
    assert worker.pid
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(worker.pid, number)
    actual += [batch.globals for batch in batches]  # more batches than are loaded in advance
    assert all(torch.equal(*pair) for pair in zip(expected, actual, strict=True))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_gets_the_signal_at_its_start_goes_on(
    load: Load, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    start = stream._leave_signals_to_the_trainer

    def start_late(worker: int) -> None:
        os.kill(os.getpid(), number)  # workers are forked, and inherit this
        start(worker)

    monkeypatch.setattr(stream, "_leave_signals_to_the_trainer", start_late)
    assert len(list(load(2))) == 12
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []).isdisjoint({signal.SIGTERM, signal.SIGINT})


def lose_a_receiver(is_worker: bool) -> None:
    """Hand a file over to a process that ends before it takes it, and then to one that takes it."""
    if is_worker:
        stream._leave_signals_to_the_trainer(0)
    descriptor = os.open(os.devnull, os.O_RDONLY)
    lost, taken = resource_sharer.DupFd(descriptor), resource_sharer.DupFd(descriptor)
    with socket.socket(socket.AF_UNIX) as receiver:
        receiver.connect(lost._id[0])
    os.close(taken.detach())  # served after the lost one


@pytest.mark.parametrize("is_worker", [True, False])
def test_a_trainer_that_ends_while_it_takes_a_tensor_leaves_no_traceback_of_a_worker(
    is_worker: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """A second signal ends the trainer at any moment. Without the hook of a worker the thread prints a traceback."""
    process = multiprocessing.get_context("fork").Process(target=lose_a_receiver, args=(is_worker,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert ("Traceback" in capfd.readouterr().err) is not is_worker
