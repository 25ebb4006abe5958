"""Predicting whole collections: a mask for each image, or one table of probabilities."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

import torch

from dinomed.adapters.plan import FAILED_FILE, PLAN_FILE, TABLE_FILE, Plan, Row, add_rows, begin, finish
from dinomed.adapters.predict import ClassifyPredictor, SegmentPredictor, lesion_summary
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.tables import write_csv
from dinomed.errors import DinomedError, UsageError
from dinomed.features.compute import Loaded, load_images
from dinomed.files import locked, prepare_output
from dinomed.images.read import write_mask
from dinomed.progress import bar, say

BATCH_SIZE = 16


@dataclass(frozen=True)
class Written:
    """How a prediction ended: images done (`kept` of them by an interrupted run before), and (path, reason) of those
    that could not be read."""

    folder: Path
    images: int
    kept: int
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
    probability of each class. `predictions.json` says what makes them and lists the masks; it is there first, and says
    ``"complete": true`` at the end. Called again after an interruption, with the same images and adapter, what is done
    is kept and the rest is made. An image that cannot be read is listed in `unreadable.csv`, and the rest goes on.

    Args:
        unreadable: (path, reason) of files that were refused earlier; they are listed too.
        overwrite: begin anew, and remove what an earlier prediction in `out` wrote (only that).

    Raises:
        UsageError: `out` is in use, or the folder of the images itself.
    """
    out = Path(out)
    if out.resolve() == manifest.root.resolve():
        raise UsageError(f"output {out} is the folder of the images; give a folder for the results alone")
    names = manifest.column("image")
    segmenter = isinstance(predictor, SegmentPredictor)
    masks = mask_names(names) if segmenter else []
    plan = Plan(_settings(predictor, manifest), tuple(masks))
    prepare_output(out, overwrite=True, marker=PLAN_FILE)  # an earlier result: `begin` decides
    with locked(out):
        done = begin(out, plan, overwrite=overwrite)
        todo = [i for i, name in enumerate(names) if name not in done]
        kept = len(done)
        if kept:
            say(f"{kept} of {len(names)} images are done already")
        failed = list(unreadable)
        with bar("predicting", len(names), kept) as progress:
            for loaded in batches(manifest.take(todo), predictor):
                good = [(todo[one.index], one) for one in loaded if one.pixels is not None]
                failed += [(names[todo[one.index]], one.error.reason) for one in loaded if one.error]
                if good:
                    rows = _predict_batch(predictor, good, names, masks, out)
                    add_rows(out, rows)
                    done |= {row[0]: row for row in rows}
                progress.advance(len(loaded))
        columns = ["mask", "area_px", "area_fraction", "confidence"] if segmenter else ["predicted", *predictor.classes]
        write_csv(out / TABLE_FILE, ["image", *columns], [done[name] for name in names if name in done])
        if failed:
            write_csv(out / FAILED_FILE, ["image", "reason"], failed)
        else:
            (out / FAILED_FILE).unlink(missing_ok=True)
        finish(out, plan)
    return Written(out, len(done), kept, failed)


def _settings(predictor: SegmentPredictor | ClassifyPredictor, manifest: Manifest) -> dict[str, object]:
    return {
        "task": predictor.task,
        "classes": list(predictor.classes),
        "threshold": predictor.threshold if isinstance(predictor, SegmentPredictor) else None,
        "adapter": predictor.metadata["weights_sha256"],
        "backbone": predictor.backbone.fingerprint,
        "images": manifest.fingerprint,
    }


def batches(
    manifest: Manifest, predictor: SegmentPredictor | ClassifyPredictor, size: int = BATCH_SIZE
) -> Iterator[list[Loaded]]:
    """The images of a manifest, ready for the predictor, some at a time; unreadable ones are among them."""
    images = load_images(manifest, predictor.backbone.preprocessing)
    while chunk := list(islice(images, size)):
        yield chunk


def stack_pixels(loaded: list[Loaded]) -> torch.Tensor:
    """The batch; an unreadable image ends an evaluation, since a mean over the others would hide it."""
    for one in loaded:
        if one.error is not None:
            raise DinomedError(f"{one.error}; it could be read when the manifest was made: scan the folder again")
    return torch.stack([one.pixels for one in loaded if one.pixels is not None])


def _predict_batch(
    predictor: SegmentPredictor | ClassifyPredictor,
    loaded: Sequence[tuple[int, Loaded]],
    names: Sequence[str],
    masks: Sequence[str],
    out: Path,
) -> list[Row]:
    """The rows of the table for (row of the manifest, image); a segmenter's masks are written on the way."""
    pixels = torch.stack([one.pixels for _, one in loaded if one.pixels is not None])
    if isinstance(predictor, ClassifyPredictor):
        return [
            [names[i], predictor.classes[values.argmax()], *(f"{value:.6f}" for value in values)]
            for (i, _), values in zip(loaded, predictor.probability_rows(pixels), strict=True)
        ]
    rows = []
    maps = predictor.probability_maps(pixels, [one.size for _, one in loaded])
    for (i, _), probability in zip(loaded, maps, strict=True):
        write_mask(out / masks[i], probability >= predictor.threshold)
        found = lesion_summary(probability, predictor.threshold)
        confidence = None if found.confidence is None else f"{found.confidence:.4f}"
        rows.append([names[i], masks[i], found.area_px, f"{found.area_fraction:.6f}", confidence])
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
