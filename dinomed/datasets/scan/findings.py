"""Checks and messages of a scan: unreadable files, unusable masks, separated duplicates, and notes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinomed.datasets.scan.facts import Facts
from dinomed.datasets.scan.folders import Pairs
from dinomed.datasets.scan.labels import Labels
from dinomed.datasets.scan.videos import left_out_note
from dinomed.datasets.scan.walk import WalkResult
from dinomed.errors import DinomedError, UsageError
from dinomed.images.dicom.segments import Segment, find_contradiction

_LISTED = 5  # examples in a message


def count(n: int, noun: str) -> str:
    """Return a number with its noun, in the plural where needed.

    >>> count(1, "file"), count(2300, "mask")
    ('1 file', '2,300 masks')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def check_masks(facts: list[Facts]) -> None:
    """Raise if masks do not fit their images, or if no mask can be used.

    Raises:
        UsageError: the size of a mask differs from the size of its image, no mask can be used, or the segments of two
            DICOM segmentations that are label maps contradict each other.
    """
    wrong = [f"{f.mask}: {f.mask_problem}" for f in facts if f.wrong_size]
    if wrong:
        suffix = f" (and {len(wrong) - _LISTED} more)" if len(wrong) > _LISTED else ""
        raise UsageError(
            f"{len(wrong)} of {len(facts)} images have a mask of another size than the image; correct these masks "
            "(nothing was written). " + "; ".join(wrong[:_LISTED]) + suffix
        )
    with_mask = [f for f in facts if f.mask]
    bad = [f for f in with_mask if f.mask_problem]
    if bad and len(bad) == len(with_mask):
        raise UsageError(
            f"none of the {len(bad)} masks can be used ({bad[0].mask}: {bad[0].mask_problem}); "
            "scan without masks with `mask=none`"
        )
    described = [(f.mask, [Segment(*part) for part in f.segments]) for f in with_mask if f.mask and f.segments]
    contradiction = find_contradiction(described)
    if contradiction is not None:
        raise UsageError(
            f"{contradiction}, and the numbers of segments are the classes of label maps; number segments alike in all "
            "files (nothing was written)"
        )


def warn_doubtful(doubtful: Mapping[str, str]) -> list[str]:
    """Warn about unused masks: the image with the same name may not be the image of the mask."""
    if not doubtful:
        return []
    mask, reason = next(iter(doubtful.items()))
    return [
        f"{count(len(doubtful), 'mask')} not used, because the image with the same name may be another image; "
        f"the first is {mask}: {reason}. "
        "Name the mask of each image in a CSV (`labels`, column mask)"
    ]


def warn_turned(facts: Sequence[Facts]) -> list[str]:
    """Warn about images with an EXIF rotation whose masks have none and fit with and without the rotation."""
    turned = [f for f in facts if f.turned]
    if not turned:
        return []
    return [
        f"{count(len(turned), 'image')} with an EXIF rotation and a mask without one; the mask fits the image with and "
        f"without the rotation. Check that the mask was drawn on the upright image. The first is "
        f"{turned[0].image} with {turned[0].mask}"
    ]


def count_masks(facts: list[Facts]) -> dict[str, int]:
    """Count the usable masks, the empty ones and the full ones."""
    shares = [f.foreground for f in facts if f.foreground is not None]
    return {"masks": len(shares), "empty": shares.count(0.0), "full": shares.count(1.0)}


def nothing_in(name: str, unreadable: Sequence[tuple[str, str]]) -> str:
    """Return the message for a folder or a manifest, called `name`, without a readable image."""
    if not unreadable:
        return f"{name} holds no image"
    path, reason = unreadable[0]
    refused = count(len(unreadable), "file")
    return f"{name} holds no readable image ({refused} refused, the first {path}: {reason})"


