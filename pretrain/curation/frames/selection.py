"""Selection of the frames of a video: by rate and scene change, without faults and near-duplicates."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dinomed.config import build_config
from dinomed.pretrain.curation.deduplication.hashes import thumbnail
from dinomed.pretrain.curation.frames.config import FrameConfig
from dinomed.pretrain.curation.frames.duplicates import NearDuplicates, fit_frames
from dinomed.pretrain.curation.frames.measures import find_fault, quality_limits, scene_difference
from dinomed.video.facts import VideoFrame
from dinomed.video.video import Video

_WHOLE = 1e-3  # a ratio of rates this near to a whole number is one


@dataclass(frozen=True)
class JudgedFrame:
    """A candidate, and the reason why it is dropped; None if it is kept."""

    frame: VideoFrame
    reason: str | None


def build_frame_config(settings: Mapping[str, Any]) -> FrameConfig:
    """Return the settings of the selection.

    Raises:
        UsageError: a setting is out of its range.
    """
    return build_config(FrameConfig, dict(settings), "the selection of frames")


def build_rule(settings: Mapping[str, Any]) -> Callable[[Video], Iterator[tuple[VideoFrame, str | None]]]:
    """Return the selection with these settings as a function of a video, for `dinomed.datasets.scan.frames`.

    Raises:
        UsageError: a setting is out of its range.
    """
    config = build_frame_config(settings)
    return lambda video: ((judged.frame, judged.reason) for judged in judge_frames(video, config))


def judge_frames(video: Video, config: FrameConfig) -> Iterator[JudgedFrame]:
    """Yield the candidates of a video by rate and scene change, in order, each with the decision.

    A few frames are in memory at a time.
    """
    limits = quality_limits(config)
    kept = None
    if config.duplicate_bits >= 0:
        fit = partial(fit_frames, video, lambda pixels: find_fault(pixels, limits, config.min_tissue) is None)
        kept = NearDuplicates(config.duplicate_bits, config.duplicate_cosine, fit)
    for frame in _candidates(video, config):
        reason = find_fault(frame.pixels, limits, config.min_tissue)
        if reason is None and kept is not None and (same := kept.find(frame.pixels, frame.number)) is not None:
            reason = f"near-duplicate of frame {same}"
        yield JudgedFrame(frame, reason)


def _candidates(video: Video, config: FrameConfig) -> Iterator[VideoFrame]:
    if config.fps == 0:
        yield from video.stream()
        return
    period, half_frame = 1 / config.fps, 0.5 / video.facts.fps
    taken = 0  # periods whose frame is taken
    before: np.ndarray | None = None
    for frame in video.stream(step=_step(video, config)):
        changed = False
        if config.scene_change is not None:
            small = thumbnail(frame.pixels)
            changed = before is not None and scene_difference(before, small) > config.scene_change
            before = small
        due = frame.time_s + half_frame >= taken * period
        if due:
            taken = int((frame.time_s + half_frame) / period) + 1
        if due or changed:
            yield frame


def _step(video: Video, config: FrameConfig) -> int:
    """Return the number of frames from one candidate to the next, 1 if every frame has to be looked at."""
    ratio = video.facts.fps / config.fps
    regular = config.scene_change is None and abs(ratio - round(ratio)) < _WHOLE and video.facts.constant_rate
    return max(1, round(ratio)) if regular else 1
