"""Annotation files in the COCO format: images, categories and the outlines of objects, checked.

A file has three lists: `images` (id, file_name, width, height), `categories` (id, name) and `annotations` (image_id,
category_id, segmentation). A segmentation is a list of polygons ``[x, y, x, y, ...]`` in px, or run lengths, as a list
or as text (https://cocodataset.org/#format-data).
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dinomed.datasets.coco.rle import Runs, check_runs, parse_runs
from dinomed.errors import DinomedError, UsageError
from dinomed.images.decode import MAX_PIXELS
from dinomed.io.files import read_json

Id = int | str
Outline = list[list[float]] | Runs
MAX_BYTES = 2 * 2**30
MAX_OUTLINE_PX = 1_000_000
"""Longest outline of an object, px; pycocotools takes about 100 bytes for each."""
_MAX_VALUE = 1e300  # of a coordinate: larger whole numbers do not convert to float


@dataclass(frozen=True)
class CocoImage:
    """An image: its file name as written, and its size in px."""

    name: str
    width: int
    height: int


@dataclass
class CocoAnnotations:
    """The content of an annotation file.

    Attributes:
        images: by id.
        categories: id -> name, in the order of the file.
        objects: image id -> (category id, outline) of each object; an outline is a list of polygons or of run lengths.
        clipped: number of polygons that reach out of their images.
    """

    path: Path
    images: dict[Id, CocoImage] = field(default_factory=dict)
    categories: dict[Id, str] = field(default_factory=dict)
    objects: dict[Id, list[tuple[Id, Outline]]] = field(default_factory=lambda: defaultdict(list))
    clipped: int = 0


def read_annotations(path: Path, *, outlines: bool = True) -> CocoAnnotations:
    """Read an annotation file and check all of it.

    Args:
        outlines: read the objects too; without them only images and categories.

    Raises:
        UsageError: the file is no annotation file, an id occurs twice, an object lies outside its image, has no
            outline, or has one that is damaged or longer than `MAX_OUTLINE_PX`. The message names the first such entry.
    """
    if not path.is_file():
        raise UsageError(f"COCO file {path} does not exist" + (": it is a folder" if path.is_dir() else ""))
    if path.stat().st_size > MAX_BYTES:
        raise UsageError(f"COCO file {path} is larger than {MAX_BYTES >> 30} GiB; split it")
    try:
        data = read_json(path, "give an annotation file in the COCO format: JSON in UTF-8, not compressed")
    except DinomedError as error:
        raise UsageError(f"COCO file {error}") from None
    lists = ("images", "annotations", "categories") if outlines else ("images", "categories")
    if not isinstance(data, dict) or not all(isinstance(data.get(name), list) for name in lists):
        hint = " (it holds results alone)" if isinstance(data, list) else ""
        raise UsageError(f"{path} is no COCO file{hint}; it needs the lists {', '.join(lists)}")
    result = CocoAnnotations(path)
    for place, entry in enumerate(data["images"]):
        with_id = _id(path, "images", place, entry)
        _add(path, "image", result.images, with_id, _image(path, with_id, entry))
    for place, entry in enumerate(data["categories"]):
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name.strip():
            raise UsageError(f"{path}: categories[{place}] has no name")
        _add(path, "category", result.categories, _id(path, "categories", place, entry), name.strip())
    _refuse_twice(path, "images", "file_name", (image.name for image in result.images.values()))
    _refuse_twice(path, "categories", "name", result.categories.values())
    if outlines:
        _read_objects(result, data["annotations"])
    return result


def _read_objects(result: CocoAnnotations, entries: list[Any]) -> None:
    seen: set[Id] = set()
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UsageError(f"{result.path}: annotations[{place}] is no object")
        name = f"annotations[{place}]"
        if "id" in entry:
            number = _id(result.path, "annotations", place, entry)
            if number in seen:
                raise UsageError(f"{result.path}: annotation id {number!r} occurs twice; give each its own")
            seen.add(number)
            name = f"annotation {number!r}"
        image, category = (_reference(result.path, name, entry, key) for key in ("image_id", "category_id"))
        if image not in result.images:
            raise UsageError(f"{result.path}: {name} is of image {image!r}, which images does not list")
        if category not in result.categories:
            raise UsageError(f"{result.path}: {name} is of category {category!r}, which categories does not list")
        try:
            outline = _outline(entry.get("segmentation"), result, result.images[image])
        except ValueError as error:
            raise UsageError(f"{result.path}: {name} of image {result.images[image].name!r}: {error}") from None
        result.objects[image].append((category, outline))


def _outline(segmentation: Any, result: CocoAnnotations, image: CocoImage) -> Outline:
    """Return the polygons or the run lengths of an object; raise a `ValueError` for damaged ones."""
    if not segmentation:
        raise ValueError("it has no segmentation (a box alone is no mask); outline it, or remove it")
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [image.height, image.width]:
            raise ValueError(
                f"its run lengths are of size {segmentation.get('size')}, the image of {[image.height, image.width]} "
                "(height, width)"
            )
        counts = segmentation.get("counts")
        return check_runs(parse_runs(counts) if isinstance(counts, str) else counts, image.height, image.width)
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        raise ValueError("its segmentation is neither a list of polygons nor run lengths")
    for polygon in segmentation:
        result.clipped += _reaches_out(polygon, image)
    return segmentation


def _reaches_out(polygon: list[Any], image: CocoImage) -> bool:
    """Check a polygon; return whether a part of it lies outside the image."""
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"a polygon has {len(polygon)} numbers; it needs three points or more, x and y of each")
    if not all(type(value) in (int, float) and abs(value) <= _MAX_VALUE for value in polygon):
        raise ValueError("a polygon has a value that is no number, or one that is too large")
    xs, ys = polygon[::2], polygon[1::2]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    if left >= image.width or right <= 0 or top >= image.height or bottom <= 0:
        raise ValueError(
            f"a polygon lies outside the image of {image.width} x {image.height} px (x {left:g} to {right:g}, "
            f"y {top:g} to {bottom:g}); correct or remove it"
        )
    length = sum(max(abs(xs[i] - xs[i - 1]), abs(ys[i] - ys[i - 1])) for i in range(len(xs)))
    if length > MAX_OUTLINE_PX:
        raise ValueError(f"a polygon has an outline of {length:.3g} px; the limit is {MAX_OUTLINE_PX:,}")
    return left < -1 or top < -1 or right > image.width + 1 or bottom > image.height + 1


def _image(path: Path, number: Id, entry: Any) -> CocoImage:
    name, width, height = entry.get("file_name"), entry.get("width"), entry.get("height")
    if not isinstance(name, str) or not name:
        raise UsageError(f"{path}: image {number!r} has no file_name")
    if not (type(width) is int and type(height) is int and width > 0 and height > 0 and width * height <= MAX_PIXELS):
        raise UsageError(
            f"{path}: image {number!r} has the size {width} x {height}; width and height are whole numbers of px, "
            f"{MAX_PIXELS:,} px at most in all"
        )
    return CocoImage(name, width, height)


def _id(path: Path, part: str, place: int, entry: Any) -> Id:
    number = entry.get("id") if isinstance(entry, dict) else None
    if type(number) not in (int, str):
        raise UsageError(f"{path}: {part}[{place}] has no id, a whole number")
    return number  # type: ignore[return-value]


def _reference(path: Path, name: str, entry: dict[str, Any], key: str) -> Id:
    number = entry.get(key)
    if type(number) not in (int, str):
        raise UsageError(f"{path}: {name} has no {key}")
    return number  # type: ignore[return-value]


def _add(path: Path, what: str, known: dict[Id, Any], number: Id, value: Any) -> None:
    if number in known:
        raise UsageError(f"{path}: {what} id {number!r} occurs twice; give each its own")
    known[number] = value


def _refuse_twice(path: Path, part: str, key: str, names: Any) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UsageError(f"{path}: {part} has {key} {twice[0]!r} twice; keep one, or merge them")