def check_readable(folder: Path, readable: int, refused: Sequence[tuple[str, str]]) -> None:
    """Raise if more than half of the files cannot be read, as in a wrong folder or an incomplete copy.

    Raises:
        DinomedError: more than half cannot be read; the message contains the first of them.
    """
    if len(refused) > readable:
        path, reason = refused[0]
        raise DinomedError(
            f"{len(refused):,} of {len(refused) + readable:,} files of {folder} cannot be read, the first is {path}: "
            f"{reason}; check the folder, or scan the other files: `dinomed scan` with `allow_unreadable=True`"
        )


def warn_unreadable(facts: Sequence[Facts], failed: int) -> list[str]:
    """Warn about many unreadable files and about masks that cannot be used."""
    lines = []
    if failed > len(facts):
        total = failed + len(facts)
        lines.append(f"MORE THAN HALF of the files cannot be read ({failed:,} of {total:,}): check the folder")
    bad = [f for f in facts if f.mask_problem]
    if bad:
        lines.append(
            f"{count(len(bad), 'mask')} of {sum(f.mask is not None for f in facts):,} cannot be used; their images are "
            f"kept without a mask; the first is {bad[0].mask}: {bad[0].mask_problem}"
        )
    return lines


def warn_duplicates(columns: dict[str, list[Any]], duplicates: Sequence[Sequence[str]]) -> list[str]:
    """Warn about identical images in different splits, groups or classes."""
    lines = []
    index = {image: i for i, image in enumerate(columns["image"])}
    for name, plural, why in (
        ("split", "splits", "the test set contains training images"),
        ("group", "groups", "new splits keep them together"),
        ("label", "classes", "one of the labels is wrong"),
    ):
        if name not in columns:
            continue
        separated = [images for images in duplicates if len({columns[name][index[i]] for i in images} - {None}) > 1]
        if separated:
            named = "; ".join(" = ".join(images) for images in separated[:_LISTED])
            suffix = "; ..." if len(separated) > _LISTED else ""
            sets = count(len(separated), "set")
            lines.append(f"{sets} of identical images in different {plural} ({why}): {named}{suffix}")
    return lines


def prediction_notes(predicted: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a note about each folder that holds a prediction (folder -> its images)."""
    return [
        f"{place} holds a prediction of `dinomed predict` ({len(inside):,} images) and is ignored; "
        "to train on its masks, name them in a CSV (`labels`, column mask)"
        for place, inside in predicted.items()
    ]


def notes(
    folder: Path, walked: WalkResult, pairs: Pairs, table: Labels, columns: dict[str, list[Any]], frames: int
) -> list[str]:
    """Return notes about facts that need no action."""
    lines = list[str]()
    if table.path is None and (tables := sorted(path.name for path in folder.glob("*.csv"))):
        lines.append(f"{tables[0]} is in the folder and is not used; use it with `labels={tables[0]}`")
    if table.path is not None and (num_missing := sum(image not in table.rows for image in columns["image"])):
        lines.append(f"{count(num_missing, 'image')} not in {table.path.name}; kept without a label")
    if "split" in columns and (num_missing := columns["split"].count(None)):
        lines.append(f"{count(num_missing, 'image')} without a split; training and evaluation ignore them")
    if frames:
        lines.append(
            f"{count(frames, 'file')} with several frames or pages; the first is used "
            "(of DICOM, `dinomed frames` writes all)"
        )
    lines += left_out_note(walked.videos)
    if pairs.orphans:
        lines.append(f"{count(len(pairs.orphans), 'mask')} without an image, such as {pairs.orphans[0]}")
    if pairs.several and "mask" not in table.columns:
        lines.append(
            f"{count(len(pairs.several), 'image')} with several masks, such as {pairs.several[0]}; "
            "the first by name is used"
        )
    num_ignored = walked.num_others - (table.path is not None and table.path.resolve().is_relative_to(folder.resolve()))
    if num_ignored:
        lines.append(f"{count(num_ignored, 'other file')} ignored")
    return lines
