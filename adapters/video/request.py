"""Recognition of videos as the input of a prediction, and the options that do not fit them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinomed.datasets.manifest import Manifest
from dinomed.datasets.scan.videos import VIDEO_KINDS, kind_of
from dinomed.datasets.scan.walk import walk
from dinomed.errors import UsageError


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
        return [path] if kind_of(path) == "video" else None
    if not path.is_dir():
        return None
    walked = walk(path)
    kinds = dict.fromkeys(walked.videos, "video")
    for name in walked.images:
        kinds[name] = kind_of(path / name)
        if kinds[name] == "other":
            if walked.videos:
                raise UsageError(
                    f"{path} holds videos and images ({walked.videos[0]} and {name}); give a video, or a folder of one "
                    "kind"
                )
            return None
    return [path / name for name in sorted(kinds) if kinds[name] in VIDEO_KINDS] if "video" in kinds.values() else None


def refuse_video_options(options: Mapping[str, Any], source: object) -> None:
    """Raise a `UsageError` if an option that is for videos only was given for images."""
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"`{name}` is for videos, and {source} is read as images; leave it out")


def refuse_image_options(options: Mapping[str, Any]) -> None:
    """Raise a `UsageError` if an option that is for images only was given, such as ``{"coco=True": True}``."""
    for text, value in options.items():
        if value is not None and value is not False:
            raise UsageError(f"`{text}` is for images, and the input is a video; leave it out")
