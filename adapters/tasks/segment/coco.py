"""Predicted masks as COCO results: each connected region of a class is an object, with run lengths and a score.

`coco_results.json` is the list of objects that ``COCO.loadRes`` of pycocotools reads, and `coco_images.json` names the
images and categories of its ids (https://cocodataset.org/#format-results).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.adapters.inference.plan import OBJECTS_FILE
from dinomed.adapters.tasks.segment.lesions import NEIGHBORS
from dinomed.adapters.tasks.segment.mask_schema import MaskSchema
from dinomed.datasets.coco.annotations import CocoAnnotations, Id, read_annotations
from dinomed.datasets.coco.rle import encode_runs, mask_api, runs_of_pixels
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.scan.labels import FileSearch
from dinomed.errors import UsageError
from dinomed.io.files import append_text, sha256_file, to_json, write_json

RESULTS_FILE, IMAGES_FILE = "coco_results.json", "coco_images.json"


class CocoResults:
    """Collects the objects of predicted images.

    Args:
        manifest: the images.
        schema: the classes.
        ids: COCO file whose ids of images and categories are used; None numbers both from 1.

    Raises:
        UsageError: pycocotools is not installed, the file is damaged, or it lacks an image or a class.
    """

    def __init__(self, manifest: Manifest, schema: MaskSchema, ids: Path | None) -> None:
        mask_api()
        self.manifest, self.schema = manifest, schema
        names, classes = manifest.column("image"), [schema.names[k] for k in schema.reported]
        self.setting = None if ids is None else sha256_file(ids) if ids.is_file() else str(ids)
        self.image_ids: dict[str, Id] = {name: i for i, name in enumerate(names, start=1)}
        self.category_ids: dict[str, Id] = {name: i for i, name in enumerate(classes, start=1)}
        if ids is not None:
            known = read_annotations(ids, outlines=False)
            self.image_ids, self.category_ids = _image_ids(known, manifest), _category_ids(known, classes)

    def save(self, out: Path, name: str, planes: np.ndarray, probabilities: np.ndarray) -> None:
        """Save the objects of an image in `OBJECTS_FILE`, until the prediction is complete.

        Args:
            out: output folder.
            name: relative path of the image.
            planes: masks, (classes, H, W) of 0 and 1.
            probabilities: float32 (classes, H, W).
        """
        objects = [
            {"image_id": self.image_ids[name], "category_id": self.category_ids[self.schema.names[k]], **region}
            for k in self.schema.reported
            for region in find_regions(planes[k], probabilities[k])
        ]
        # begins with a line end, so that a line that an interruption cut off does not spoil this one
        append_text(out / OBJECTS_FILE, "\n" + to_json([name, objects]) + "\n")

    def write(self, out: Path, names: Sequence[str]) -> None:
        """Write both files for the images of these relative paths, which are saved."""
        objects: dict[str, list[Any]] = {}
        for line in (out / OBJECTS_FILE).read_text("utf-8").split("\n") if (out / OBJECTS_FILE).exists() else ():
            try:
                name, regions = json.loads(line)
            except ValueError:
                continue
            objects[name] = regions
        rows = {name: row for row, name in enumerate(self.manifest.column("image"))}
        widths, heights = self.manifest.column("width"), self.manifest.column("height")
        images = [
            {"id": self.image_ids[name], "file_name": name, "width": widths[rows[name]], "height": heights[rows[name]]}
            for name in names
        ]
        categories = [{"id": number, "name": name} for name, number in self.category_ids.items()]
        write_json(out / IMAGES_FILE, {"images": images, "categories": categories, "annotations": []})
        write_json(out / RESULTS_FILE, [region for name in names for region in objects[name]])


def find_regions(plane: np.ndarray, probability: np.ndarray) -> list[dict[str, Any]]:
    """Return ``segmentation`` and ``score``, the mean probability, of each connected region of a mask (H, W).

    Pixels that touch at a corner belong to one region.
    """
    from scipy import ndimage

    labels, count = ndimage.label(plane, NEIGHBORS)
    height, width = plane.shape
    by_column = labels.T.ravel()
    pixels = np.flatnonzero(by_column)
    order = np.argsort(by_column[pixels], kind="stable")
    regions = np.split(pixels[order], np.cumsum(np.bincount(by_column[pixels], minlength=count + 1)[1:-1]))
    scores = ndimage.mean(probability, labels, np.arange(1, count + 1))
    return [
        {
            "segmentation": encode_runs(runs_of_pixels(region, height, width), height, width),
            "score": round(float(score), 6),
        }
        for region, score in zip(regions if count else [], scores, strict=True)
    ]


def _image_ids(known: CocoAnnotations, manifest: Manifest) -> dict[str, Id]:
    """Return the id of each image of a manifest."""
    names = manifest.column("image")
    search = FileSearch(manifest.root, known.path.parent, names, names)
    ids = {path: number for number, image in known.images.items() if (path := search.find(image.name)[0])}
    absent = [name for name in names if name not in ids]
    if absent:
        raise UsageError(
            f"{known.path} has no id for {len(absent)} of {len(names)} images, such as {absent[0]}; predict the images "
            "that it names, or leave out `coco_ids`"
        )
    return ids


def _category_ids(known: CocoAnnotations, classes: Sequence[str]) -> dict[str, Id]:
    """Return the id of each class; with one class and one category, whatever they are called."""
    ids = {name: number for number, name in known.categories.items()}
    if len(classes) == len(ids) == 1:
        return {classes[0]: next(iter(ids.values()))}
    absent = [name for name in classes if name not in ids]
    if absent:
        raise UsageError(f"{known.path} has no category {absent[0]!r} (it has: {', '.join(ids)}); leave out `coco_ids`")
    return {name: ids[name] for name in classes}
