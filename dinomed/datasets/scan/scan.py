"""Scan of a folder to a manifest: images are read, labels and masks are matched, splits are made by group."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dinomed.datasets.manifest import Manifest, build_manifest
from dinomed.datasets.scan.columns import Columns, add_splits, class_folders, file_columns, find_duplicates
from dinomed.datasets.scan.facts import Facts, read_all, read_several
from dinomed.datasets.scan.findings import (
    check_masks,
    check_readable,
    count_masks,
    notes,
    nothing_in,
    prediction_notes,
    warn_doubtful,
    warn_turned,
    warn_unreadable,
)
from dinomed.datasets.scan.folders import Pairs, pair_masks
from dinomed.datasets.scan.frames import (
    FrameRule,
    VideoRows,
    add_frame_columns,
    add_video_rows,
    named_frames,
    read_videos,
    take_videos,
    video_notes,
    video_warnings,
)
from dinomed.datasets.scan.groups import add_patients, replace_groups
from dinomed.datasets.scan.labels import NONE, Labels, find_labels, read_labels
from dinomed.datasets.scan.videos import left_out_note
from dinomed.datasets.scan.walk import WalkResult, walk
from dinomed.datasets.splits import RATIOS, check_ratios
from dinomed.errors import UsageError
from dinomed.images.decode import UnreadableImage
from dinomed.io.pseudonyms import chosen_key, content_identifier
from dinomed.isolation.pool import shared_pool

FOLDERS = "folders"
"""Value of `labels`: the folder names are the classes."""


@dataclass
class ScanResult:
    """The manifest of a scan and its findings.

    Attributes:
        manifest: the readable images.
        unreadable: (path, reason) of files that cannot be used.
        masks: number of ``masks``, and of the ``empty`` and ``full`` ones.
        duplicates: sets of images with the same bytes.
        warnings: messages about problems of the data.
        notes: other messages.
        multi_frame: number of DICOM files with several frames, of which the first is used.
        videos: videos whose frames are rows -> number of these frames.
        dropped: (video, number, time in s, reason) of frames that the rule left out, or that cannot be decoded.
    """

    manifest: Manifest
    unreadable: list[tuple[str, str]]
    masks: dict[str, int]
    duplicates: list[list[str]]
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    multi_frame: int = 0
    videos: dict[str, int] = field(default_factory=dict)
    dropped: list[tuple[str, int, str | None, str]] = field(default_factory=list)


def scan(
    folder: str | Path,
    labels: str | Path | None = None,
    *,
    image_column: str = "image",
    label: str | None = None,
    group: str | None = None,
    mask: str | None = None,
    split: str | None = None,
    ratios: Sequence[float] | None = None,
    seed: int = 0,
    make_split: bool = True,
    workers: int | None = None,
    follow_links: bool = False,
    keep: Sequence[str] = (),
    keep_ids: bool = False,
    id_key: str | Path | None = None,
    allow_unreadable: bool = False,
    label_maps: bool = False,
    decode: bool = True,
    frame_rule: FrameRule | None = None,
) -> ScanResult:
    """Read every image below `folder` into a manifest. Folders that hold predictions are ignored, with a note.

    Splits come from the CSV, or else from split folders, or else (with `make_split`) they are made by group and
    stratified by label. Without labels, masks and `ratios` none are made: a raw pool is for pretraining as a whole.
    DICOM images without a group in the CSV have that of other images of their patient, or else the patient as their
    group. A group that is not known is null: such an image is a unit of its own, and images with the same bytes are
    always in one new split. A frame that occurs in several videos, such as a test card, is in no new split.

    Args:
        labels: path of a CSV, also relative to `folder` (`dinomed.datasets.scan.labels`); ``"folders"`` for classes by
            folder name; or None.
        image_column: column of the CSV with the names of the images.
        label, group, mask, split: columns of the CSV; None for the column with that name, if it exists; ``"none"`` for
            no column, and as `group` also for no patients of DICOM images.
        ratios: shares of train, val and test in new splits; None for `RATIOS`, if there are labels or masks.
        seed: of new splits.
        make_split: make splits if none are given.
        workers: number of decoding processes; by default one per processor, at most 16.
        follow_links: follow links out of `folder`.
        keep: other columns of the CSV to keep. Columns that are not listed are left out, with a note.
        keep_ids: keep groups of the CSV as written, instead of numbers for them (patients of DICOM images are numbered
            all the same), and allow columns with personal data in `keep`.
        id_key: file with a secret key; groups are replaced by pseudonyms that are the same in all scans with this key.
        allow_unreadable: continue, with a warning, if more than half of the files cannot be read.
        label_maps: masks hold the values of several classes (`dinomed.images.labelmap`).
        decode: decode images and masks, to find damaged ones; if False, only headers of images are read.
        frame_rule: selection of the frames of videos, which become rows (`dinomed.datasets.scan.frames`); a video is a
            group, unless the CSV has another one. None leaves videos out, and takes the first frame of DICOM files.

    Raises:
        UsageError: the folder does not exist or holds no readable image, the CSV or a column is missing, a mask has
            another size than its image, no mask can be used, or a group is in two splits.
        DinomedError: more than half of the files cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder" if folder.exists() else f"folder {folder} does not exist")
    check_ratios(RATIOS if ratios is None else ratios)
    key = chosen_key(id_key, keep_ids)
    roles = {"label": label, "group": group, "mask": mask, "split": split}
    path = _table_path(labels, folder, roles, keep)
    shared_pool().start(1)  # while the folder is searched
    walked = walk(folder, follow_links=follow_links)
    files = [*walked.images, *(name for inside in walked.predicted.values() for name in inside)]
    videos = [] if frame_rule is None else take_videos(folder, walked)  # they are not listed as left out
    pairs = pair_masks(walked.images)
    table = Labels()
    if path is not None:
        table = read_labels(
            path,
            folder,
            files,
            pairs.images,
            image_column=image_column,
            roles=roles,
            keep=keep,
            keep_ids=keep_ids,
            videos=videos,
        )
    masks = _masks(table, pairs, mask)
    content = _read(folder, walked, table, pairs, masks, videos, frame_rule, label_maps, decode, workers)
    facts, frames = content.facts, content.frames
    if not facts:
        raise UsageError(_nothing_usable(folder, walked, content, with_videos=frame_rule is not None))
    if not allow_unreadable:
        check_readable(folder, len(facts), content.refused)
    check_masks(facts)

    columns = file_columns(facts, table)
    if str(labels) == FOLDERS:
        columns["label"] = class_folders(folder, columns["image"], frames)
    of_groups, doubts = _add_groups(columns, folder, content, key, keep_ids, by_patient=group != NONE)
    duplicates = find_duplicates(facts)
    division = add_splits(
        columns, folder, table, frames, duplicates, column=split, ratios=ratios, seed=seed, new=make_split
    )
    of_groups += replace_groups(columns, key, keep_ids)
    several = [f.header for f in facts if f.header.frames > 1 or f.header.video_stream]
    return ScanResult(
        replace(build_manifest(columns, folder), file_times=_file_times(facts)),
        content.unreadable,
        count_masks(facts),
        duplicates,
        warnings=[
            *warn_unreadable(facts, len(content.refused)),
            *video_warnings(frames),
            *warn_doubtful({} if "mask" in table.columns or mask == NONE else pairs.doubtful),
            *warn_turned(facts),
            *table.warnings,
            *doubts,
            *division.warnings,
        ],
        notes=[
            *prediction_notes(walked.predicted),
            *division.notes,
            *table.notes,
            *of_groups,
            *notes(folder, walked, pairs, table, columns, sum(h.channels in (1, 3) or h.video_stream for h in several)),
            *video_notes(frames, division.common),
        ],
        videos={name: len(rows.facts) for name, rows in frames.items()},
        dropped=[row for rows in frames.values() for row in rows.dropped],
        multi_frame=sum(header.format == "DICOM" for header in several),
    )


