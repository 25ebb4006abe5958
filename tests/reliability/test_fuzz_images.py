"""Structure-aware fuzzing of the image readers: each mutated file is read, or refused as unreadable within bounds."""

import os
import random
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from dinomed.images.decode import UnreadableImage
from dinomed.isolation.limits import DecodingLimits
from dinomed.isolation.pool import DecodingPool

FOLDER = Path(__file__).parent
NAMES = sorted(runpy.run_path(str(FOLDER / "corpus" / "images.py"))["SEEDS"])
MUTATIONS, LONG_MUTATIONS = 25, int(os.environ.get("DINOMED_FUZZ_MUTATIONS", "1000"))
"""For each seed file: a run of some 20 s on one core, and of about 15 minutes."""


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodingPool]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER / "fuzz")
        pool = DecodingPool()
        # 1 GiB and 20 s: the seeds need a few MB and milliseconds, a busy machine needs the rest. A PNG of 1,390 bytes
        # with a large header, 4 s for all readers on an idle core, took two minutes between ten other processes.
        pool.limits = DecodingLimits(memory_bytes=2**30, cpu_s=20, wall_s=900, output_bytes=2**20)
        yield pool
        pool.close()


@pytest.fixture(scope="session")
def mutate() -> Callable[[bytes, random.Random], bytes]:
    return runpy.run_path(str(FOLDER / "fuzz" / "mutate.py"))["mutate"]  # type: ignore[no-any-return]


def check(
    folder: Path,
    pool: DecodingPool,
    mutate: Callable[[bytes, random.Random], bytes],
    name: str,
    seed: bytes,
    count: int,
) -> None:
    """Read mutations of a seed file in a decoding process."""
    paths = []
    for index in range(count):
        path = folder / f"{name}-{index}"
        path.write_bytes(mutate(seed, random.Random(f"{name} {index}")))
        paths.append([str(path)])
    refused = 0
    for (path,), answer in zip(paths, pool.run("check_reading:check_reading", paths), strict=True):
        assert not isinstance(answer, UnreadableImage), f"{path}: {answer}"  # the process ended
        for reason in answer[0]:
            assert reason == reason.strip(), path
            assert "\n" not in reason, path
            assert 0 < len(reason) < 250, path
            assert "Planted" not in reason, path
            refused += 1
    assert refused  # some mutations damage the file


def test_the_seeds_are_read(tmp_path: Path, pool: DecodingPool, corpus: SimpleNamespace) -> None:
    for name in NAMES:
        (tmp_path / name).write_bytes(corpus.SEEDS[name]())
    paths = [[str(tmp_path / name)] for name in NAMES]
    answers = pool.run("dinomed.isolation.images:read_pixels", [[path, 3, {}, 10**6, None] for (path,) in paths])
    for name, answer in zip(NAMES, answers, strict=True):
        if "bands" in name or name == "npy":
            assert isinstance(answer, UnreadableImage), name
            assert answer.reason == "an image of 5 channels does not fit a backbone that takes 3"
        else:
            assert not isinstance(answer, UnreadableImage), f"{name}: {answer}"
            assert answer[1] is not None


@pytest.mark.parametrize("name", NAMES)
def test_a_mutated_file_is_read_or_refused(
    tmp_path: Path, pool: DecodingPool, corpus: SimpleNamespace, mutate: Callable[..., bytes], name: str
) -> None:
    check(tmp_path, pool, mutate, name, corpus.SEEDS[name](), MUTATIONS)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_many_mutated_files_are_read_or_refused(
    tmp_path: Path, pool: DecodingPool, corpus: SimpleNamespace, mutate: Callable[..., bytes], name: str
) -> None:
    check(tmp_path, pool, mutate, name, corpus.SEEDS[name](), LONG_MUTATIONS)


@pytest.mark.parametrize(("name", "index"), [("dicom-jpeg", 1534)])
def test_a_file_that_ended_a_decoder_is_refused(
    tmp_path: Path, pool: DecodingPool, corpus: SimpleNamespace, mutate: Callable[..., bytes], name: str, index: int
) -> None:
    """Found with 2,500 mutations: what Pillow refused went on to GDCM, which ended the process."""
    path = tmp_path / "damaged"
    path.write_bytes(mutate(corpus.SEEDS[name](), random.Random(f"{name} {index}")))
    answer = next(iter(pool.run("check_reading:check_reading", [[str(path)]])))
    assert not isinstance(answer, UnreadableImage), answer
    assert answer[0]
