"""Search for image files below a folder: each file once, no hidden files, no links out of the folder."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dinomed.datasets.predictions import find_predictions
from dinomed.images.decode import looks_like_image
from dinomed.progress import track
from dinomed.video.facts import VIDEO_SUFFIXES, container_of

# A file with such a suffix is reported if it is no image. Other files count as images if their content is one.
IMAGE_SUFFIXES = frozenset([
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".dib", ".webp", ".gif", ".dcm", ".dicom", ".npy"
])  # fmt: skip

FEATURES_SUFFIX, _CACHE_NAME = ".features", re.compile("[0-9a-f]{16}")


@dataclass
class WalkResult:
    """The files of a search; paths are relative and sorted.

    Attributes:
        images: image files. DICOM files of several frames are among them.
        videos: video files.
        refused: (path, reason) of files and folders that cannot be used.
        predicted: folder that holds a prediction -> its images, which are not among `images`.
        num_others: number of other files.
    """

    images: list[str] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    predicted: dict[str, list[str]] = field(default_factory=dict)
    num_others: int = 0


def walk(root: Path, *, follow_links: bool = False) -> WalkResult:
    """List all image files below `root`, masks included, and the videos.

    Hidden files and folders, feature caches, and the files in folders of `root` that hold predictions are ignored.

    Links to files below `root` add nothing. Links out of it are refused, or followed with `follow_links`. No file is
    listed twice and no folder is entered twice, so loops end.
    """
    files, refused = list_files(root, follow_links=follow_links)
    result = WalkResult(refused=refused)
    for name in track(files, "finding images"):
        if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES or looks_like_image(root / name):
            result.images.append(name)
        elif PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES or container_of(root / name) is not None:
            result.videos.append(name)
        else:
            result.num_others += 1
    names = [*result.images, *result.videos, *(name for name, _ in result.refused)]
    predicted = {name: place for place, inside in find_predictions(root, names).items() for name in inside}
    for name in result.images:
        if name in predicted:
            result.predicted.setdefault(predicted[name], []).append(name)
    result.images = [name for name in result.images if name not in predicted]
    result.videos = [name for name in result.videos if name not in predicted]
    result.refused = [(name, reason) for name, reason in result.refused if name not in predicted]
    return result


def list_files(root: Path, *, follow_links: bool = False) -> tuple[list[str], list[tuple[str, str]]]:
    """Return all files below `root`, sorted, by the rules of `walk`, and the refused paths with reasons."""
    walker = _Walker(root, follow_links)
    while walker.folders or walker.links:
        if walker.folders:
            walker.enter(walker.folders.pop())
        else:  # all real files are listed by now, under their own names
            walker.links.sort(reverse=True)
            walker.follow(walker.links.pop())
    files = sorted(walker.files)
    unclear = [name for name in files if not _is_text(name)]
    refused = [(name.encode("utf-8", "backslashreplace").decode(), "its name is not valid UTF-8") for name in unclear]
    return [name for name in files if _is_text(name)], walker.refused + refused


class _Walker:
    """State of a search: folders and links to visit, real paths that were seen, files and refused paths."""

    def __init__(self, root: Path, follow_links: bool) -> None:
        self.root, self.follow_links = root, follow_links
        self.top = os.path.realpath(root)
        self.seen_paths = {self.top}  # real paths
        self.folders, self.links, self.files = [""], list[str](), list[str]()
        self.refused: list[tuple[str, str]] = []

    def enter(self, folder: str) -> None:
        """List the entries of a folder."""
        try:
            entries = list(os.scandir(self.root / folder))
        except OSError as error:
            self.refused.append((folder, f"folder cannot be read: {error.strerror}"))
            return
        real = os.path.realpath(self.root / folder)
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if entry.name.endswith(FEATURES_SUFFIX) and entry.is_dir() and _is_feature_cache(entry.path):
                continue
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_symlink():
                self.links.append(name)
            elif entry.is_dir() or entry.is_file():
                self._add(name, os.path.join(real, entry.name), entry.is_dir())

    def follow(self, link: str) -> None:
        """Add the target of a link, or refuse the link."""
        target = os.path.realpath(self.root / link)
        if not os.path.exists(target):
            self.refused.append((link, "broken link"))
        elif not self.follow_links and os.path.commonpath([target, self.top]) != self.top:
            self.refused.append((link, "link out of the folder; follow such links with `follow_links=True`"))
        elif os.path.isdir(target) or os.path.isfile(target):
            self._add(link, target, os.path.isdir(target))

    def _add(self, name: str, real: str, folder: bool) -> None:
        if real not in self.seen_paths:
            self.seen_paths.add(real)
            (self.folders if folder else self.files).append(name)


def _is_feature_cache(folder: str) -> bool:
    """Return whether a folder is a cache that `dinomed features` or `index` wrote beside a folder of images: it holds
    nothing but folders that have a hash as name."""
    try:
        names = os.listdir(folder)
    except OSError:  # it is reported when it is entered
        return False
    return bool(names) and all(_CACHE_NAME.fullmatch(name) for name in names)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