def scan_file(path: str | Path, *, decode: bool = True) -> Manifest:
    """Return the manifest of one image file.

    Raises:
        UnreadableImage: the file cannot be used.
    """
    path = Path(path)
    facts = read_several(path.parent, [path.name], {}, decode=decode)[0]
    if isinstance(facts, UnreadableImage):
        raise facts
    return replace(build_manifest(file_columns([facts], Labels()), path.parent), file_times=_file_times([facts]))


def _table_path(
    labels: str | Path | None, folder: Path, roles: dict[str, str | None], keep: Sequence[str]
) -> Path | None:
    """Return the path of the CSV, None without one."""
    if labels is not None and str(labels) != FOLDERS:
        return find_labels(labels, folder)
    for role, name in roles.items():
        if name not in (None, NONE):
            raise UsageError(f"`{role}={name}` is a column of a CSV; name the CSV with `labels`")
    if keep:
        raise UsageError(f"`keep={keep[0]}` is a column of a CSV; name the CSV with `labels`")
    return None


def _masks(table: Labels, pairs: Pairs, mask: str | None) -> dict[str, str]:
    """Return the mask of each image: from the CSV, or else by folders and names."""
    if "mask" in table.columns:
        return {image: named for image, row in table.rows.items() if (named := row["mask"])}
    return {} if mask == NONE else dict(pairs.masks)


