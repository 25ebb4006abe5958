"""Predicting whole collections: a mask for each image, or one table of probabilities."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from dinomed.adapters.predict import ClassifyPredictor, SegmentPredictor, lesion_summary
from dinomed.datasets.manifest import Manifest, leaves_root
from dinomed.datasets.tables import read_csv, write_csv
from dinomed.errors import UsageError
from dinomed.features.compute import Loaded, load_images
from dinomed.files import locked, prepare_output, write_json
from dinomed.images.read import write_mask
from dinomed.progress import bar

RECORD_FILE, TABLE_FILE, FAILED_FILE = "predictions.json", "predictions.csv", "unreadable.csv"
BATCH_SIZE = 16


@dataclass(frozen=True)
class Written:
    """How a prediction ended: images done, and (path, reason) of those that could not be read."""

    folder: Path
    images: int
    unreadable: list[tuple[str, str]]


def predict_collection(
    predictor: SegmentPredictor | ClassifyPredictor,
    manifest: Manifest,
    out: str | Path,
    *,
    unreadable: Sequence[tuple[str, str]] = (),
    overwrite: bool = False,
) -> Written:
    """Predict every image of a manifest.

    A segmenter writes masks (PNG, 0 and 255, of each image's own size) under the images' relative names (see
    `mask_names`), and `predictions.csv` with area and confidence; a classifier writes `predictions.csv` with the
    probability of each class. `predictions.json` says what made them. An image that cannot be read is listed in
    `unreadable.csv`, and the rest goes on.

    Args:
        unreadable: (path, reason) of files that were refused earlier; they are listed too.
        overwrite: replace the masks and tables of an earlier prediction in `out`.

    Raises:
        UsageError: `out` is in use, or inside the folder of the images.
    """
    out = Path(out)
    root = manifest.root.resolve()
    if out.resolve() == root or root in out.resolve().parents:
        raise UsageError(f"output {out} lies in the folder of the images; masks would be taken for images later")
    prepare_output(out, overwrite=overwrite, marker=RECORD_FILE)
    with locked(out):
        _clear(out)
        segmenter = isinstance(predictor, SegmentPredictor)
        write_json(
            out / RECORD_FILE,
            {
                "purpose": predictor.metadata["purpose"],
                "task": predictor.task,
                "classes": predictor.classes,
                "threshold": predictor.threshold if isinstance(predictor, SegmentPredictor) else None,
                "adapter": predictor.metadata["weights_sha256"],
                "backbone": predictor.backbone.fingerprint,
                "images": manifest.fingerprint,
            },
        )
        names = manifest.column("image")
        masks = mask_names(names) if segmenter else [""] * len(names)
        rows: list[list[Any]] = []
        failed = list(unreadable)
        with bar("predicting", len(manifest)) as progress:
            for loaded in batches(manifest, predictor):
                good = [one for one in loaded if one.pixels is not None]
                failed += [(names[one.index], one.error.reason) for one in loaded if one.error]
                if good:
                    rows += _predict_batch(predictor, good, names, masks, out)
                progress.advance(len(loaded))
        columns = ["mask", "area_px", "area_fraction", "confidence"] if segmenter else ["predicted", *predictor.classes]
        write_csv(out / TABLE_FILE, ["image", *columns], rows)
        if failed:
            write_csv(out / FAILED_FILE, ["image", "reason"], failed)
    return Written(out, len(rows), failed)


def batches(
    manifest: Manifest, predictor: SegmentPredictor | ClassifyPredictor, size: int = BATCH_SIZE
) -> Iterator[list[Loaded]]:
    """The images of a manifest, ready for the predictor, some at a time; unreadable ones are among them."""
    images = load_images(manifest, predictor.backbone.preprocessing)
    while chunk := list(islice(images, size)):
        yield chunk


def _predict_batch(
    predictor: SegmentPredictor | ClassifyPredictor,
    loaded: Sequence[Loaded],
    names: Sequence[str],
    masks: Sequence[str],
    out: Path,
) -> list[list[Any]]:
    """The rows of the table; a segmenter's masks are written on the way."""
    pixels = torch.stack([one.pixels for one in loaded if one.pixels is not None])
    if isinstance(predictor, ClassifyPredictor):
        return [
            [names[one.index], predictor.classes[values.argmax()], *(f"{value:.6f}" for value in values)]
            for one, values in zip(loaded, predictor.probability_rows(pixels), strict=True)
        ]
    rows = []
    maps = predictor.probability_maps(pixels, [one.size for one in loaded])
    for one, probability in zip(loaded, maps, strict=True):
        write_mask(out / masks[one.index], probability >= predictor.threshold)
        found = lesion_summary(probability, predictor.threshold)
        confidence = None if found.confidence is None else f"{found.confidence:.4f}"
        rows.append([names[one.index], masks[one.index], found.area_px, f"{found.area_fraction:.6f}", confidence])
    return rows


def mask_names(images: Sequence[str]) -> list[str]:
    """A relative PNG name for each image: its own with the suffix .png.

    Where two would get the same one, as a.jpg and a.png do, both keep their whole name in front: a.jpg.png, a.png.png.

    >>> mask_names(["x/a.jpg", "b.jpg", "b.png"])
    ['x/a.png', 'b.jpg.png', 'b.png.png']
    """
    whole = [False] * len(images)
    while True:
        names = [
            image + ".png" if keep else str(PurePosixPath(image).with_suffix(".png"))
            for image, keep in zip(images, whole, strict=True)
        ]
        counts = Counter(name.casefold() for name in names)  # some file systems know no case
        clash = [counts[name.casefold()] > 1 and not keep for name, keep in zip(names, whole, strict=True)]
        if not any(clash):
            return names
        whole = [keep or new for keep, new in zip(whole, clash, strict=True)]


def _clear(out: Path) -> None:
    """Remove what an earlier prediction wrote here, by its own table, so that no mask of it stays among the new."""
    table = out / TABLE_FILE
    if table.is_file():
        names, rows = read_csv(table)
        if "mask" in names:
            for row in rows:
                mask = row[names.index("mask")]
                if mask and not leaves_root(mask):
                    (out / mask).unlink(missing_ok=True)
    for name in (TABLE_FILE, FAILED_FILE):
        (out / name).unlink(missing_ok=True)
