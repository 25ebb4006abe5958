"""Reading of the facts of all images in decoding processes."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dinomed.datasets.scan.facts import Facts, facts_of
from dinomed.images.decode import UnreadableImage
from dinomed.io.prefetch import prefetch
from dinomed.isolation.pool import EndedDecoding, shared_pool
from dinomed.progress import bar

_CHUNK = 32  # files of a request; a request takes about 0.2 ms
_TARGET = "dinomed.datasets.scan.facts:facts_record"


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
    for image, answer in zip(images, shared_pool().run(_TARGET, calls), strict=True):
        if isinstance(answer, EndedDecoding) and image in masks:
            alone = read_several(folder, [image], {}, label_maps, decode)[0]
            if isinstance(alone, Facts):
                alone = replace(alone, mask=masks[image], mask_problem=answer.reason)
            results.append(alone)
        else:
            results.append(answer if isinstance(answer, UnreadableImage) else facts_of(answer[0]))
    return results
