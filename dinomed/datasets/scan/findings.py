"""What a scan found: masks that cannot be used, duplicates that stand apart, and all else that a person should know."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinomed.datasets.scan.facts import Facts
from dinomed.datasets.scan.folders import Pairs
from dinomed.datasets.scan.labels import Labels
from dinomed.datasets.scan.walk import Found
from dinomed.errors import DinomedError, UsageError

_LISTED = 5  # examples in a message


def count(n: int, noun: str) -> str:
    """
    >>> count(1, "file"), count(2300, "mask")
    ('1 file', '2,300 masks')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def check_masks(facts: list[Facts]) -> None:
    """Refuse masks that would spoil a training silently: of another size than the image, or none that is a mask."""
    wrong = [f"{f.mask}: {f.mask_problem}" for f in facts if f.wrong_size]
    if wrong:
        more = f" (and {len(wrong) - _LISTED} more)" if len(wrong) > _LISTED else ""
        raise UsageError(
            f"{len(wrong)} of {len(facts)} images have a mask of another size; nothing was written. "
            + "; ".join(wrong[:_LISTED])
            + more
        )
    given = [f for f in facts if f.mask]
    bad = [f for f in given if f.mask_problem]
    if bad and len(bad) == len(given):
        raise UsageError(
            f"none of the {len(bad)} masks can be used ({bad[0].mask}: {bad[0].mask_problem}); "
            "--mask none goes on without masks"
        )


def warn_doubtful(doubtful: Mapping[str, str]) -> list[str]:
    """Masks that go unused since the image of their name may not be theirs."""
    if not doubtful:
        return []
    mask, reason = next(iter(doubtful.items()))
    return [
        f"{count(len(doubtful), 'mask')} may belong to another image than the one of that name, and "
        f"{'is' if len(doubtful) == 1 else 'are'} not used; the first is {mask}: {reason}. "
        "Name the mask of each image in a CSV (--labels, column mask)"
    ]


def warn_turned(facts: Sequence[Facts]) -> list[str]:
    """Images that are turned upright while their masks, which say nothing of it, may be drawn on the stored ones."""
    turned = [f for f in facts if f.turned]
    if not turned:
        return []
    subject = "image is turned by its" if len(turned) == 1 else "images are turned by their"
    return [
        f"{len(turned):,} {subject} EXIF orientation, the mask is not, and its shape fits both ways; make sure that it "
        f"is drawn on the upright image. The first is {turned[0].image} with {turned[0].mask}"
    ]


def count_masks(facts: list[Facts]) -> dict[str, int]:
    shares = [f.foreground for f in facts if f.foreground is not None]
    return {"masks": len(shares), "empty": shares.count(0.0), "full": shares.count(1.0)}


def nothing_in(folder: Path, unreadable: Sequence[tuple[str, str]]) -> str:
    """Why a folder gave no manifest."""
    if not unreadable:
        return f"folder {folder} holds no image"
    path, reason = unreadable[0]
    refused = count(len(unreadable), "file")
    return f"folder {folder} holds no image that can be read ({refused} refused, the first {path}: {reason})"


def check_readable(folder: Path, readable: int, refused: Sequence[tuple[str, str]]) -> None:
    """Stop where more than half of the files are refused: more likely the wrong folder, or a copy that failed."""
    if len(refused) > readable:
        path, reason = refused[0]
        raise DinomedError(
            f"{len(refused):,} of {len(refused) + readable:,} files of {folder} cannot be read, the first is {path}: "
            f"{reason}; is it the right folder? dinomed scan --allow-unreadable makes a manifest of the others"
        )


def warn_unreadable(facts: Sequence[Facts], failed: int) -> list[str]:
    """Failures that make the collection doubtful."""
    lines = []
    if failed > len(facts):
        total = failed + len(facts)
        lines.append(f"MORE THAN HALF of the files cannot be read ({failed:,} of {total:,}): is it the right folder?")
    bad = [f for f in facts if f.mask_problem]
    if bad:
        lines.append(
            f"{count(len(bad), 'mask')} of {sum(f.mask is not None for f in facts):,} cannot be used, and the images "
            f"are kept without; the first is {bad[0].mask}: {bad[0].mask_problem}"
        )
    return lines


def warn_duplicates(columns: dict[str, list[Any]], duplicates: Sequence[Sequence[str]]) -> list[str]:
    """Images of the same bytes that stand in different splits, groups (if the user gave them) or classes."""
    lines = []
    index = {image: i for i, image in enumerate(columns["image"])}
    for name, plural, why in (
        ("split", "splits", "the test sees training images"),
        ("group", "groups", "splits that are made keep them together"),
        ("label", "classes", "one of the labels is wrong"),
    ):
        if name not in columns:
            continue
        apart = [images for images in duplicates if len({columns[name][index[i]] for i in images} - {None}) > 1]
        if apart:
            named = "; ".join(" = ".join(images) for images in apart[:_LISTED])
            more = "; ..." if len(apart) > _LISTED else ""
            sets = count(len(apart), "set")
            lines.append(f"{sets} of identical images in different {plural} ({why}): {named}{more}")
    return lines


def notes(
    folder: Path, found: Found, pairs: Pairs, table: Labels, columns: dict[str, list[Any]], frames: int
) -> list[str]:
    """What is no trouble, but good to know."""
    lines = list(table.notes)
    if table.path is None and (tables := sorted(path.name for path in folder.glob("*.csv"))):
        lines.append(f"{tables[0]} lies in the folder and is not used; use it with --labels {tables[0]}")
    if table.path is not None and (bare := sum(image not in table.rows for image in columns["image"])):
        lines.append(f"{count(bare, 'image')} not in {table.path.name}; kept without a label")
    if "split" in columns and (bare := columns["split"].count(None)):
        lines.append(f"{count(bare, 'image')} without a split; training and evaluation pass them over")
    if frames:
        lines.append(f"{count(frames, 'file')} with several frames or pages; the first is used")
    if pairs.orphans:
        lines.append(f"{count(len(pairs.orphans), 'mask')} without an image, such as {pairs.orphans[0]}")
    if pairs.several and "mask" not in table.columns:
        lines.append(
            f"{count(len(pairs.several), 'image')} with several masks, such as {pairs.several[0]}; "
            "the first by name is used"
        )
    others = found.others - (table.path is not None and table.path.resolve().is_relative_to(folder.resolve()))
    if others:
        lines.append(f"{count(others, 'other file')} passed over")
    return lines
