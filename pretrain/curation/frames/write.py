"""Writing of selected frames: PNG files, their manifest, and the table of the frames that were dropped."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dinomed.burned_in_text.mask import TextMask
from dinomed.datasets.manifest import Manifest, build_manifest, read_manifest, write_manifest
from dinomed.datasets.tables import write_csv
from dinomed.datasets.written import WrittenPictures, earlier_pictures
from dinomed.errors import DinomedError, UsageError
from dinomed.images.decode import UnreadableImage
from dinomed.io.output_folder import open_output_folder
from dinomed.io.publish import READY_FILE, publish
from dinomed.log import logger
from dinomed.pretrain.curation.frames.config import FrameConfig
from dinomed.pretrain.curation.frames.selection import judge_frames
from dinomed.progress import bar
from dinomed.video.video import Video

MANIFEST_FILE, DROPPED_FILE = "manifest.csv", "dropped.csv"
RESERVED = (MANIFEST_FILE, DROPPED_FILE, READY_FILE)
"""Names that no video may have, since they are those of files beside the folders of the videos."""
_DROPPED_COLUMNS = ("video", "frame", "time_s", "reason")


@dataclass
class FramesResult:
    """The result of `write_frames`.

    Attributes:
        folder: output folder.
        manifest: the frames that were kept.
        videos: path of each video -> its name in the manifest.
        groups: path of each video -> its group in the manifest: the patient of a DICOM file, or else its name.
        dropped: reason -> number of frames.
        problems: (path of a video, reason) of videos that are damaged, or cannot be read to their end.
        masked_text: counts of masked text (`TextMask.record`); None if it was not masked.
    """

    folder: Path
    manifest: Manifest
    videos: dict[str, str]
    groups: dict[str, str]
    dropped: dict[str, int]
    problems: list[tuple[str, str]]
    masked_text: dict[str, int] | None = None


@dataclass
class _Frames(WrittenPictures):
    """The frames that are kept, and the rows of the table of dropped ones."""

    dropped: list[tuple[Any, ...]] = field(default_factory=list)


def write_frames(
    videos: Sequence[Path],
    names: Sequence[str],
    patients: Sequence[str | None],
    out: str | Path,
    config: FrameConfig,
    *,
    mask: TextMask | None = None,
    overwrite: bool = False,
) -> FramesResult:
    """Write the selected frames of videos as NAME/NUMBER.png, with their manifest and the table of dropped frames.

    The folder is filled at the end: after an interruption it holds no half of a result.

    Args:
        videos: paths of the videos.
        names: name of each video, also of its folder.
        patients: group of each video; None for its name.
        out: output folder.
        config: the rules of the selection.
        mask: masks text in the written frames; the column `masked_text` has the number of regions of each.
        overwrite: replace an earlier result in `out`.

    Raises:
        UsageError: `out` is in use, or no frame is kept.
        DinomedError: no video can be read, or nothing can be written.
    """
    out, rows = Path(out), _Frames(mask)
    with open_output_folder(out, marker=DROPPED_FILE, overwrite=overwrite) as stage:
        earlier = earlier_pictures(out, (MANIFEST_FILE, DROPPED_FILE), "video", "frame", 6, "time_s", "frames")
        groups = [patient or name for name, patient in zip(names, patients, strict=True)]
        for path, name, group in zip(videos, names, groups, strict=True):
            _write_video(path, name, group, stage, config, rows)
        if not rows.columns:
            _raise_nothing(videos, rows)
        write_csv(stage / DROPPED_FILE, _DROPPED_COLUMNS, rows.dropped)
        manifest = build_manifest(rows.columns, stage)
        write_manifest(manifest, stage / MANIFEST_FILE)
        tables = [MANIFEST_FILE, DROPPED_FILE]
        publish(stage, out, [*rows.columns["image"], *tables], remove=[DROPPED_FILE, MANIFEST_FILE, *earlier])
    counts = Counter(reason.split(" of frame ")[0] for *_, reason in rows.dropped)
    manifest = read_manifest(out / MANIFEST_FILE)
    named, grouped = (dict(zip(map(str, videos), values, strict=True)) for values in (names, groups))
    return FramesResult(
        out, manifest, named, grouped, dict(counts), rows.problems, None if mask is None else mask.record()
    )


def _write_video(path: Path, name: str, group: str, stage: Path, config: FrameConfig, rows: _Frames) -> None:
    """Write the selected frames of a video, as far as it can be read, and add its rows."""
    try:
        video = Video(path)
    except UnreadableImage as error:
        rows.report(path, error.reason)
        return
    try:
        _write_selected(video, name, group, stage, config, rows)
    except UnreadableImage as error:
        rows.report(path, error.reason)
    rows.dropped += [(name, number, None, reason) for number, reason in video.lost]
    if video.facts.note is not None:
        logger.warning(f"{path}: {video.facts.note}")
    if video.facts.problem is not None:
        rows.report(path, video.facts.problem)


def _write_selected(video: Video, folder: str, group: str, stage: Path, config: FrameConfig, rows: _Frames) -> None:
    """Write the selected frames of a video, and add a row for each kept or dropped one."""
    (stage / folder).mkdir(exist_ok=True)
    with bar(f"frames of {folder}", video.facts.frames) as progress:
        done = 0
        for judged in judge_frames(video, config):
            frame, time_s = judged.frame, f"{judged.frame.time_s:.3f}"
            progress.advance(frame.number + 1 - done)
            done = frame.number + 1
            if judged.reason is not None:
                rows.dropped.append((folder, frame.number, time_s, judged.reason))
                continue
            cells = {"group": group, "video": folder, "frame": str(frame.number), "time_s": time_s}
            rows.write(stage, f"{folder}/{frame.number:06}.png", frame.pixels, cells)


def _raise_nothing(videos: Sequence[Path], rows: _Frames) -> None:
    if rows.problems and all(time_s is None for _, _, time_s, _ in rows.dropped):  # no frame was decoded
        path, reason = rows.problems[0]
        raise DinomedError(f"none of {len(videos)} videos can be read (the first: {path}: {reason})")
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in Counter(row[-1] for row in rows.dropped).most_common(5))
    raise UsageError(f"no frame is kept ({reasons}); change the thresholds, see `dinomed frames --help`")
