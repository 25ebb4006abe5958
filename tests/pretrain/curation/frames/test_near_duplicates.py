"""Near-duplicate frames by hash and descriptor: a moving camera, few frames, memory, videos without an index."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import dinomed
from dinomed.datasets.synthetic.endoscopy import draw_endoscopy
from dinomed.pretrain.curation.deduplication.thresholds import WITHIN
from dinomed.pretrain.curation.descriptors.projection import Projection
from dinomed.pretrain.curation.descriptors.synthetic_copies import add_copies
from dinomed.pretrain.curation.frames import duplicates
from dinomed.pretrain.curation.frames.config import FrameConfig
from dinomed.pretrain.curation.frames.duplicates import FIT_FRAMES, MIN_FIT_FRAMES, NearDuplicates, fit_frames
from dinomed.pretrain.curation.frames.measures import find_fault, quality_limits
from dinomed.video.facts import VideoFrame
from dinomed.video.video import Video
from dinomed.video.write import writing_video

SCENES, VIEWS, SIZE = 6, 8, (120, 160)


def moved(scene: np.ndarray, view: int) -> np.ndarray:
    """A scene as a camera shows it that turns, moves and changes its brightness a little from view to view."""
    turn, light = 3 * np.sin(view), 1 + 0.05 * np.sin(2 * view)
    matrix = cv2.getRotationMatrix2D((SIZE[1] / 2, SIZE[0] / 2), turn, 1.15 + 0.03 * np.cos(view))
    matrix[:, 2] += 5 * np.sin(3 * view), 5 * np.cos(view)
    frame = cv2.warpAffine(scene, matrix, SIZE[::-1], flags=cv2.INTER_AREA)
    return np.clip(frame * light, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight views of each of six scenes, one after the other."""
    path = tmp_path_factory.mktemp("videos") / "scenes.avi"
    with writing_video(path, SIZE, 25) as append:
        for seed in range(SCENES):
            scene = next(iter(draw_endoscopy(1, SIZE, seed, faults=False))).pixels
            for view in range(VIEWS):
                append(moved(scene, view))
    return path


def test_the_descriptor_finds_views_of_a_scene_that_the_hash_takes_for_others(video: Path, tmp_path: Path) -> None:
    hashes = dinomed.frames(video, tmp_path / "hashes", fps=0, duplicate_cosine=1)
    both = dinomed.frames(video, tmp_path / "both", fps=0)
    assert len(hashes.manifest) > 40  # of 48 views: nearly all
    kept = [int(number) for number in both.manifest.column("frame")]
    assert {number // VIEWS for number in kept} == set(range(SCENES))
    assert len(kept) < 30
    dropped = [row.split(",") for row in (both.folder / "dropped.csv").read_text().splitlines()[1:]]
    assert len(dropped) == SCENES * VIEWS - len(kept)
    for _, number, _, reason in dropped:
        assert int(reason.removeprefix("near-duplicate of frame ")) // VIEWS == int(number) // VIEWS


def test_a_video_of_few_usable_frames_is_compared_by_hash(video: Path) -> None:
    opened, calls = Video(video), list[int]()

    def usable(_: np.ndarray) -> bool:
        calls.append(1)
        return len(calls) < MIN_FIT_FRAMES

    assert fit_frames(opened, usable) is None
    assert len(calls) == FIT_FRAMES
    frames = [frame.pixels for frame in opened.stream()]
    without = NearDuplicates(24, 0.7, lambda: None)
    hashes = NearDuplicates(24, 1.0, lambda: pytest.fail("hashes need no fit"))
    found = [(without.find(frame, number), hashes.find(frame, number)) for number, frame in enumerate(frames)]
    assert all(first == second for first, second in found)
    assert [first for first, _ in found].count(None) > 40


def test_the_last_kept_frames_are_compared_and_named_by_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MEMORY", 3)
    monkeypatch.setattr(duplicates, "compose", lambda pixels: np.eye(8, dtype=np.float32)[int(pixels[0, 0, 0])])
    rng = np.random.default_rng(0)

    def frame(kind: int) -> np.ndarray:
        pixels = rng.integers(0, 256, (64, 64, 3), np.uint8)  # another hash each time
        pixels[0, 0] = kind
        return pixels

    kept = NearDuplicates(24, 0.7, lambda: Projection(np.zeros(8, np.float32), np.eye(8, dtype=np.float32)))
    assert [kept.find(frame(kind), 10 * kind) for kind in range(5)] == [None] * 5
    assert [kept.find(frame(kind), 99) for kind in (2, 3, 4)] == [20, 30, 40]
    assert kept.find(frame(1), 50) is None  # it was kept before the last three
    assert [kept.find(frame(kind), 99) for kind in (3, 4, 1)] == [30, 40, 50]


def test_the_frames_of_a_video_without_an_index_are_as_evenly_spaced(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, seen = Video(video), list[np.ndarray]()

    def usable(pixels: np.ndarray) -> bool:
        seen.append(pixels)
        return True

    with_index = fit_frames(opened, usable)
    assert with_index is not None
    assert len(seen) == FIT_FRAMES
    opened.facts = replace(opened.facts, frames=None, indexed=False)
    monkeypatch.setattr(duplicates, "FIT_FRAMES", 20)  # of 48 frames every fourth is left
    monkeypatch.setattr(duplicates, "MIN_FIT_FRAMES", 10)
    seen.clear()
    monkeypatch.setattr(duplicates, "add_copies", lambda frame, *place: seen.append(frame) or add_copies(frame, *place))
    assert fit_frames(opened, lambda pixels: True) is not None
    assert len(seen) == 12
    every = [frame.pixels for frame in Video(video).stream()]
    places = [next(i for i, pixels in enumerate(every) if np.array_equal(pixels, frame)) for frame in seen]
    assert len(set(np.diff(places))) == 1


def test_frames_are_judged_in_their_full_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sharp = next(iter(draw_endoscopy(1, (480, 640), 0, faults=False))).pixels
    blurred = cv2.GaussianBlur(sharp, (0, 0), 6)
    limits = quality_limits(FrameConfig())
    assert find_fault(blurred, limits, 0) == "blurred"
    assert find_fault(duplicates.shrink(blurred), limits, 0) is None
    monkeypatch.setattr(Video, "read", lambda video, number: VideoFrame(number, 0.0, blurred))
    monkeypatch.setattr(Video, "stream", lambda video: (VideoFrame(k, 0.0, blurred) for k in range(MIN_FIT_FRAMES)))
    with writing_video(tmp_path / "in.avi", (48, 64), 25) as append:
        for _ in range(MIN_FIT_FRAMES):
            append(np.zeros((48, 64), np.uint8))
    opened = Video(tmp_path / "in.avi")
    for frames in (MIN_FIT_FRAMES, None):
        opened.facts = replace(opened.facts, frames=frames, indexed=frames is not None)
        assert fit_frames(opened, lambda pixels: find_fault(pixels, limits, 0) is None) is None


def test_the_threshold_is_that_of_the_curation() -> None:
    assert FrameConfig().duplicate_cosine == WITHIN["composed"].sure
