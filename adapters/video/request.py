"""Recognition of videos as the input of a prediction, and the options that do not fit them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from dinomed.datasets.manifest import Manifest
from dinomed.datasets.scan.predictions import find_predictions
from dinomed.datasets.scan.videos import find_videos
from dinomed.datasets.scan.walk import walk
from dinomed.errors import UsageError
from dinomed.images.decode import UnreadableImage
from dinomed.video.facts import VIDEO_SUFFIXES, is_video


def find_input_videos(source: Manifest | str | Path) -> list[Path] | None:
    """Return the videos of the input of a prediction: a video, or a folder of videos. None for images or a manifest.

    A folder with DICOM files only is one of videos if all of them that can be read have several frames.

    Raises:
        UsageError: the folder holds videos and images.
    """
    if isinstance(source, Manifest):
        return None
    path = Path(source)
    if path.is_file():
        return find_videos([path]) if _kind(path) == "video" else None
    if not path.is_dir():
        return None
    walked = walk(path)
    names = sorted([*walked.images, *walked.videos])
    written = {name for files in find_predictions(path, names).values() for name in files}
    images = [name for name in walked.images if name not in written]
    videos = [name for name in walked.videos if name not in written]
    has_video = bool(videos)
    for name in images:
        kind = _kind(path / name)
        has_video |= kind == "video"
        if kind == "image":
            if videos:
                raise UsageError(
                    f"{path} holds videos and images ({videos[0]} and {name}); give a video, or a folder of one kind"
                )
            return None
    return find_videos([path]) if has_video else None


def refuse_image_options(options: Mapping[str, Any]) -> None:
    """Raise a `UsageError` if an option that is for images only was given, such as ``{"coco=True": True}``."""
    for text, value in options.items():
        if value is not None and value is not False:
            raise UsageError(f"`{text}` is for images, and the input is a video; leave it out")


def _kind(path: Path) -> Literal["video", "image", "other"]:
    """Return what a file is. A damaged DICOM file, which may be a video or an image, is other."""
    try:
        return "video" if is_video(path) or path.suffix.lower() in VIDEO_SUFFIXES else "image"
    except UnreadableImage:
        return "other"
