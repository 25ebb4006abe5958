"""Search for videos, and their names as groups."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from dinomed.datasets.scan.groups import number_groups
from dinomed.datasets.scan.walk import walk
from dinomed.errors import UsageError
from dinomed.images.decode import UnreadableImage
from dinomed.images.dicom.elements import NotAnImage
from dinomed.images.dicom.patient import patient_groups, read_patients
from dinomed.io.pseudonyms import content_identifier, file_groups, file_pseudonyms, pseudonym
from dinomed.video.facts import VIDEO_SUFFIXES, is_video

VIDEO_KINDS = ("video", "damaged")
"""Results of `kind_of` that count as videos. A damaged DICOM file may be a video; so it is reported."""


def kind_of(path: Path) -> Literal["video", "damaged", "no image", "other"]:
    """Return whether a file is a video by its content or its suffix, a damaged DICOM file, one that is no image, or
    another file.
    """
    try:
        return "video" if is_video(path) or path.suffix.lower() in VIDEO_SUFFIXES else "other"
    except NotAnImage:
        return "no image"
    except UnreadableImage:
        return "damaged"


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
            inside = [path / name for name in names if kind_of(path / name) in VIDEO_KINDS]
        elif kind_of(path) not in VIDEO_KINDS:
            raise UsageError(
                f"{path} is not a video (MP4, MOV, AVI, Matroska, WebM, MPEG, or DICOM of several "
                "frames or with a video stream)"
            )
        for video in inside:
            videos.setdefault(video.resolve(), video)
    if not videos:
        raise UsageError(f"{', '.join(map(str, paths)) or 'an empty list'} holds no video; give a folder with videos")
    return list(videos.values())


def name_groups(
    videos: Sequence[Path], keep_ids: bool = False, reserved: Sequence[str] = (), key: bytes | None = None
) -> list[str]:
    """Return a group for each video: a number, or with `keep_ids` the name of its file without the suffix.

    Names that occur twice, or that are `reserved`, get a number behind them; upper and lower case count as the same.
    With a `key` the groups are pseudonyms of the contents of the videos, whatever their names.

    Raises:
        UsageError: with a `key`, two videos are the same, or one cannot be read.
    """
    if key is not None:
        return file_pseudonyms(map(content_identifier, videos), videos, key, "video")
    if not keep_ids:
        names = [video.name for video in videos]
        keys = [f"{name}\0{index:06}" for index, name in enumerate(names)]  # files of one name are different videos
        return [str(group) for group in number_groups(names, keys)]
    return file_groups([PurePosixPath(video.name).stem for video in videos], "video", reserved)


def name_patients(videos: Sequence[Path], key: bytes | None = None) -> list[str | None]:
    """Return the group of each video that is a DICOM file, its patient or else its study; None for the others.

    Groups are numbers, or with a `key` pseudonyms, which are those of `scan`.
    """
    patients = patient_groups(*read_patients(videos))
    if key is not None:
        return [None if patient is None else pseudonym(patient, key) for patient in patients]
    contents = [
        "" if patient is None else content_identifier(video) for video, patient in zip(videos, patients, strict=True)
    ]
    numbers = number_groups([video.name for video in videos], patients, contents)
    return [None if number is None else f"patient-{number}" for number in numbers]


def left_out_note(videos: Sequence[str]) -> list[str]:
    """Return the note of a scan about the videos that it left out; nothing without any."""
    if not videos:
        return []
    named = ", ".join(videos[:3]) + (", ..." if len(videos) > 3 else "")
    count = "1 video is" if len(videos) == 1 else f"{len(videos):,} videos are"
    return [f"{count} left out ({named}); `dinomed scan FOLDER --videos` takes their frames as rows"]
