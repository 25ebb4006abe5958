"""Datasets: folders and tables to manifests."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dinomed.apps.api.data.frames import with_frame_rule
from dinomed.apps.api.inputs import DatasetLike, PathLike
from dinomed.datasets import open as opening
from dinomed.datasets.manifest import Manifest, write_manifest
from dinomed.datasets.scan.labels import NONE, find_labels
from dinomed.datasets.scan.scan import ScanResult
from dinomed.datasets.scan.scan import scan as scan_folder
from dinomed.datasets.splits import RATIOS
from dinomed.datasets.tables import write_csv
from dinomed.errors import UsageError
from dinomed.io.output_folder import (
    claimed_file,
    discard_ready,
    finish_publishing,
    open_output_folder,
)
from dinomed.io.publish import move_ready
from dinomed.log import logger, translate_options


def scan(
    folder: PathLike,
    labels: PathLike | None = None,
    *,
    out: PathLike | None = None,
    image_column: str = "image",
    label: str | None = None,
    group: str | None = None,
    mask: str | None = None,
    split: str | None = None,
    ratios: Sequence[float] | None = None,
    seed: int = 0,
    workers: int | None = None,
    follow_links: bool = False,
    keep: Sequence[str] = (),
    keep_ids: bool = False,
    id_key: PathLike | None = None,
    allow_unreadable: bool = False,
    label_maps: bool = False,
    coco: PathLike | None = None,
    videos: bool = False,
    fps: float = 1.0,
    scene_change: float | None = None,
    duplicate_bits: int = 24,
    duplicate_cosine: float = 0.7,
    min_luminance: float = 16.0,
    min_sharpness: float = 4.0,
    min_tissue: float = 0.25,
    overwrite: bool = False,
) -> Manifest:
    """Read every image of a folder and return its manifest: one row per image.

    The columns are the path, content hash, size, mode and format, and, where known, label, group, split and mask.
    Warnings about the data are logged. The command is ``dinomed scan``.

    With `videos`, selected frames of videos and of DICOM files of several frames are rows too. Their images are called
    VIDEO/frame_000120, and are decoded from the video when they are read; no frame is written. The group is that
    of `labels`, or else of a DICOM file the patient, or else the video. The columns ``video``, ``frame`` and ``time_s``
    name the place of a frame.

    Args:
        folder: folder of images; its subfolders are scanned too.
        labels: CSV file with one row per image (a path or a name in `folder`), or ``"folders"`` for FOLDER/CLASS/image.
            With `videos`, a row names a frame (VIDEO/frame_000120), or a video for all its selected frames. Named
            frames are rows in any case.
        out: manifest file to write, .parquet or .csv. Unreadable files are listed in NAME.unreadable.csv beside it.
        image_column: column of the CSV that names the image.
        label: column of the class; None for the column ``label`` if there is one, ``"none"`` for no labels.
        group: column of the patient, lesion or video, as for `label`. A group is never in two splits. The group
            of other DICOM files is the patient, or else the study; ``"none"`` for no group.
        mask: column of the mask file, as for `label`.
        split: column of train, val and test, as for `label`; ``"none"`` makes new splits.
        ratios: shares of train, val and test in new splits; they are divided by their sum. None for 0.7, 0.1, 0.2 if
            there are labels, masks or other columns to learn from; without them no splits are made, and pretraining
            uses all images.
        seed: seed of new splits.
        workers: threads; None for one per processor.
        follow_links: follow symbolic links that lead out of `folder`.
        keep: other columns of the CSV to keep, such as ``["age", "sex"]``. All others are left out, with a message.
        keep_ids: keep groups of the CSV as they are written, instead of numbers for them, and allow columns in `keep`
            that may identify a patient, such as names and dates.
        id_key: file with a secret key of 16 bytes or more. Groups are replaced by pseudonyms (HMAC-SHA256), which are
            the same in all scans with this key. The key is in no output.
        allow_unreadable: continue if more than half of the files cannot be read.
        label_maps: masks are label maps, in which each class has its own value.
        coco: annotation file in the COCO format, also relative to `folder`. Masks are drawn from it into the folder
            NAME.coco beside `out`, with their classes in ``segment.yaml``, for ``config`` of `train`.
        videos: read videos. Frames that are left out are listed in NAME.dropped.csv beside `out`, with reasons.
        fps: with `videos`, as the next six: frames a second; 0 for every frame.
        scene_change: also take a frame whose mean grey difference to the frame before is above this, 0 to 255.
        duplicate_bits: drop a frame whose hash differs in at most so many of 256 bits from that of a kept one; -1
            keeps near-duplicates.
        duplicate_cosine: drop also a frame whose descriptor has a cosine above this with that of a kept one, as the
            curation compares images; 1 for hashes only.
        min_luminance: mean grey level, 0 to 255, below which a frame is black; 0 keeps frames of one colour too.
        min_sharpness: variance of the Laplacian below which a frame is blurred.
        min_tissue: share of reddish pixels, 0 to 1, below which a colour frame is outside of the body; 0 for no
            limit, such as for narrow-band imaging.
        overwrite: replace `out` if it is a manifest.

    Returns:
        The manifest. Its images are at ``manifest.path(row)``.

    Raises:
        UsageError: the folder has no readable image, a column is missing, a group is in two splits, or `out` exists.
        DinomedError: more than half of the files cannot be read.
        UsageError: `coco` is damaged, or names images that `folder` does not hold (left out with `allow_unreadable`).

    Example:
        >>> data = dinomed.scan("lesions", labels="labels.csv", group="lesion_id", out="scanned.parquet")
        >>> len(data), data.classes()
        (60, ['irregular', 'regular', 'vascular'])
    """
    return scan_with_report(**locals()).manifest


def scan_with_report(
    folder: PathLike,
    labels: PathLike | None = None,
    *,
    out: PathLike | None = None,
    coco: PathLike | None = None,
    overwrite: bool = False,
    **options: Any,
) -> ScanResult:
    """Scan as `scan` does, with the same arguments, and return the unreadable files, duplicates and warnings too."""
    workers = options.get("workers")
    if workers is not None and workers < 1:
        raise UsageError(f"`workers={workers}`: give 1 or more, or None for one per processor")
    if out is None:
        if coco is not None:
            raise UsageError(f"`coco={coco}`: masks are written beside the manifest; name it with `out`")
        return _write(scan_folder(folder, labels, **with_frame_rule(options)), None)
    options = with_frame_rule(options)
    if coco is not None and Path(out).exists():
        from dinomed.datasets.coco.masks import SETTINGS_FILE

        finish_publishing(_mask_folder(Path(out)), SETTINGS_FILE)  # masks that a killed call was moving
    opening.check_manifest_output(Path(out), overwrite)
    with claimed_file(out):
        if coco is None:
            return _write(scan_folder(folder, labels, **options), Path(out))
        return _scan_coco(folder, labels, coco, Path(out), overwrite, options)


def _mask_folder(out: Path) -> Path:
    """Return the folder of the masks of a scan with COCO annotations whose manifest is `out`."""
    return out.with_suffix(".coco")


def _scan_coco(
    folder: PathLike, labels: PathLike | None, coco: PathLike, out: Path, overwrite: bool, options: dict[str, Any]
) -> ScanResult:
    """Scan, draw the masks of an annotation file into the folder NAME.coco beside `out`, and write the manifest.

    The masks are moved to their places after the manifest is written: a killed call is then completed, or begun again.
    """
    from dinomed.datasets.coco.annotations import read_annotations
    from dinomed.datasets.coco.masks import SETTINGS_FILE, add_masks, list_masks
    from dinomed.datasets.coco.rle import mask_api

    place = _mask_folder(out)
    for name, value in (("mask", options.get("mask")), ("label_maps", options.get("label_maps"))):
        if value:
            raise UsageError(f"`{name}={value}`: the masks come from `coco`; give one of the two")
    mask_api()
    if not out.exists():
        discard_ready(place)
    with open_output_folder(place, marker=SETTINGS_FILE, overwrite=overwrite) as stage:
        annotations = read_annotations(find_labels(coco, Path(folder), "COCO file"))
        ratios = RATIOS if options.get("ratios") is None else options["ratios"]  # masks are added after the scan
        scanned = scan_folder(folder, labels, **options | {"mask": NONE, "ratios": ratios})
        missing = bool(options.get("allow_unreadable"))
        result = add_masks(scanned, annotations, place, stage, allow_missing=missing)
        out.unlink(missing_ok=True)  # beside the old manifest, the next call would complete the masks of this one
        list_masks(stage, place)
        result = _write(result, out)
        move_ready(stage, place)
    return result


def _write(result: ScanResult, out: Path | None) -> ScanResult:
    """Write the manifest of a scan to `out`, and log warnings and notes."""
    for message in result.warnings:
        logger.warning(message)
    if out is not None:  # the manifest, which makes the result complete, is written last
        unreadable = unreadable_list(out)
        if result.unreadable:
            rows = [(name, translate_options(reason)) for name, reason in result.unreadable]
            write_csv(unreadable, ("path", "reason"), rows)
            logger.info(f"unreadable files and their reasons: {unreadable}")
        else:
            unreadable.unlink(missing_ok=True)  # of an earlier scan
        if result.videos:
            write_csv(dropped_list(out), ("video", "frame", "time_s", "reason"), result.dropped)
        write_manifest(result.manifest, out)
        result = replace(result, manifest=replace(result.manifest, source=out))
    for message in result.notes:
        logger.info(message)
    return result


def unreadable_list(out: PathLike) -> Path:
    """Return the file that lists the unreadable files of a scan whose manifest is `out`."""
    return Path(out).with_suffix(".unreadable.csv")


def dropped_list(out: PathLike) -> Path:
    """Return the file that lists the frames that a scan of videos, whose manifest is `out`, has left out."""
    return Path(out).with_suffix(".dropped.csv")


def open_dataset(data: DatasetLike, *, decode: bool = False) -> Manifest:
    """Return the manifest of images that are given as a manifest, a folder or one image.

    A folder is scanned in memory, without labels and splits; unreadable files are skipped with a warning. Of a curated
    manifest only the images with ``keep = true`` are returned.

    Args:
        data: path of a manifest (.parquet or .csv), of a folder or of an image; a manifest object is returned as it is.
        decode: decode every image of a folder now. By default only headers are read, and a damaged image is found by
            the step that decodes it.

    Returns:
        The manifest: `column(name)`, `select(split="train")`, `path(row)` and `len` give access to it.

    Raises:
        UsageError: nothing is there, or the file is not a manifest.
        DinomedError: the file is damaged.

    Example:
        >>> data = dinomed.open_dataset("lesions.parquet")
        >>> len(data.select(split="train")) > len(data.select(split="test"))
        True
    """
    return opening.open_dataset(data, decode=decode)
