"""What the places of files say: which are images, which are their masks, and what folder names mean.

- ``train/``, ``val/`` (or ``valid/``, ``validation/``), ``test/``: the split, where at least two of them are there;
- with ``--labels folders``: the first other folder below the root is the class, ``FOLDER/[train/]nevus/a.jpg``;
- a folder ``masks/`` (``mask``, ``annotations``, ``segmentations``, ``gt``, ``labels``, ...) whose files are named as
  images, or a name ending in ``_mask``, ``_segmentation``, ``_seg``, ``_gt`` beside the image's: its mask.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from dinomed.datasets.splits import split_name

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
    """Images, the mask of each that has one, and what did not fit.

    `orphans` are masks whose name no image has; `doubtful` maps masks to the reason why the image of their name may not
    be theirs, and they go unused; `several` are images with more than one mask (the first by name is taken).
    """

    images: list[str]
    masks: dict[str, str]
    orphans: list[str]
    doubtful: dict[str, str]
    several: list[str]


def pair_masks(paths: Iterable[str]) -> Pairs:
    """Tell masks from images by folder and name, and pair them.

    A mask goes to the one image of its name in the same place, where `images` and `masks` and the like are no places
    of their own; else to the one image of its name in a place that holds its own or is held by it. Never to an image of
    another place: that would be another patient's, or one of another split.

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
            by_stem[PurePosixPath(path).stem].append(path)
    images = [path for same in by_stem.values() for path in same]
    owned: dict[str, list[str]] = defaultdict(list)
    doubtful: dict[str, str] = {}
    left: list[str] = []
    for path in candidates:
        same = by_stem.get(_stem(path), [])
        near = _in_one_place(path, same)
        if len(near) == 1:
            owned[near[0]].append(path)
        elif same:
            doubtful[path] = _doubt(near, same)
        else:
            left.append(path)
    signs = {_sign(path) for path in [*doubtful, *(mask for masks in owned.values() for mask in masks)]}
    orphans = [path for path in left if _sign(path) in signs]
    images += sorted(set(left) - set(orphans))  # named like masks, but nothing bears them out
    return Pairs(
        sorted(images),
        {image: masks[0] for image, masks in owned.items()},
        orphans,
        doubtful,
        [image for image, masks in owned.items() if len(masks) > 1],
    )


def _in_one_place(mask: str, images: list[str]) -> list[str]:
    """Those of `images` that are in the place of `mask`, else those in a place that holds it or is held by it."""
    place = _place(mask)
    exact = [image for image in images if _place(image) == place]
    return exact or [image for image in images if (other := set(_place(image))) <= set(place) or other >= set(place)]


def _doubt(near: list[str], same: list[str]) -> str:
    if near:
        return f"{len(near)} images have its name: {near[0]}, {near[1]}{', ...' if len(near) > 2 else ''}"
    if len(same) == 1:
        return f"the only image of its name is in another folder: {same[0]}"
    return f"the images of its name are in other folders: {same[0]}, {same[1]}{', ...' if len(same) > 2 else ''}"


def splits_of(paths: Iterable[str]) -> dict[str, str]:
    """The split of each path that lies in a split folder; nothing unless two different splits are found."""
    found = {path: split for path in paths if (split := next(filter(None, map(split_name, _folders(path))), None))}
    return found if len(set(found.values())) > 1 else {}


def classes_of(paths: Iterable[str]) -> dict[str, str]:
    """The class of each path: its first folder that names neither a split nor a container such as ``images``."""
    paths = list(paths)
    with_splits = bool(splits_of(paths))
    found: dict[str, str] = {}
    for path in paths:
        for folder in _folders(path):
            if folder.lower() not in _IMAGE_FOLDERS and not (with_splits and split_name(folder)):
                found[path] = folder
                break
    return found


def _folders(path: str) -> tuple[str, ...]:
    return PurePosixPath(path).parts[:-1]


def _sign(path: str) -> str | None:
    """What says that a file is a mask: the name of its folder or the ending of its own; None for images."""
    for folder in _folders(path):
        if folder.lower() in _MASK_FOLDERS:
            return folder.lower()
    ending = _MASK_SUFFIX.search(PurePosixPath(path).stem)
    return f"_{ending[1].lower()}" if ending else None


def _stem(mask: str) -> str:
    """The stem that the image of a mask has."""
    return _MASK_SUFFIX.sub("", PurePosixPath(mask).stem)


def _place(path: str) -> tuple[str, ...]:
    """The folders of an image or a mask, without what only says which of the two it is.

    >>> _place("ISIC2018_Task1-2_Training_Input/a.jpg"), _place("ISIC2018_Task1_Training_GroundTruth/a.png")
    (('isic2018 training',), ('isic2018 training',))
    >>> _place("part1/images/a.jpg")
    ('part1',)
    """
    places = []
    for folder in _folders(path):
        words = [word for word in re.split("[_ ]", folder.lower()) if word and word not in _KIND]
        # Parts of a challenge number what is asked, images and masks alike; a folder of that name alone is a place.
        places.append(" ".join([word for word in words if not _PART.fullmatch(word)] or words))
    return tuple(filter(None, places))
