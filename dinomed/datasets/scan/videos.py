"""Search for videos, and their names as groups."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from dinomed.datasets.scan.labels import number_groups
from dinomed.datasets.scan.predictions import find_predictions
from dinomed.datasets.scan.walk import walk
from dinomed.errors import UsageError
from dinomed.images.decode import UnreadableImage
from dinomed.images.dicom.elements import NotAnImage
from dinomed.video.facts import VIDEO_SUFFIXES, is_video


def is_video_file(path: Path) -> bool:
    """Return whether a file is a video by its content, or is called like one, or is a damaged DICOM file.

    A damaged DICOM file may be a video. It counts as one, so that it is reported.
    """
    try:
        return is_video(path) or path.suffix.lower() in VIDEO_SUFFIXES
    except NotAnImage:
        return False
    except UnreadableImage:
        return True


def find_videos(paths: Sequence[Path]) -> list[Path]:
    """Return the videos among files and below folders, each once, in the order given and sorted within a folder.

    Folders in a folder that hold predictions are left out.

    Raises:
        UsageError: a path does not exist, a file is no video, or there is no video.
    """
    videos: dict[Path, Path] = {}  # real path -> path
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path} does not exist; give a video, or a folder of videos")
        inside = [path]
        if path.is_dir():
            walked = walk(path)
            names = sorted([*walked.images, *walked.videos])
            written = {name for files in find_predictions(path, names).values() for name in files}
            inside = [path / name for name in names if name not in written and is_video_file(path / name)]
        elif not is_video_file(path):
            raise UsageError(f"{path} is not a video (MP4, MOV, AVI, Matroska, WebM, MPEG, or DICOM of several frames)")
        for video in inside:
            videos.setdefault(video.resolve(), video)
    if not videos:
        raise UsageError(f"{', '.join(map(str, paths))} holds no video; give a folder with videos")
    return list(videos.values())


def name_groups(videos: Sequence[Path], keep_ids: bool = False, reserved: Sequence[str] = ()) -> list[str]:
    """Return a group for each video: a number, or with `keep_ids` the name of its file without the suffix.

    Names that occur twice, or that are `reserved`, get a number behind them; upper and lower case count as the same.
    """
    if not keep_ids:
        names = [video.name for video in videos]
        keys = [f"{name}\0{index:06}" for index, name in enumerate(names)]  # files of one name are different videos
        return [str(group) for group in number_groups(names, keys)]
    groups: list[str] = []
    taken = {name.casefold() for name in reserved}
    for video in videos:
        stem = PurePosixPath(video.name).stem.lstrip(".") or "video"
        name, count = stem, 1
        while name.casefold() in taken:
            count += 1
            name = f"{stem}_{count}"
        groups.append(name)
        taken.add(name.casefold())
    return groups


def left_out_note(videos: Sequence[str]) -> list[str]:
    """Return the note of a scan about the videos that it left out; nothing without any."""
    if not videos:
        return []
    named = ", ".join(videos[:3]) + (", ..." if len(videos) > 3 else "")
    count = "1 video is" if len(videos) == 1 else f"{len(videos):,} videos are"
    return [f"{count} left out ({named}); `dinomed frames FOLDER -o DIR` writes frames, which can be scanned"]
