"""Search for volumes: NIfTI, MetaImage and NRRD files and DICOM series among files and below folders."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dinomed.datasets.scan.walk import list_files
from dinomed.errors import DinomedError, UsageError
from dinomed.images.decode import UnreadableImage
from dinomed.images.dicom.elements import is_dicom
from dinomed.isolation.pool import shared_pool
from dinomed.progress import bar
from dinomed.volumes.completeness import completeness_hint
from dinomed.volumes.geometry import Grid
from dinomed.volumes.itk import SUFFIXES, is_volume_file, voxel_file
from dinomed.volumes.series import DicomFrame, sort_frames

_BATCH = 64


@dataclass(frozen=True, eq=False)
class VolumeSource:
    """A volume that was found and not yet read.

    Attributes:
        path: the file of the volume, or the first file of the series in the order of names.
        name: name of the file without suffix, or of the folder of the series; it may identify the patient.
        frames: of a series, its frames in the order of their positions.
        grid: of a series, its geometry.
        note: of a series, a line if its headers tell that slices may be missing.
    """

    path: Path
    name: str
    frames: tuple[DicomFrame, ...] = ()
    grid: Grid | None = None
    note: str | None = None

    def identifier(self, element: str) -> str | None:
        """Return an identifier of a series, such as ``PatientID``; None for other volumes and where it is unknown."""
        return self.frames[0].ids[element] if self.frames else None


@dataclass
class VolumeSearch:
    """Volumes, (path, reason) of what cannot be used, and the numbers of files that were left out by kind."""

    sources: list[VolumeSource] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def find_volumes(paths: Sequence[Path]) -> VolumeSearch:
    """Return the volumes among files and below folders, each once. Values are not read.

    Raises:
        UsageError: a path does not exist, a file is neither a volume nor DICOM, or there is no volume and no problem.
    """
    search = VolumeSearch()
    files: dict[Path, Path] = {}  # real path -> path
    for path in paths:
        if not path.exists():
            raise UsageError(
                f"{path} does not exist; give a volume ({', '.join(SUFFIXES)}), a DICOM series, or a folder of them"
            )
        inside = [path]
        if path.is_dir():
            names, refused = list_files(path)
            search.problems += [(str(path / name), reason) for name, reason in refused]
            inside = [path / name for name in names]
        elif not is_volume_file(path) and not is_dicom(path):
            raise UsageError(f"{path} is neither a volume ({', '.join(SUFFIXES)}) nor DICOM")
        for file in inside:
            files.setdefault(file.resolve(), file)
    dicom, others, data = list[Path](), list[Path](), set[Path]()  # data files of headers are no files of their own
    for file in files.values():
        if is_volume_file(file):
            search.sources.append(VolumeSource(file, file_stem(file)))
            data.add(voxel_file(file))
        elif is_dicom(file):
            dicom.append(file)
        elif file.suffix.lower() == ".dcm" or file.stat().st_size == 0:  # as an interrupted copy leaves it
            search.problems.append((str(file), "an empty or damaged file, which may be a slice of a series"))
        else:
            others.append(file)
    search.left_out["other files"] += sum(file.resolve() not in data for file in others)
    _add_series(dicom, search)
    search.sources.sort(key=lambda source: str(source.path))
    if not search.sources and not search.problems:
        raise UsageError(
            f"{', '.join(map(str, paths))} holds no volume; give NIfTI, MetaImage or NRRD files, or DICOM series"
        )
    return search


def _add_series(files: Sequence[Path], search: VolumeSearch) -> None:
    """Add the series of DICOM files, or the reasons why they cannot be used."""
    series: dict[str, list[DicomFrame]] = defaultdict(list)
    with bar("reading DICOM headers", len(files)) as progress:
        for start in range(0, len(files), _BATCH):
            batch = [str(file.absolute()) for file in files[start : start + _BATCH]]
            answers = shared_pool().run("dinomed.volumes.series:read_places", [[path] for path in batch])
            for path, answer in zip(batch, answers, strict=True):
                _add_file(path, answer, series, search)
            progress.advance(len(batch))
    for frames in series.values():
        first = Path(min(frame.path for frame in frames))
        name = first.parent.name or "series"
        try:
            ordered, grid = sort_frames(frames)
        except DinomedError as error:
            search.problems.append((str(first), str(error)))
            continue
        note = completeness_hint([frame.counts for frame in ordered], len({frame.path for frame in ordered}))
        search.sources.append(VolumeSource(first, name, tuple(ordered), grid, note))


def _add_file(path: str, answer: object, series: dict[str, list[DicomFrame]], search: VolumeSearch) -> None:
    """Add the frames of a file to their series."""
    if isinstance(answer, UnreadableImage):
        if any(word in answer.reason for word in ("segmentation", "without pixels")):
            search.left_out[answer.reason] += 1
        else:
            search.problems.append((path, answer.reason))
        return
    facts = answer[0]  # type: ignore[index]
    uid = facts["ids"]["SeriesInstanceUID"]
    if uid is None:
        search.problems.append((path, "a DICOM without a Series Instance UID"))
        return
    size, ids = tuple(facts["size"]), facts["ids"]
    for number, (place, counts) in enumerate(zip(facts["places"], facts["counts"], strict=True)):
        position, orientation, spacing = map(tuple, place)
        series[uid].append(DicomFrame(path, number, size, position, orientation, spacing, ids, counts))


def file_stem(file: Path) -> str:
    """Return the name of the file of a volume without its suffix."""
    name = file.name
    suffix = next(suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if name.lower().endswith(suffix))
    return name[: -len(suffix)] or "volume"
