"""Decoding processes: a file that ends its process is named with the reason, and its neighbours are read."""

import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dinomed.datasets.open import open_dataset
from dinomed.datasets.scan.scan import scan
from dinomed.errors import DinomedError, UsageError
from dinomed.images.decode import UnreadableImage
from dinomed.images.intensity import IntensityConfig
from dinomed.images.read import read_image
from dinomed.isolation.images import read_image_isolated
from dinomed.isolation.limits import DecodingLimits, decoding_limits
from dinomed.isolation.messages import read_message, write_message
from dinomed.isolation.pool import DecodingPool

HOSTILE = """
import ctypes, os, signal, time
import numpy as np
from dinomed.images.decode import refusing

def act(path, how):
    if how == "killed once" and not os.path.isdir(path):
        os.mkdir(path)
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "crash":
        ctypes.string_at(0)
    if how == "compute":
        while True:
            pass
    if how == "wait":
        time.sleep(1000)
    if how == "memory":
        with refusing(path):
            bytearray(2 * 10**9)
    if how == "output":
        return None, np.zeros(20_000_000, np.uint8)
    if how == "write":
        with refusing(path), open(path, "w") as file:
            file.write("x")
    if how == "bug":
        raise KeyError("x")
    return {"path": path}, None
"""


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DecodingPool]:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "hostile_reader.py").write_text(HOSTILE)
    monkeypatch.syspath_prepend(tmp_path / "code")
    pool = DecodingPool()
    pool.limits = DecodingLimits(memory_bytes=10**9, cpu_s=1, wall_s=20, output_bytes=10**7)
    yield pool
    pool.close()
    assert not pool._all


def act(pool: DecodingPool, *files: tuple[str, str]) -> list[object]:
    answers = pool.run("hostile_reader:act", files)
    return [answer.reason if isinstance(answer, UnreadableImage) else answer[0]["path"] for answer in answers]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce all limits")
def test_each_bad_file_is_named_with_its_reason_and_its_neighbours_are_read(pool: DecodingPool, tmp_path: Path) -> None:
    answers = act(
        pool, ("a", ""), ("b", "killed"), ("c", ""), ("d", "crash"), ("e", "compute"), ("f", "memory"), ("g", ""),
        ("h", "output"), (str(tmp_path / "i"), "write"), (str(tmp_path / "j"), "killed once"), ("k", ""),
    )  # fmt: skip
    assert answers == [
        "a",
        "its decoder ended by signal SIGKILL",
        "c",
        "its decoder ended by signal SIGSEGV",
        "needs more than 1 s of processor time to decode",
        "needs more than 0.931323 GiB to decode; set DINOMED_DECODE_GB",
        "g",
        "its decoded pixels exceed the limit of a decoding process",
        "damaged ([Errno 27] File too large)",
        str(tmp_path / "j"),
        "k",
    ]


def test_a_file_that_waits_is_given_up(pool: DecodingPool) -> None:
    pool.limits = DecodingLimits(cpu_s=60, wall_s=2)
    assert act(pool, ("a", "wait"), ("b", "")) == ["not decoded within 2 s", "b"]


def test_a_bug_is_not_called_a_damaged_file(pool: DecodingPool) -> None:
    with pytest.raises(DinomedError, match="a decoding process failed: KeyError"):
        act(pool, ("a", "bug"))
    assert act(pool, ("a", "")) == ["a"]


def test_a_process_that_ended_while_it_was_idle_is_replaced(pool: DecodingPool) -> None:
    assert act(pool, ("a", "")) == ["a"]
    (process,) = pool._all
    process.process.kill()
    process.process.wait()
    assert act(pool, ("a", "")) == ["a"]
    assert process not in pool._all


