"""Classes of the segments of several DICOM segmentations: segments of one label are one class in all files.

Segment Numbers hold within one file only. So segments are compared by their label (Segment Label), and by the code of
their type (Segmented Property Type Code Sequence with its modifiers).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dinomed.errors import DinomedError
from dinomed.images.dicom.elements import read_header, reading_dicom
from dinomed.log import logger

_CODES = ("SegmentedPropertyTypeCodeSequence", "SegmentedPropertyTypeModifierCodeSequence")
SEGMENT_TAGS = ("SegmentSequence",)


@dataclass(frozen=True)
class Segment:
    """The description of a segment.

    Attributes:
        number: its Segment Number.
        label: its label; empty if the file has none.
        code: scheme and value of its type, with modifiers; empty if the file has none.
    """

    number: int
    label: str
    code: str

    @property
    def key(self) -> str:
        """What is equal for the segments of one class: the label without regard to case, else the code or number."""
        return " ".join(self.label.casefold().split()) or self.code or f"number {self.number}"


def describe_segments(elements: Any) -> list[list[Any]]:
    """Return number, label and code of each segment of a DICOM segmentation, as JSON types (`Segment`).

    Raises:
        DinomedError: a number is not one of the standard.
    """
    segments = []
    for item in elements.get("SegmentSequence") or []:
        number = int(item.SegmentNumber)
        if not 0 <= number < 2**16:
            raise DinomedError(f"a segment with the number {number}; the standard has 1 to 65535")
        codes = [code for name in _CODES for code in _codes(item.get(name))]
        if number > 0:  # 0 is the background of a label map
            segments.append([number, str(item.get("SegmentLabel") or "").strip(), ", ".join(codes)])
    return segments


def read_segment_descriptions(path: str | Path) -> list[list[Any]]:
    """Return the result of `describe_segments` for a file; raise an `UnreadableImage` if it is damaged."""
    with reading_dicom(path) as file:
        return describe_segments(read_header(file, list(SEGMENT_TAGS)))


def _codes(sequence: Any) -> list[str]:
    """Return the codes of a sequence and of the modifiers in it, such as ``SCT 10200004``."""
    codes = []
    for item in sequence or []:
        value = item.get("CodeValue") or item.get("LongCodeValue") or item.get("URNCodeValue")
        if value:
            codes.append(f"{item.get('CodingSchemeDesignator') or ''} {value}".strip())
        codes += _codes(item.get(_CODES[1]))
    return codes


def find_contradiction(files: Sequence[tuple[str, Sequence[Segment]]]) -> str | None:
    """Return how the numbers of segments of several files contradict each other, in one line; None if they do not.

    One number must have one label and one code in all files, and one label the numbers of the first file that has it.

    Args:
        files: name and segments of each file.
    """
    by_number: dict[int, tuple[str, Segment]] = {}
    by_key: dict[str, tuple[str, list[int]]] = {}
    for name, segments in files:
        for segment in segments:
            first, same = by_number.setdefault(segment.number, (name, segment))
            codes_differ = bool(same.code and segment.code and same.code != segment.code)
            if same.key != segment.key or codes_differ:
                what = "code" if same.key == segment.key else "label"
                return f"segment {segment.number} of {name} has another {what} than segment {same.number} of {first}"
            if segment.code and not same.code:
                by_number[segment.number] = (name, segment)
            first, numbers = by_key.setdefault(segment.key, (name, []))
            if first == name:
                numbers.append(segment.number)
            elif segment.number not in numbers:
                return f"segment {segment.number} of {name} has the label of segment {numbers[0]} of {first}"
    return None


@dataclass(frozen=True)
class _Class:
    """A class: its value, and its first segment with a code, else its first one, with the file."""

    value: int
    segment: Segment
    path: Path


class SegmentClasses:
    """The classes of the segmentations of one data set, each with one value in all label maps.

    The numbers of the first file are kept; a class that a later file adds keeps its number if that is free.
    """

    def __init__(self) -> None:
        self._classes: dict[str, _Class] = {}
        self._files: list[Path] = []

    @property
    def names(self) -> dict[int, str]:
        """Value -> label, or code of a segment without one."""
        return {known.value: known.segment.label or known.segment.key for known in self._classes.values()}

    def add(self, path: Path, segments: Sequence[Segment]) -> dict[int, int]:
        """Add the segments of a file; return the value of each of its numbers.

        Raises:
            DinomedError: a segment has the label of another one and another code. Nothing is added then.
        """
        known = {**self._classes}
        for segment in segments:
            first = known.setdefault(segment.key, _Class(0, segment, path))
            if first.segment.code and segment.code and first.segment.code != segment.code:
                raise DinomedError(
                    f"segment {segment.number} has the label of segment {first.segment.number} of {first.path} and "
                    f"another code ({segment.code}, not {first.segment.code}), so that they contradict each other; "
                    "correct the label or the code in one of the two files"
                )
            if segment.code and not first.segment.code:
                known[segment.key] = _Class(0, segment, path)
        taken = {one.value for one in self._classes.values()}
        for segment in segments:
            earlier = self._classes.get(segment.key)
            if earlier is None:
                self._warn(path, segment, segments)
                value = segment.number if segment.number not in taken else max(taken) + 1
                taken.add(value)
                self._classes[segment.key] = _Class(value, segment, path)
            elif segment.code and not earlier.segment.code:
                self._warn(path, segment, segments)
                self._classes[segment.key] = _Class(earlier.value, replace(segment, label=earlier.segment.label), path)
        return {segment.number: self._classes[segment.key].value for segment in segments}

    def _warn(self, path: Path, new: Segment, segments: Sequence[Segment]) -> None:
        """Warn of a new code of a label that another file has under another label, which this file lacks."""
        here = {segment.key for segment in segments}
        for key, other in self._classes.items():
            if new.code and other.segment.code == new.code and other.path != path and key not in here:
                logger.warning(
                    f"{path}: segment {new.number} has the code ({new.code}) of segment {other.segment.number} of "
                    f"{other.path} and another label; they are two classes: give them one label if they are the same"
                )
                return
