"""Meaning of folder and file names: splits, classes, and pairs of images and masks.

- ``train/``, ``val/`` (or ``valid/``, ``validation/``), ``test/``: the split, if at least two of them exist.
- With ``--labels folders``, the first other folder below the root is the class: ``FOLDER/[train/]nevus/a.jpg``.
- A file is the mask of the image with the same name if it lies in a folder ``masks/`` (``mask``, ``annotations``,
  ``segmentations``, ``gt``, ``labels``, ...), or if its name ends in ``_mask``, ``_segmentation``, ``_seg`` or ``_gt``.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from dinomed.datasets.splits import split_name
from dinomed.datasets.tables import compose_letters

_IMAGE_FOLDERS = frozenset(["image", "images", "img", "imgs", "pictures", "photos", "data"])
_MASK_FOLDERS = frozenset(
    ["mask", "masks", "annotation", "annotations", "segmentation", "segmentations", "groundtruth", "ground_truth",
     "ground truth", "gt", "label", "labels"]
)  # fmt: skip
_KIND = frozenset(
    word for name in (*_IMAGE_FOLDERS, *_MASK_FOLDERS, "input", "inputs") for word in re.split("[_ ]", name)
)
_PART = re.compile(r"(?:task|part)\d[\d-]*")
_MASK_SUFFIX = re.compile(r"[ _-](mask|masks|segmentation|seg|gt|annotation)(?:[ _-]?\d+)?$", re.IGNORECASE)


@dataclass
class Pairs:
    """Images, their masks, and the masks that were not paired.

    Attributes:
        images: sorted paths of images.
        masks: image -> mask.
        orphans: masks without an image of their name.
        doubtful: mask -> reason why the image of its name may be another image; these masks are not used.
        several: images with more than one mask; the first mask by name is used.
    """

    images: list[str]
    masks: dict[str, str]
    orphans: list[str]
    doubtful: dict[str, str]
    several: list[str]


def pair_masks(paths: Iterable[str]) -> Pairs:
    """Separate masks from images by folder and file name, and pair them.

    A mask belongs to the only image of its name at the same place; folders such as `images` and `masks` do not count as
    places. Otherwise it belongs to the only image of its name at a place above or below. It never belongs to an image
    of an unrelated place, which may be of another patient or another split.

    >>> pair_masks(["images/a.jpg", "masks/a.png"]).masks
    {'images/a.jpg': 'masks/a.png'}
    >>> pair_masks(["b/images/1.jpg", "a/masks/1.png"]).doubtful
    {'a/masks/1.png': 'the only image of its name is in another folder: b/images/1.jpg'}
    """
    candidates: list[str] = []
    by_stem: dict[str, list[str]] = defaultdict(list)
    for path in sorted(paths):
        if _sign(path):
            candidates.append(path)
        else:
            by_stem[compose_letters(PurePosixPath(path).stem)].append(path)
    images = [path for same in by_stem.values() for path in same]
    masks_of: dict[str, list[str]] = defaultdict(list)
    doubtful: dict[str, str] = {}
    unpaired: list[str] = []
    for path in candidates:
        same = by_stem.get(_stem(path), [])
        near = _in_one_place(path, same)
        if len(near) == 1:
            masks_of[near[0]].append(path)
        elif same:
            doubtful[path] = _doubt(near, same)
        else:
            unpaired.append(path)
    signs = {_sign(path) for path in [*doubtful, *(mask for masks in masks_of.values() for mask in masks)]}
    orphans = [path for path in unpaired if _sign(path) in signs]
    images += sorted(set(unpaired) - set(orphans))  # named like masks, but no mask of this kind was paired
    return Pairs(
        sorted(images),
        {image: masks[0] for image, masks in masks_of.items()},
        orphans,
        doubtful,
        [image for image, masks in masks_of.items() if len(masks) > 1],
    )


def _in_one_place(mask: str, images: list[str]) -> list[str]:
    """Return the `images` at the place of `mask`, or else those at a place above or below."""
    place = _place(mask)
    exact = [image for image in images if _place(image) == place]
    return exact or [
        image for image in images if (image_place := set(_place(image))) <= set(place) or image_place >= set(place)
    ]


def _doubt(near: list[str], same: list[str]) -> str:
    """Return why a mask is not paired."""
    if near:
        return f"{len(near)} images have its name: {near[0]}, {near[1]}{', ...' if len(near) > 2 else ''}"
    if len(same) == 1:
        return f"the only image of its name is in another folder: {same[0]}"
    return f"the images of its name are in other folders: {same[0]}, {same[1]}{', ...' if len(same) > 2 else ''}"


def splits_of(paths: Iterable[str]) -> dict[str, str]:
    """Return the split of each path in a split folder; empty unless there are two different splits."""
    splits = {path: split for path in paths if (split := next(filter(None, map(split_name, _folders(path))), None))}
    return splits if len(set(splits.values())) > 1 else {}


def classes_of(paths: Iterable[str]) -> dict[str, str]:
    """Return the class of each path: its first folder that is neither a split nor a container such as ``images``."""
    paths = list(paths)
    with_splits = bool(splits_of(paths))
    classes: dict[str, str] = {}
    for path in paths:
        for folder in _folders(path):
            if folder.lower() not in _IMAGE_FOLDERS and not (with_splits and split_name(folder)):
                classes[path] = compose_letters(folder)
                break
    return classes


def _folders(path: str) -> tuple[str, ...]:
    return PurePosixPath(path).parts[:-1]


def _sign(path: str) -> str | None:
    """Return the folder name or the name ending that marks a file as a mask; None for images."""
    for folder in _folders(path):
        if folder.lower() in _MASK_FOLDERS:
            return folder.lower()
    ending = _MASK_SUFFIX.search(PurePosixPath(path).stem)
    return f"_{ending[1].lower()}" if ending else None


def _stem(mask: str) -> str:
    """Return the stem of the image that a mask belongs to."""
    return compose_letters(_MASK_SUFFIX.sub("", PurePosixPath(mask).stem))


def _place(path: str) -> tuple[str, ...]:
    """Return the folders of an image or a mask, without the words that mark images and masks.

    >>> _place("ISIC2018_Task1-2_Training_Input/a.jpg"), _place("ISIC2018_Task1_Training_GroundTruth/a.png")
    (('isic2018 training',), ('isic2018 training',))
    >>> _place("part1/images/a.jpg")
    ('part1',)
    """
    places = []
    for folder in _folders(path):
        words = [word for word in re.split("[_ ]", compose_letters(folder).lower()) if word and word not in _KIND]
        # The part numbers of a challenge differ between images and masks; a folder with such a name alone is a place.
        places.append(" ".join([word for word in words if not _PART.fullmatch(word)] or words))
    return tuple(filter(None, places))