@dataclass
class _Content:
    """What was read of the files of a scan.

    Attributes:
        facts: facts about each image and frame, sorted by path.
        frames: video -> its rows.
        refused: (path, reason) of images and videos of which nothing can be used.
        unreadable: (path, reason) of all that cannot be used: these, single frames, masks, rows of the table.
    """

    facts: list[Facts]
    frames: dict[str, VideoRows]
    refused: list[tuple[str, str]]
    unreadable: list[tuple[str, str]]


def _read(
    folder: Path,
    walked: WalkResult,
    table: Labels,
    pairs: Pairs,
    masks: dict[str, str],
    videos: Sequence[str],
    frame_rule: FrameRule | None,
    label_maps: bool,
    decode: bool,
    workers: int | None,
) -> _Content:
    """Read the images that are not masks or other targets, and the frames of the videos."""
    not_images = {*masks.values(), *table.targets}
    numbers = named_frames(table, videos)
    images = sorted({image for image in pairs.images if image not in not_images} | set(table.rows))
    images = [image for image in images if image not in numbers and image.rpartition("/")[0] not in numbers]
    facts, failed = read_all(folder, images, masks, workers, label_maps, decode)
    frames = {} if frame_rule is None else read_videos(folder, numbers, frame_rule, masks, label_maps, workers)
    add_video_rows(table, frames)
    facts = sorted([*facts, *(f for rows in frames.values() for f in rows.facts)], key=lambda f: f.image)
    problems = [problem for rows in frames.values() for problem in rows.problems]
    lost = [rows.problems[0] for rows in frames.values() if rows.problems and not rows.facts]
    bad_masks = [(f.mask, f"mask of {f.image}: {f.mask_problem}") for f in facts if f.mask and f.mask_problem]
    return _Content(
        facts,
        frames,
        [*walked.refused, *failed, *lost],
        [*walked.refused, *failed, *problems, *table.missing, *bad_masks],
    )


def _nothing_usable(folder: Path, walked: WalkResult, content: _Content, *, with_videos: bool) -> str:
    """Return the message for a folder without a usable image."""
    if walked.predicted:
        return f"folder {folder} holds only files of an earlier prediction; give the folder of the images"
    remarks = video_notes(content.frames) if with_videos else left_out_note(walked.videos)
    return "; ".join([nothing_in(f"folder {folder}", content.unreadable), *remarks])


def _add_groups(
    columns: Columns, folder: Path, content: _Content, key: bytes | None, keep_ids: bool, *, by_patient: bool
) -> tuple[list[str], list[str]]:
    """Set missing groups: of DICOM files the patient, of frames the video. Return notes and warnings."""
    columns.setdefault("group", [None] * len(content.facts))
    of_groups, doubts = add_patients(columns, content.facts, keep_ids) if by_patient else ([], [])
    if content.frames:
        with_frames = [name for name, rows in content.frames.items() if rows.facts]
        identifiers = {name: name if key is None else content_identifier(folder / name) for name in with_frames}
        of_groups += add_frame_columns(columns, content.frames, identifiers)
    return of_groups, doubts


def _file_times(facts: Sequence[Facts]) -> dict[str, int]:
    return {f.image: f.changed_ns for f in facts}
