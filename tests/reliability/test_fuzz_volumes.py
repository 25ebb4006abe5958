"""Structure-aware fuzzing of volumes, masks and videos: read, or refused in one line, within bounds."""

import os
import random
import runpy
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dinomed.errors import DinomedError
from dinomed.images.decode import UnreadableImage
from dinomed.isolation.limits import DecodingLimits
from dinomed.isolation.messages import read_message, write_message
from dinomed.isolation.pool import DecodingPool
from dinomed.video.packets import MAX_FRAMES
from dinomed.video.video import Video
from dinomed.volumes.find import VolumeSource, find_volumes
from dinomed.volumes.geometry import Grid
from dinomed.volumes.masks import find_masks, read_mask_volume
from dinomed.volumes.read import read_volume

FOLDER = Path(__file__).parent
MUTATIONS, LONG_MUTATIONS = 12, int(os.environ.get("DINOMED_FUZZ_MUTATIONS", "250"))
"""Of each file; 1,000 of each take about ten minutes."""
GIB_KIB = 2**20


@pytest.fixture(scope="module")
def made() -> SimpleNamespace:
    pytest.importorskip("nibabel")
    return SimpleNamespace(**runpy.run_path(str(FOLDER / "corpus" / "volumes.py")))


@pytest.fixture(scope="module")
def mutations() -> SimpleNamespace:
    images = runpy.run_path(str(FOLDER / "fuzz" / "mutate.py"))
    return SimpleNamespace(dicom=images["mutate"], **runpy.run_path(str(FOLDER / "fuzz" / "mutate_volumes.py")))


@pytest.fixture(autouse=True)
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[DecodingPool]:
    """Limits of 1 GiB and 20 s: the files need a few MB and milliseconds, a busy machine needs the rest."""
    pool = DecodingPool()
    pool.limits = DecodingLimits(memory_bytes=2**30, cpu_s=20, wall_s=120, output_bytes=2**24)
    for module in ("volumes.find", "volumes.read", "volumes.masks", "video.video"):
        monkeypatch.setattr(f"dinomed.{module}.shared_pool", lambda: pool)
    yield pool
    pool.close()


def check_reason(reason: str) -> None:
    assert reason.isprintable(), reason
    assert 0 < len(reason) < 400, reason
    assert "Planted" not in reason, reason


def check_mask(path: Path, grid: Grid) -> bool:
    """Read a mask; return whether it was refused."""
    try:
        mask = read_mask_volume(path, grid)
    except UnreadableImage as error:
        check_reason(error.reason)
        return True
    assert mask.shape == grid.shape
    return False


def check_volumes(folder: Path) -> int:
    """Read the volumes of a folder; return how many files or volumes were refused."""
    search = find_volumes([folder])
    refused = len(search.problems)
    for _, reason in search.problems:
        check_reason(reason)
    for source in search.sources:
        try:
            volume = read_volume(source)
            assert volume.values.shape == volume.grid.shape
        except UnreadableImage as error:
            check_reason(error.reason)
            refused += 1
    return refused


def fuzz_niftis(folder: Path, made: SimpleNamespace, mutations: SimpleNamespace, name: str, count: int) -> None:
    """Read mutations of a NIfTI file as a volume and as a mask."""
    seed, refused = made.VOLUMES[name](), 0
    (folder / name).write_bytes(seed)
    assert check_volumes(folder) == 0
    grid = read_volume(VolumeSource(folder / name, "a")).grid
    for number in range(count):
        (folder / name).write_bytes(mutations.mutate_nifti(seed, random.Random(f"{name} {number}")))
        refused += check_volumes(folder)
        check_mask(folder / name, grid)
    assert 0 < refused < count


def fuzz_series(folder: Path, made: SimpleNamespace, mutations: SimpleNamespace, count: int) -> None:
    """Read a series of three slices, of which one is mutated."""
    seeds, refused = [made.slice_of_series(number) for number in range(3)], 0
    for number, seed in enumerate(seeds):
        (folder / f"{number}.dcm").write_bytes(seed)
    assert check_volumes(folder) == 0
    for number in range(count):
        changed = number % 3
        (folder / f"{changed}.dcm").write_bytes(mutations.dicom(seeds[changed], random.Random(f"series {number}")))
        refused += check_volumes(folder) > 0
        (folder / f"{changed}.dcm").write_bytes(seeds[changed])
    assert 0 < refused < count


def fuzz_masks(folder: Path, made: SimpleNamespace, mutations: SimpleNamespace, count: int) -> None:
    """Read mutations of a DICOM segmentation as the mask of its series."""
    for number in range(3):
        (folder / f"{number}.dcm").write_bytes(made.slice_of_series(number))
    (source,) = find_volumes([folder]).sources
    grid, seed, path, refused = read_volume(source).grid, made.segmentation(), folder / "seg.dcm", 0
    path.write_bytes(seed)
    assert list(find_masks(path).by_series) == ["1.2.3"]
    assert read_mask_volume(path, grid).any()
    for number in range(count):
        path.write_bytes(mutations.dicom(seed, random.Random(f"mask {number}")))
        try:
            masks = find_masks(path)
            for _, reason in masks.problems:
                check_reason(reason)
        except DinomedError as error:
            check_reason(str(error))
        refused += check_mask(path, grid)
    assert 0 < refused < count


