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
_MASK_SUFFIX = re.compile(r"[ _-](mask|masks|segmentation|seg|gt|annotation)(?:[ _-]?\d+)?$", re.IGNORECASE)


@dataclass
class Pairs:
    """Images, the mask of each that has one, masks without an image, and images with several (the first is taken)."""

    images: list[str]
    masks: dict[str, str]
    orphans: list[str]
    several: list[str]


def pair_masks(paths: Iterable[str]) -> Pairs:
    """Tell masks from images by folder and name, and pair them.

    >>> pair_masks(["images/a.jpg", "masks/a.png"]).masks
    {'images/a.jpg': 'masks/a.png'}
    """
    candidates: list[str] = []
    images: list[str] = []
    for path in paths:
        (candidates if _in_mask_folder(path) or _MASK_SUFFIX.search(PurePosixPath(path).stem) else images).append(path)
    by_key = {_key(path): path for path in images}
    by_stem: dict[str, list[str]] = defaultdict(list)
    for path in images:
        by_stem[PurePosixPath(path).stem].append(path)
    owned: dict[str, list[str]] = defaultdict(list)
    left: list[str] = []
    for path in candidates:
        key = _key(path)
        same = by_stem.get(key[1], [])
        image = by_key.get(key) or (same[0] if len(same) == 1 else None)
        if image is None:
            left.append(path)
        else:
            owned[image].append(path)
    folders = {PurePosixPath(path).parent for masks in owned.values() for path in masks}
    orphans = [path for path in left if _in_mask_folder(path) and PurePosixPath(path).parent in folders]
    images += sorted(set(left) - set(orphans))  # named like masks, but nothing bears them out
    return Pairs(
        sorted(images),
        {image: masks[0] for image, masks in owned.items()},
        orphans,
        [image for image, masks in owned.items() if len(masks) > 1],
    )


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


def _in_mask_folder(path: str) -> bool:
    return any(folder.lower() in _MASK_FOLDERS for folder in _folders(path))


def _key(path: str) -> tuple[tuple[str, ...], str]:
    """What an image and its mask have in common: the folders but for ``images`` and ``masks``, the name's stem."""
    folders = tuple(f for f in _folders(path) if f.lower() not in _IMAGE_FOLDERS | _MASK_FOLDERS)
    return folders, _MASK_SUFFIX.sub("", PurePosixPath(path).stem)
