"""Completeness of a DICOM series by the counts in its headers: missing slices that leave no gap in its positions."""

from collections.abc import Sequence
from typing import Any

COUNTS = ("InstanceNumber", "AcquisitionNumber", "ImagesInAcquisition", "NumberOfTemporalPositions")
"""Elements with whole numbers."""


def read_counts(elements: Any, group: Any) -> dict[str, Any]:
    """Return the whole numbers of a frame by name, None where unknown, and its stack and its place there.

    Args:
        elements: the elements of the file.
        group: the functional group of the frame, None without one.
    """
    counts: dict[str, Any] = {name: _whole(elements.get(name)) for name in COUNTS}
    content = (group.get("FrameContentSequence") or [{}])[0] if group is not None else {}
    counts["StackID"] = str(content.get("StackID") or "") or None
    counts["InStackPositionNumber"] = _whole(content.get("InStackPositionNumber"))
    return counts


def completeness_hint(counts: Sequence[dict[str, Any]], files: int) -> str | None:
    """Return a line if the headers of a series count more slices than it has, else None.

    It is a hint and no proof: instance numbers need not start at 1, and an acquisition may have several series. Dynamic
    and perfusion examinations often have one series for each temporal position: their images are counted together.

    Args:
        counts: of each frame, as of `read_counts`.
        files: number of files of the series.
    """
    hints = []
    if files == len(counts):
        hints += _gaps([frame.get("InstanceNumber") for frame in counts], "instance numbers")
    if len({frame.get("StackID") for frame in counts}) == 1:
        hints += _gaps([frame.get("InStackPositionNumber") for frame in counts], "positions in the stack")
    times, images = _common(counts, "NumberOfTemporalPositions"), _common(counts, "ImagesInAcquisition")
    series = times if times is not None and times > 1 else 1
    if images is not None and images > series * len(counts) and _common(counts, "AcquisitionNumber") is not None:
        hints.append(f"its headers state {images:,} images in the acquisition, and it has {len(counts):,}")
    return f"slices may be missing (a hint, no proof): {'; '.join(hints)}" if hints else None


def _gaps(numbers: Sequence[int | None], words: str) -> list[str]:
    """Return what is wrong with numbers that count from 0 or 1 without gaps; nothing if some are unknown or equal."""
    known = sorted(number for number in numbers if number is not None)
    if len(known) < len(numbers) or len(set(known)) < len(known):
        return []
    hints = [f"its {words} start at {known[0]:,}"] if known[0] > 1 else []
    lost = known[-1] - known[0] + 1 - len(known)
    return [*hints, *([f"{lost:,} of its {words} from {known[0]:,} to {known[-1]:,} are missing"] if lost else [])]


def _common(counts: Sequence[dict[str, Any]], name: str) -> int | None:
    """Return the number that all frames have; None if they differ."""
    values = {frame.get(name) for frame in counts}
    return values.pop() if len(values) == 1 else None


def _whole(value: Any) -> int | None:
    """Return a whole number; None for another value."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return None
