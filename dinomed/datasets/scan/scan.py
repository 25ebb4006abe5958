"""Scan of a folder to a manifest: images are read, labels and masks are matched, splits are made by group."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dinomed.datasets.manifest import Manifest, build_manifest
from dinomed.datasets.scan.facts import Facts
from dinomed.datasets.scan.findings import (
    check_masks,
    check_readable,
    count_masks,
    notes,
    nothing_in,
    warn_doubtful,
    warn_duplicates,
    warn_turned,
    warn_unreadable,
)
from dinomed.datasets.scan.folders import Pairs, classes_of, pair_masks, splits_of
from dinomed.datasets.scan.frames import (
    FrameRule,
    add_frame_columns,
    add_video_rows,
    common_images,
    divide_duplicates,
    named_frames,
    read_videos,
    take_videos,
    video_notes,
    video_warnings,
)
from dinomed.datasets.scan.groups import add_patients, replace_groups
from dinomed.datasets.scan.labels import NONE, Labels, find_labels, read_labels
from dinomed.datasets.scan.predictions import find_predictions
from dinomed.datasets.scan.reading import read_all, read_several
from dinomed.datasets.scan.videos import left_out_note
from dinomed.datasets.scan.walk import walk
from dinomed.datasets.splits import check_ratios, check_splits, explain_gaps, join_units, make_splits
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
    ratios: Sequence[float] = (0.7, 0.1, 0.2),
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
    stratified by label. DICOM images without a group in the CSV have that of other images of their patient, or
    else the patient as their group. A group that is not known is null: such an image is a unit of its own, and images
    with the same bytes are always in one new split. A frame that occurs in several videos, such as a test card, is in
    no new split.

    Args:
        labels: path of a CSV, also relative to `folder` (`dinomed.datasets.scan.labels`); ``"folders"`` for classes by
            folder name; or None.
        image_column: column of the CSV with the names of the images.
        label, group, mask, split: columns of the CSV; None for the column with that name, if it exists; ``"none"`` for
            no column, and as `group` also for no patients of DICOM images.
        ratios: shares of train, val and test in new splits.
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
    check_ratios(ratios)
    key = chosen_key(id_key, keep_ids)
    roles = {"label": label, "group": group, "mask": mask, "split": split}
    path = _table_path(labels, folder, roles, keep)
    shared_pool().start(1)  # while the folder is searched
    walked = walk(folder, follow_links=follow_links)
    files = walked.images
    predicted = find_predictions(folder, [*files, *(name for name, _ in walked.refused)])
    predicted_files = {file for inside in predicted.values() for file in inside}
    walked.images = [image for image in files if image not in predicted_files]
    walked.refused = [(name, reason) for name, reason in walked.refused if name not in predicted_files]
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
    not_images = {*masks.values(), *table.targets}
    numbers = named_frames(table, videos)
    images = sorted({image for image in pairs.images if image not in not_images} | set(table.rows))
    images = [image for image in images if image not in numbers and image.rpartition("/")[0] not in numbers]
    facts, failed = read_all(folder, images, masks, workers, label_maps, decode)
    frames = {} if frame_rule is None else read_videos(folder, numbers, frame_rule, masks, label_maps, workers)
    add_video_rows(table, frames)
    facts = sorted([*facts, *(f for rows in frames.values() for f in rows.facts)], key=lambda f: f.image)
    problems = [problem for rows in frames.values() for problem in rows.problems]
    unreadable = [*walked.refused, *failed, *problems, *table.missing]
    if not facts and predicted_files:
        raise UsageError(f"folder {folder} holds only files of an earlier prediction; give the folder of the images")
    if not facts:
        remarks = video_notes(frames) if frame_rule is not None else left_out_note(walked.videos)
        raise UsageError("; ".join([nothing_in(f"folder {folder}", unreadable), *remarks]))
    lost = [rows.problems[0] for rows in frames.values() if rows.problems and not rows.facts]
    if not allow_unreadable:
        check_readable(folder, len(facts), [*walked.refused, *failed, *lost])
    check_masks(facts)
    unreadable += [(f.mask, f"mask of {f.image}: {f.mask_problem}") for f in facts if f.mask and f.mask_problem]

    columns = _columns(facts, table)
    if str(labels) == FOLDERS:
        video_of = {f.image: name for name, rows in frames.items() for f in rows.facts}
        columns["label"] = _class_folders(folder, [video_of.get(image, image) for image in columns["image"]])
    classes = columns.get("label", [None] * len(facts))
    duplicates = _duplicates(facts)
    splits, origin = _given_splits(columns, split, path)
    if origin:
        table.notes.insert(0, f"splits: {origin}; `split=none` makes new ones")
    columns.setdefault("group", [None] * len(facts))
    if group != NONE:
        remarks, doubts = add_patients(columns, facts, keep_ids)
        table.notes += remarks
        table.warnings += doubts
    if frames:
        with_frames = [name for name, rows in frames.items() if rows.facts]
        identifiers = {name: name if key is None else content_identifier(folder / name) for name in with_frames}
        table.notes += add_frame_columns(columns, frames, identifiers)
    if splits and make_split:
        check_splits(columns["group"], splits, columns["image"])
    units = build_manifest(columns, folder).units()
    joining, shared = (duplicates, []) if splits else divide_duplicates(duplicates, frames)
    joined = join_units(columns["image"], units, joining)
    common = common_images(columns["image"], joined, shared)
    if not splits and make_split:
        splits = [*make_splits(joined, classes, ratios, seed)]
        splits = [None if image in common else name for image, name in zip(columns["image"], splits, strict=True)]
    if splits:
        columns["split"] = splits
    table.notes += replace_groups(columns, key, keep_ids)
    return ScanResult(
        replace(build_manifest(columns, folder), file_times=_file_times(facts)),
        unreadable,
        count_masks(facts),
        duplicates,
        warnings=[
            *warn_unreadable(facts, len(walked.refused) + len(failed) + len(lost)),
            *video_warnings(frames),
            *warn_doubtful({} if "mask" in table.columns or mask == NONE else pairs.doubtful),
            *warn_turned(facts),
            *table.warnings,
            *warn_duplicates(columns, joining),
            *explain_gaps(units, classes, splits or [None] * len(facts), given=bool(origin)),
        ],
        notes=[
            *(
                f"{place} holds a prediction of `dinomed predict` ({len(inside):,} images) and is ignored; "
                "to train on its masks, name them in a CSV (`labels`, column mask)"
                for place, inside in predicted.items()
            ),
            *notes(
                folder,
                walked,
                pairs,
                table,
                columns,
                sum((f.header.frames > 1 and f.header.channels in (1, 3)) or f.header.video_stream for f in facts),
            ),
            *video_notes(frames, common),
        ],
        videos={name: len(rows.facts) for name, rows in frames.items()},
        dropped=[row for rows in frames.values() for row in rows.dropped],
        multi_frame=sum((f.header.frames > 1 or f.header.video_stream) and f.header.format == "DICOM" for f in facts),
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
    return replace(build_manifest(_columns([facts], Labels()), path.parent), file_times=_file_times([facts]))


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


def _columns(facts: list[Facts], table: Labels) -> dict[str, list[Any]]:
    """Return the columns of the files and those of the CSV."""
    columns: dict[str, list[Any]] = {
        "image": [f.image for f in facts],
        "sha256": [f.sha256 for f in facts],
        "width": [f.header.width for f in facts],
        "height": [f.header.height for f in facts],
        "mode": [f.header.mode for f in facts],
        "format": [f.header.format for f in facts],
        "bytes": [f.bytes for f in facts],
        "channels": [f.header.channels for f in facts],
        "bits": [f.header.bits for f in facts],
    }
    rows = [table.rows.get(f.image, {}) for f in facts]
    columns |= {name: [row.get(name) for row in rows] for name in table.columns if name != "mask"}
    masks = [f.mask if f.mask_problem is None else None for f in facts]
    if any(masks):
        columns["mask"] = masks
    return columns


def _file_times(facts: list[Facts]) -> dict[str, int]:
    return {f.image: f.changed_ns for f in facts}


def _class_folders(folder: Path, images: list[str]) -> list[str | None]:
    """Return the class of each image by its folder."""
    classes = classes_of(images)
    if not classes:
        raise UsageError(f"{folder} has no class folders (FOLDER/CLASS/image); give a CSV, or leave out `labels`")
    return [classes.get(image) for image in images]


def _duplicates(facts: list[Facts]) -> list[list[str]]:
    """Return the sets of images with the same bytes."""
    same: dict[str, list[str]] = defaultdict(list)
    for f in facts:
        same[f.sha256].append(f.image)
    return [images for images in same.values() if len(images) > 1]


def _given_splits(columns: dict[str, list[Any]], split: str | None, table: Path | None) -> tuple[list[str | None], str]:
    """Return the splits of the CSV, or else of split folders, and their origin in words; both empty without any."""
    splits: list[str | None] = columns.get("split", [])
    if table is not None and any(splits):
        return splits, f"column {split or 'split'} of {table.name}"
    if split == NONE:
        return splits, ""
    by_folder = splits_of(columns["image"])
    return [
        by_folder.get(image) for image in columns["image"]
    ] if by_folder else [], "folder names" if by_folder else ""
