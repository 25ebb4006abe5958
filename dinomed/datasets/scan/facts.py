"""Facts about image files, read in decoding processes: header, size, hash and mask."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dinomed.images.decode import refusing
from dinomed.images.dicom.elements import is_dicom
from dinomed.images.dicom.patient import read_patient
from dinomed.images.dicom.references import check_belongs
from dinomed.images.dicom.segments import read_segment_descriptions
from dinomed.images.frames import parse_frame
from dinomed.images.labelmap import read_label_map
from dinomed.images.read import Header, MaskSizeError, UnreadableImage, read_header, read_mask, read_whole
from dinomed.images.unchanged import change_time
from dinomed.io.files import sha256_file
from dinomed.io.prefetch import prefetch
from dinomed.isolation.pool import EndedDecoding, shared_pool
from dinomed.progress import bar

_TRANSPOSING = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_CHUNK = 32  # files of a request; a request takes about 0.2 ms


@dataclass(frozen=True)
class Facts:
    """Facts about one readable image.

    Attributes:
        changed_ns: time of the last change of the file (`dinomed.images.unchanged`), ns.
        patient, study: Patient ID and Study Instance UID of a DICOM file, as written; for groups only.
        foreground: share of the mask that is not 0; None without a mask that was read.
        mask_problem: why the mask cannot be used.
        wrong_size: the mask has another size than the image.
        turned: EXIF turns the image but not the mask, and the shapes match with and without turning.
        segments: of a label map that is a DICOM segmentation, number, label and code of each segment.
    """

    image: str
    sha256: str
    bytes: int
    changed_ns: int
    header: Header
    mask: str | None = None
    foreground: float | None = None
    mask_problem: str | None = None
    wrong_size: bool = False
    turned: bool = False
    patient: str | None = None
    study: str | None = None
    segments: list[list[Any]] | None = None


def read_all(
    folder: Path,
    images: Sequence[str],
    masks: Mapping[str, str],
    workers: int | None = None,
    label_maps: bool = False,
    decode: bool = True,
) -> tuple[list[Facts], list[tuple[str, str]]]:
    """Read the facts of all images, in their order.

    Args:
        workers: number of decoding processes; by default one per processor, at most 16.

    Returns:
        The facts of readable images, and (path, reason) of the others.
    """

    def read_chunk(start: int) -> list[Facts | UnreadableImage]:
        return read_several(folder, images[start : start + _CHUNK], masks, label_maps, decode)

    starts = range(0, len(images), _CHUNK)
    facts: list[Facts] = []
    unreadable: list[tuple[str, str]] = []
    with bar("reading images", len(images)) as progress:
        for start, results in zip(
            starts, prefetch(read_chunk, starts, workers or min(16, os.cpu_count() or 1)), strict=True
        ):
            for image, result in zip(images[start:], results, strict=False):
                if isinstance(result, Facts):
                    facts.append(result)
                else:
                    unreadable.append((image, result.reason))
            progress.advance(len(results))
    return facts, unreadable


def read_several(
    folder: Path, images: Sequence[str], masks: Mapping[str, str], label_maps: bool = False, decode: bool = True
) -> list[Facts | UnreadableImage]:
    """Read the facts of some images in one decoding process.

    If a process ends, the image is read again without its mask, so that it is not rejected because of the mask.
    """
    root = Path(os.path.abspath(folder))  # the current folder of the process may be another one
    calls = [[str(root / image), str(root), image, masks.get(image), label_maps, decode] for image in images]
    results: list[Facts | UnreadableImage] = []
    for image, answer in zip(images, shared_pool().run(f"{__name__}:facts_record", calls), strict=True):
        if isinstance(answer, EndedDecoding) and image in masks:
            alone = read_several(folder, [image], {}, label_maps, decode)[0]
            if isinstance(alone, Facts):
                alone = replace(alone, mask=masks[image], mask_problem=answer.reason)
            results.append(alone)
        else:
            results.append(answer if isinstance(answer, UnreadableImage) else facts_of(answer[0]))
    return results


def read_facts(
    folder: Path, image: str, mask: str | None = None, label_maps: bool = False, decode: bool = True
) -> Facts:
    """Read an image and its mask.

    Args:
        image, mask: paths relative to `folder`.
        label_maps: the mask holds class values (`dinomed.images.labelmap`).
        decode: decode the image and the mask; if False, only headers are read.

    Raises:
        UnreadableImage: the image cannot be used. A mask that cannot be used is reported in the result.
    """
    path = folder / image
    header = read_whole(path) if decode else read_header(path)
    status = path.stat()  # before the content, so that a later change is seen
    patient, study = read_patient(path) if header.format == "DICOM" else (None, None)
    facts = Facts(
        image, sha256_file(path), status.st_size, change_time(status), header, mask, patient=patient, study=study
    )
    if mask is None:
        return facts
    return replace(facts, **_mask_facts(folder / mask, path, header, label_maps, decode))


def _mask_facts(path: Path, image: Path, header: Header, label_maps: bool, decode: bool = True) -> dict[str, Any]:
    """Return the fields of `Facts` about the mask of an image."""
    foreground, problem, wrong_size, turned, segments = None, None, False, False, None
    try:
        if header.format == "DICOM" and is_dicom(path):
            frame = parse_frame(image)
            check_belongs(path, image if frame is None else frame.video, 0 if frame is None else frame.number)
        if not decode:
            return {}
        read = read_label_map if label_maps else read_mask
        foreground = float((read(path, size=(header.height, header.width)) != 0).mean())
        segments = read_segment_descriptions(path) if label_maps and is_dicom(path) else None
        turned = header.orientation != 1 and _fits_both_ways(header) and read_header(path).orientation == 1
    except UnreadableImage as error:
        problem, wrong_size = error.reason, isinstance(error, MaskSizeError)
        if wrong_size and _fits_as_stored(header, read_header(path)):
            problem += "; it fits the image as it is stored, before its EXIF orientation: turn the mask upright"
    return {
        "foreground": foreground, "mask_problem": problem, "wrong_size": wrong_size, "turned": turned,
        "segments": segments,
    }  # fmt: skip


def _fits_both_ways(image: Header) -> bool:
    """Return whether the image has the same shape before and after its EXIF orientation."""
    return image.width == image.height or image.orientation not in _TRANSPOSING


def _fits_as_stored(image: Header, mask: Header) -> bool:
    """Return whether the mask has the size of the image before its EXIF orientation."""
    return image.orientation in _TRANSPOSING and (mask.height, mask.width) == (image.width, image.height)


def facts_record(path: str, folder: str, image: str, mask: str | None, *options: bool) -> tuple[dict[str, Any], None]:
    """Return the facts of `read_facts` as JSON types, for a decoding process (`dinomed.isolation`).

    Raises:
        UnreadableImage: the image at `path` cannot be used.
    """
    with refusing(path, private=True):
        facts = read_facts(Path(folder), image, mask, *options)
    return vars(facts) | {"header": vars(facts.header)}, None


def mask_record(path: str, image: str, header: dict[str, Any], label_maps: bool) -> tuple[dict[str, Any], None]:
    """Return the facts about the mask of an image as JSON types, for a decoding process."""
    with refusing(path, private=True):
        return _mask_facts(Path(path), Path(image), Header(**header), label_maps), None


def add_mask(folder: Path, facts: Facts, mask: str, label_maps: bool) -> Facts:
    """Return the facts of an image with those of its mask, which is read in a process with limits."""
    call = [*(os.path.abspath(folder / name) for name in (mask, facts.image)), vars(facts.header), label_maps]
    answer = shared_pool().run(f"{__name__}:mask_record", [call])[0]
    values = {"mask_problem": answer.reason} if isinstance(answer, UnreadableImage) else answer[0]
    return replace(facts, mask=mask, **values)


def facts_of(record: dict[str, Any]) -> Facts:
    """Return the facts of a record."""
    return Facts(**record | {"header": Header(**record["header"])})