def test_a_message_that_is_too_large_or_holds_objects_is_refused() -> None:
    stream = BytesIO()
    write_message(stream, {"a": 1}, np.arange(6, dtype=np.int16).reshape(2, 3))
    stream.seek(0)
    content, array = read_message(stream, 12)
    assert (content, array.tolist()) == ({"a": 1}, [[0, 1, 2], [3, 4, 5]])
    stream.seek(0)
    with pytest.raises(ValueError, match="too large"):
        read_message(stream, 11)
    with pytest.raises(ValueError, match="objects"):
        read_message(BytesIO(stream.getvalue().replace(b"<i2", b"|O8")), 12)
    with pytest.raises(EOFError):
        read_message(BytesIO(stream.getvalue()[:-1]), 12)


def test_settings_of_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINOMED_DECODE_GB", "0.5")
    monkeypatch.setenv("DINOMED_DECODE_S", "7")
    limits = decoding_limits()
    assert (limits.memory_bytes, limits.cpu_s, limits.wall_s) == (2**29, 7, 28)
    monkeypatch.setenv("DINOMED_DECODE_S", "soon")
    with pytest.raises(UsageError, match="DINOMED_DECODE_S=soon: expected a positive number"):
        decoding_limits()


@pytest.mark.parametrize("bits", [None, 16])
def test_pixels_of_a_decoding_process_are_the_same(tmp_path: Path, corpus: SimpleNamespace, bits: int | None) -> None:
    intensity = IntensityConfig(bits=bits)
    for name in ("jpeg", "png-16", "tiff-deflate", "dicom"):
        path = tmp_path / name
        path.write_bytes(corpus.SEEDS[name]())
        isolated = read_image_isolated(path, intensity=intensity)
        np.testing.assert_array_equal(isolated, read_image(path, intensity=intensity))
        isolated[0, 0] = 0  # it can be changed, as an array of this process
    with pytest.raises(UnreadableImage) as caught:
        read_image_isolated(tmp_path / "absent.png")
    assert str(caught.value) == f"{tmp_path / 'absent.png'}: does not exist"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit memory")
def test_a_scan_names_the_image_or_the_mask_that_needs_too_much_memory(
    tmp_path: Path, corpus: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = DecodingPool()
    pool.limits = DecodingLimits(memory_bytes=2**28)
    monkeypatch.setattr("dinomed.datasets.scan.facts.shared_pool", lambda: pool)
    side = 9_900
    large = corpus.encode(np.zeros((side, side), np.uint8), "PNG", compress_level=1)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for index in range(4):
            corpus.Image.fromarray(np.full((12, 16), 255 * (index % 2), np.uint8)).save(
                tmp_path / folder / f"{index}.png"
            )
    (tmp_path / "images" / "0.png").write_bytes(large)
    result = scan(tmp_path)
    pool.close()
    assert result.unreadable == [("images/0.png", "needs more than 0.25 GiB to decode; set DINOMED_DECODE_GB")]
    assert result.manifest.column("image") == ["images/1.png", "images/2.png", "images/3.png"]


def test_without_processes_the_same_is_read(
    tmp_path: Path, corpus: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINOMED_DECODE_HERE", "1")
    pool = DecodingPool()
    monkeypatch.setattr("dinomed.datasets.scan.facts.shared_pool", lambda: pool)
    (tmp_path / "a.png").write_bytes(corpus.SEEDS["png"]())
    (tmp_path / "b.png").write_bytes(b"no image")
    result = scan(tmp_path)
    assert result.unreadable == [("b.png", "text, not an image")]
    assert result.manifest.column("image") == ["a.png"]
    assert not pool._all


def test_a_bare_folder_is_decoded_in_processes_and_a_manifest_is_not(tmp_path: Path, corpus: SimpleNamespace) -> None:
    (tmp_path / "a.png").write_bytes(corpus.SEEDS["png"]())
    assert not open_dataset(tmp_path).decoded
    assert not open_dataset(tmp_path / "a.png").decoded
    assert not open_dataset(tmp_path).take([0]).decoded
    assert open_dataset(tmp_path, decode=True).decoded
    assert scan(tmp_path).manifest.decoded


def test_a_decoding_process_ends_with_the_program(pool: DecodingPool) -> None:
    act(pool, ("a", ""))
    (process,) = pool._all
    process.process.stdin.close()
    assert process.process.wait(30) == 0