def fuzz_videos(folder: Path, made: SimpleNamespace, mutations: SimpleNamespace, suffix: str, count: int) -> None:
    """Read all frames of mutations of a video; a decoder that ends is a refusal, too."""
    seed = made.video(made.VIDEOS[suffix], suffix, folder)
    if not seed:
        pytest.skip(f"this build of OpenCV does not encode {made.VIDEOS[suffix]}")
    path = folder / f"a.{suffix}"
    path.write_bytes(seed)
    assert [frame.number for frame in Video(path).stream()] == list(range(12))
    for number in range(count):
        path.write_bytes(mutations.mutate_video(seed, random.Random(f"{suffix} {number}")))
        try:
            video = Video(path)
            assert (video.facts.frames or 0) <= MAX_FRAMES
            numbers = [frame.number for frame in video.stream()]
            assert numbers == sorted(set(numbers))
        except UnreadableImage as error:
            check_reason(error.reason)
    path.write_bytes(seed[:10])  # which mutations are refused depends on the encoder
    with pytest.raises(UnreadableImage):
        list(Video(path).stream())


NAMES = ("a.nii", "b.nii", "c.nii.gz")


@pytest.mark.parametrize("name", NAMES)
def test_a_mutated_nifti_file_is_read_or_refused(
    tmp_path: Path, made: SimpleNamespace, mutations: SimpleNamespace, name: str
) -> None:
    fuzz_niftis(tmp_path, made, mutations, name, MUTATIONS)


def test_a_series_with_a_mutated_slice_is_read_or_refused(
    tmp_path: Path, made: SimpleNamespace, mutations: SimpleNamespace
) -> None:
    fuzz_series(tmp_path, made, mutations, MUTATIONS)


def test_a_mutated_segmentation_is_aligned_or_refused(
    tmp_path: Path, made: SimpleNamespace, mutations: SimpleNamespace
) -> None:
    fuzz_masks(tmp_path, made, mutations, MUTATIONS)


@pytest.mark.parametrize("suffix", ["avi", "mp4"])
def test_a_mutated_video_is_read_or_refused(
    tmp_path: Path, made: SimpleNamespace, mutations: SimpleNamespace, suffix: str
) -> None:
    fuzz_videos(tmp_path, made, mutations, suffix, MUTATIONS)


@pytest.mark.long
def test_many_mutated_volumes_and_videos_are_read_or_refused(
    tmp_path: Path, made: SimpleNamespace, mutations: SimpleNamespace
) -> None:
    for name in NAMES:
        (tmp_path / name).mkdir()
        fuzz_niftis(tmp_path / name, made, mutations, name, LONG_MUTATIONS)
    for fuzz in (fuzz_series, fuzz_masks):
        (tmp_path / fuzz.__name__).mkdir()
        fuzz(tmp_path / fuzz.__name__, made, mutations, LONG_MUTATIONS)
    for suffix in made.VIDEOS:
        (tmp_path / suffix).mkdir()
        fuzz_videos(tmp_path / suffix, made, mutations, suffix, LONG_MUTATIONS // 10)


@pytest.mark.long
def test_a_compressed_volume_is_read_as_far_as_its_header_declares_and_within_the_memory(
    tmp_path: Path, made: SimpleNamespace, pool: DecodingPool, memory_growth: Callable[[], int]
) -> None:
    """Files of 500 kB: 100 million voxels need more than the limit; of a lie, the declared part is read."""
    pool.limits = DecodingLimits(memory_bytes=2**29, cpu_s=20, wall_s=120)
    (tmp_path / "honest.nii.gz").write_bytes(made.nifti_bomb((1000, 1000, 100)))
    (tmp_path / "more.nii.gz").write_bytes(made.nifti_bomb((1000, 1000, 50), declared=(6, 5, 4)))
    (tmp_path / "less.nii.gz").write_bytes(made.nifti_bomb((6, 5, 4), declared=(1000, 1000, 50)))
    assert all(path.stat().st_size < 2**20 for path in tmp_path.iterdir())
    with pytest.raises(UnreadableImage, match=r"needs more than 0\.5 GiB to decode"):
        read_volume(VolumeSource(tmp_path / "honest.nii.gz", "a"))
    assert read_volume(VolumeSource(tmp_path / "more.nii.gz", "a")).values.shape == (6, 5, 4)
    with pytest.raises(UnreadableImage, match="truncated"):
        read_volume(VolumeSource(tmp_path / "less.nii.gz", "a"))
    assert memory_growth() < GIB_KIB // 4


def test_an_answer_of_a_decoding_process_is_in_memory_once(tmp_path: Path) -> None:
    values = np.zeros((2**22, 8), np.float32)  # 128 MiB
    with open(tmp_path / "message", "wb") as file:
        write_message(file, None, values)
    with open(tmp_path / "message", "rb") as file:
        tracemalloc.start()
        try:
            _, array = read_message(file, values.nbytes)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert np.array_equal(array, values)
    assert array.flags.writeable
    assert peak < 1.2 * values.nbytes
