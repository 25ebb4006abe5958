"""Frames of videos as rows of a scan."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dinomed.datasets.scan.facts import Facts, add_mask
from dinomed.datasets.scan.labels import Labels
from dinomed.datasets.scan.walk import WalkResult
from dinomed.errors import UsageError
from dinomed.images.decode import UnreadableImage
from dinomed.images.dicom.elements import is_dicom
from dinomed.images.dicom.patient import read_patient
from dinomed.images.dicom.pixels import read_dicom_header
from dinomed.images.frames import frame_digest, frame_path
from dinomed.images.unchanged import change_time
from dinomed.io.prefetch import prefetch
from dinomed.progress import bar
from dinomed.video.facts import VideoFrame, is_video
from dinomed.video.images import frame_header
from dinomed.video.video import Video

FrameRule = Callable[[Video], Iterator[tuple[VideoFrame, str | None]]]
"""Yields the candidates of a video in order, each with the reason why it is dropped, None if it is kept."""
COLUMNS = ("video", "frame", "time_s")
_LISTED = 5  # problems in warnings; the list of unreadable files has all


@dataclass
class VideoRows:
    """The rows of one video.

    Attributes:
        facts: of each frame that is kept, in their order.
        places: number and time in s of each of these frames.
        dropped: (video, number, time in s, reason) of candidates that are not used.
        problems: (path, reason) of the video or its frames, where they cannot be read.
        notes: lines about assumed values and slow access.
    """

    facts: list[Facts] = field(default_factory=list)
    places: list[tuple[int, float]] = field(default_factory=list)
    dropped: list[tuple[str, int, str | None, str]] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def take_videos(folder: Path, walked: WalkResult) -> list[str]:
    """Take the videos, with the DICOM files of several frames, out of the files of a search, and return them."""
    several = {name for name in walked.images if _has_frames(folder / name)}
    walked.images = [name for name in walked.images if name not in several]
    names = sorted([*walked.videos, *several])
    walked.videos = []
    return names


def _has_frames(path: Path) -> bool:
    try:
        return is_dicom(path) and is_video(path)
    except UnreadableImage:
        return False  # it is reported as an image


def named_frames(table: Labels, videos: Sequence[str]) -> dict[str, set[int]]:
    """Return for each video the numbers of the frames that the table of labels names.

    Raises:
        UsageError: the row of a whole video has a mask.
    """
    numbers: dict[str, set[int]] = {video: set() for video in videos}
    for name, row in table.rows.items():
        if name in numbers and row.get("mask") is not None:
            raise UsageError(f"a mask belongs to a frame, not to a video: name the frame, {frame_path(name, 120)}")
        video, _, frame = name.rpartition("/")
        if video in numbers:
            numbers[video].add(int(frame.removeprefix("frame_")))
    return numbers


def read_videos(
    folder: Path,
    numbers: Mapping[str, set[int]],
    rule: FrameRule,
    masks: Mapping[str, str],
    label_maps: bool = False,
    workers: int | None = None,
) -> dict[str, VideoRows]:
    """Read the selected frames of videos, and those that are named, in processes with limits; no frame is kept.

    Args:
        folder: folder of the videos.
        numbers: video -> numbers of frames that are used in any case.
        rule: the selection of the others.
        masks: frame -> path of its mask.
        label_maps: masks hold the values of several classes.
        workers: videos that are read at the same time.
    """
    rows: dict[str, VideoRows] = {}
    with bar("reading videos", len(numbers)) as progress:

        def read(video: str) -> VideoRows:
            return _read_video(folder, video, set(numbers[video]), rule, masks, label_maps)

        for video, result in zip(numbers, prefetch(read, numbers, workers, ahead=0), strict=True):
            rows[video] = result
            progress.advance()
    return rows


def _read_video(
    folder: Path, name: str, wanted: set[int], rule: FrameRule, masks: Mapping[str, str], label_maps: bool
) -> VideoRows:
    rows, frames = VideoRows(), dict[int, tuple[Facts, float]]()
    path = folder / name
    try:
        status = path.stat()  # before the content, so that a later change is seen
        video = Video(path)
        header, patient, study = frame_header(video.facts), None, None
        if is_dicom(path):
            header, (patient, study) = (
                replace(read_dicom_header(path), frames=1, video_stream=False),
                read_patient(path),
            )

        def keep(frame: VideoFrame) -> None:
            image = frame_path(name, frame.number)
            facts = Facts(
                image, frame_digest(frame.pixels), status.st_size, change_time(status), header,
                patient=patient, study=study,
            )  # fmt: skip
            if image in masks:
                facts = add_mask(folder, facts, masks[image], label_maps)
            frames[frame.number] = facts, frame.time_s

        try:
            for frame, reason in rule(video):
                if reason is None or frame.number in wanted:
                    keep(frame)
                else:
                    rows.dropped.append((name, frame.number, f"{frame.time_s:.3f}", reason))
        except UnreadableImage as error:
            rows.problems.append((name, error.reason))
        for number in sorted(wanted - frames.keys()):
            try:
                keep(video.read(number))
            except UnreadableImage as error:
                rows.problems.append((frame_path(name, number), f"in the table of labels, but {error.reason}"))
        rows.dropped += [(name, number, None, reason) for number, reason in video.lost]
        rows.problems += [] if video.facts.problem is None else [(name, video.facts.problem)]
        rows.notes += [] if video.facts.note is None else [f"{name}: {video.facts.note}"]
        if not video.facts.indexed:
            rows.notes.append(
                f"{name} ({video.facts.container}) has no index: each read of a frame decodes the frames before it, "
                "unless frames are read in order; `dinomed frames` writes them once"
            )
    except (UnreadableImage, OSError) as error:
        rows.problems.append((name, error.reason if isinstance(error, UnreadableImage) else str(error.strerror)))
    rows.facts = [frames[number][0] for number in sorted(frames)]
    rows.places = [(number, frames[number][1]) for number in sorted(frames)]
    return rows


def add_video_rows(table: Labels, videos: Mapping[str, VideoRows]) -> None:
    """Give the cells of the row of a video to its frames, where a frame has no value of its own."""
    for video, rows in videos.items():
        common = table.rows.pop(video, {})
        for facts in rows.facts:
            of_frame = table.rows.get(facts.image, {})
            cells = common | {name: value for name, value in of_frame.items() if value is not None}
            if cells:
                table.rows[facts.image] = cells


def add_frame_columns(
    columns: dict[str, list[Any]], videos: Mapping[str, VideoRows], groups: Mapping[str, str]
) -> list[str]:
    """Add the columns `video`, `frame` and `time_s`; frames without a group have that of their video in `groups`.

    Returns:
        A note if several videos are groups of their own.
    """
    places = {
        facts.image: (video, str(number), f"{time_s:.3f}")
        for video, rows in videos.items()
        for facts, (number, time_s) in zip(rows.facts, rows.places, strict=True)
    }
    for place, name in enumerate(COLUMNS):
        before = columns.get(name, [None] * len(columns["image"]))
        columns[name] = [
            places[image][place] if image in places else value
            for image, value in zip(columns["image"], before, strict=True)
        ]
    alone = {
        image: places[image][0]
        for image, group in zip(columns["image"], columns["group"], strict=True)
        if group is None and image in places
    }
    columns["group"] = [
        groups[alone[image]] if image in alone else group
        for image, group in zip(columns["image"], columns["group"], strict=True)
    ]
    count = len(set(alone.values()))
    return [] if count < 2 else [
        f"{count:,} videos are groups of their own; if a patient has several, name the patients in a table (`labels`, "
        "`group`)"
    ]  # fmt: skip


def divide_duplicates(
    duplicates: Sequence[list[str]], videos: Mapping[str, VideoRows]
) -> tuple[list[list[str]], list[list[str]]]:
    """Divide sets of identical images into those that belong to one unit, and frames that several videos share.

    Shared frames, such as test cards, do not make videos one unit, unless all their frames are the same.
    """
    contents: dict[str, frozenset[str]] = {}
    for rows in videos.values():
        contents |= dict.fromkeys([f.image for f in rows.facts], frozenset(f.sha256 for f in rows.facts))
    joining, shared = list[list[str]](), list[list[str]]()
    for images in duplicates:
        (joining if len({contents.get(image) for image in images}) == 1 else shared).append(images)
    return joining, shared


def common_images(images: Sequence[str], units: Sequence[str], duplicates: Sequence[Sequence[str]]) -> set[str]:
    """Return the images of the sets of duplicates that are in more than one unit."""
    unit_of = dict(zip(images, units, strict=True))
    return {image for same in duplicates if len({unit_of[image] for image in same}) > 1 for image in same}


def video_notes(videos: Mapping[str, VideoRows], common: Collection[str] = ()) -> list[str]:
    """Return the notes about the videos of a scan: frames that are left out, assumed values, slow access.

    Args:
        common: frames that are identical in videos of different groups.
    """
    reasons = Counter(reason.split(" of frame ")[0] for rows in videos.values() for *_, reason in rows.dropped)
    lines = [note for rows in videos.values() for note in rows.notes]
    if common:
        lines.append(
            f"{len(common):,} frames are identical in videos of different groups, such as {min(common)}; new splits "
            "leave them out"
        )
    if reasons:
        named = ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items()))
        lines.append(f"{sum(reasons.values()):,} frames of videos are left out: {named}")
    if empty := [name for name, rows in videos.items() if not rows.facts and not rows.problems]:
        lines.append(f"no frame is kept of {len(empty):,} videos, such as {empty[0]}")
    return lines


def video_warnings(videos: Mapping[str, VideoRows]) -> list[str]:
    """Return a warning for each of the first damaged videos of a scan."""
    problems = [problem for rows in videos.values() for problem in rows.problems]
    more = [f"{len(problems) - _LISTED:,} more problems of videos"] if len(problems) > _LISTED else []
    return [f"{name}: {reason}" for name, reason in problems[:_LISTED]] + more
