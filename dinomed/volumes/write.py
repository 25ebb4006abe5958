"""Writing of the slices of volumes: PNG files, their manifest, and the geometry of the volumes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.burned_in_text.mask import TextMask
from dinomed.datasets.manifest import Manifest, build_manifest, read_manifest, write_manifest
from dinomed.datasets.scan.groups import number_groups
from dinomed.datasets.written import WrittenPictures, earlier_pictures, encode_png
from dinomed.errors import DinomedError
from dinomed.images.decode import UnreadableImage
from dinomed.images.dicom.patient import PATIENT, STUDY, known_patients
from dinomed.io.files import write_json
from dinomed.io.output_folder import open_output_folder
from dinomed.io.pseudonyms import content_identifier, file_groups, file_pseudonyms, pseudonym
from dinomed.io.publish import READY_FILE, publish
from dinomed.log import logger
from dinomed.progress import bar
from dinomed.volumes.find import VolumeSearch, VolumeSource
from dinomed.volumes.geometry import Axis, Grid, slices_of
from dinomed.volumes.itk import volume_identifier
from dinomed.volumes.masks import MaskFiles, read_mask_volume
from dinomed.volumes.read import read_volume
from dinomed.volumes.records import VOLUMES_FILE, record_of, slice_name
from dinomed.volumes.windows import Window, apply_window, measured_window

MANIFEST_FILE = "manifest.csv"
_MASKS = "masks"
_RESERVED = (MANIFEST_FILE, VOLUMES_FILE, READY_FILE, _MASKS)


@dataclass(frozen=True)
class SliceSettings:
    """How slices become pictures.

    Attributes:
        axis: axis of the patient along which slices follow each other.
        windows: values of black and white of each channel; empty for the percentiles of each volume.
        in_hounsfield_units: whether a window is a named one, for CT only.
        neighbours: the channels are the slice before, the slice and the slice after it.
    """

    axis: Axis = "axial"
    windows: tuple[Window, ...] = ()
    in_hounsfield_units: bool = False
    neighbours: bool = False


@dataclass
class SlicesResult:
    """The result of `write_slices`.

    Attributes:
        folder: output folder.
        manifest: the slices.
        volumes: path of each volume (of a series, of its first file) -> its name in the manifest.
        problems: (path, reason) of what could not be used.
        classes: value in the masks of DICOM segmentations -> label of the segments that have it.
        masked_text: counts of masked text (`TextMask.record`); None if it was not masked.
    """

    folder: Path
    manifest: Manifest
    volumes: dict[str, str]
    problems: list[tuple[str, str]]
    classes: dict[int, str] = field(default_factory=dict)
    masked_text: dict[str, int] | None = None


@dataclass
class _Tables(WrittenPictures):
    """The slices, and the records and names of their volumes."""

    records: dict[str, Any] = field(default_factory=dict)
    volumes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Names:
    """Names of a volume in the output: its folder, its group and its study."""

    volume: str
    group: str
    study: str | None


def write_slices(
    search: VolumeSearch,
    out: str | Path,
    settings: SliceSettings,
    *,
    masks: MaskFiles | None = None,
    keep_ids: bool = False,
    key: bytes | None = None,
    text_mask: TextMask | None = None,
    overwrite: bool = False,
) -> SlicesResult:
    """Write the slices of volumes as VOLUME/NUMBER.png, with their manifest and the geometry of the volumes.

    The slices of masks are label maps, masks/VOLUME/NUMBER.png. A volume whose mask cannot be used has none.

    The folder is filled at the end: after an interruption it holds no half of a result.

    Args:
        search: the volumes, and the problems of the search.
        out: output folder.
        settings: axis, windows and channels.
        masks: files of masks.
        keep_ids: use names of files and identifiers of patients, instead of numbers.
        key: secret key; volumes, patients and studies are pseudonyms (`dinomed.io.pseudonyms`), instead of numbers.
        text_mask: masks text in the slices, in each channel; the column `masked_text` has the number of regions.
        overwrite: replace an earlier result in `out`.

    Raises:
        UsageError: `out` is in use, or with a `key` two volumes are the same.
        DinomedError: no volume can be read, or nothing can be written.
    """
    out, tables = Path(out), _Tables(text_mask, separate=True)
    with open_output_folder(out, marker=VOLUMES_FILE, overwrite=overwrite) as stage:
        earlier = _earlier_files(out)
        for path, reason in search.problems:
            tables.report(path, reason)
        for reason, count in search.left_out.items():
            logger.info(f"files that are left out: {count} ({reason})")
        if masks is not None:
            masks.match_segments(search.sources)
        for source, names in zip(search.sources, _name(search.sources, keep_ids, key), strict=True):
            try:
                _write_volume(source, names, stage, settings, tables, _find_masks(source, masks, search, tables))
            except UnreadableImage as error:
                tables.report(source.path, error.reason)
            except DinomedError as error:
                tables.report(source.path, str(error))
        for path, reason in [] if masks is None else masks.problems + masks.unused():
            tables.report(path, reason)
        if not tables.columns:
            path, reason = tables.problems[0]
            raise DinomedError(f"none of {len(tables.problems)} volumes can be used (the first: {path}: {reason})")
        write_manifest(build_manifest(tables.columns, stage), stage / MANIFEST_FILE)
        write_json(stage / VOLUMES_FILE, {"axis": settings.axis, "volumes": tables.records})
        masks_written = [name for name in tables.columns["mask"] if name is not None]
        written = [*tables.columns["image"], *masks_written, MANIFEST_FILE, VOLUMES_FILE]
        publish(stage, out, written, remove=[VOLUMES_FILE, MANIFEST_FILE, *earlier])
    classes = {} if masks is None else masks.classes.names
    counts = None if text_mask is None else text_mask.record()
    return SlicesResult(out, read_manifest(out / MANIFEST_FILE), tables.volumes, tables.problems, classes, counts)


def _name(sources: Sequence[VolumeSource], keep_ids: bool, key: bytes | None) -> list[_Names]:
    """Return names of volumes; the group is the patient, else the study, else the volume."""
    patients, studies = ([source.identifier(name) for source in sources] for name in (PATIENT, STUDY))
    patients = known_patients(patients, studies)
    paths = [source.path.name for source in sources]
    if key is not None:
        identifiers = (source.identifier("SeriesInstanceUID") or volume_identifier(source.path) for source in sources)
        volumes = file_pseudonyms(identifiers, [source.path for source in sources], key, "volume")
        groups, numbers = ([name and pseudonym(name, key) for name in names] for names in (patients, studies))
    elif keep_ids:
        volumes = file_groups([source.name for source in sources], "volume", _RESERVED)
        groups, numbers = patients, studies
    else:
        keys = [f"{name}\0{index:06}" for index, name in enumerate(paths)]
        volumes = [str(number) for number in number_groups(paths, keys)]
        contents = [content_identifier(source.path) if source.frames else "" for source in sources]
        groups = [number and f"patient-{number}" for number in number_groups(paths, patients, contents)]
        numbers = [number and f"study-{number}" for number in number_groups(paths, studies, contents)]
    names = zip(volumes, groups, numbers, strict=True)
    return [_Names(volume, group or study or volume, study) for volume, group, study in names]


def _write_volume(
    source: VolumeSource,
    names: _Names,
    stage: Path,
    settings: SliceSettings,
    tables: _Tables,
    masks: Sequence[tuple[Path, dict[int, int] | None]],
) -> None:
    """Write the slices of a volume and of its mask, and add their rows and the record of the volume."""
    modality = source.identifier("Modality")
    if settings.in_hounsfield_units and modality not in (None, "CT"):
        raise DinomedError(f"its modality is {modality}, and named windows are in Hounsfield units; give LOW,HIGH")
    with bar(f"reading {names.volume}", len(source.frames) or None) as progress:
        volume = read_volume(source, progress.advance)
    windows = settings.windows or (measured_window(volume.values),)
    slices = slices_of(volume.values, volume.grid, settings.axis)
    labels = _read_labels(masks, volume.grid, settings.axis, tables)
    spacing = [f"{value:.6g}" for value in volume.grid.picture_spacing_mm(settings.axis)]
    (stage / names.volume).mkdir()
    with bar(f"slices of {names.volume}", len(slices)) as progress:
        for number in range(len(slices)):
            name = slice_name(names.volume, number)
            if labels is not None:
                (stage / _MASKS / name).parent.mkdir(parents=True, exist_ok=True)
                (stage / _MASKS / name).write_bytes(encode_png(labels[number]))
            cells = {
                "group": names.group, "mask": None if labels is None else f"{_MASKS}/{name}", "volume": names.volume,
                "slice": str(number), "spacing_slices_mm": spacing[0], "spacing_rows_mm": spacing[1],
                "spacing_columns_mm": spacing[2], "study": names.study, "modality": modality,
            }  # fmt: skip
            tables.write(stage, name, draw_slice(slices, number, windows, settings.neighbours), cells)
            progress.advance()
    tables.records[names.volume] = record_of(volume)
    tables.volumes[str(source.path)] = names.volume


def _find_masks(
    source: VolumeSource, masks: MaskFiles | None, search: VolumeSearch, tables: _Tables
) -> list[tuple[Path, dict[int, int] | None]]:
    """Return the masks of a volume with the values of their segments; none if several are reported."""
    if masks is None:
        return []
    try:
        paths = masks.find(source, search.sources)
    except DinomedError as error:
        tables.report(source.path, str(error))
        return []
    if not paths:
        logger.info(f"{source.path}: no mask")
    return [(path, masks.values.get(path)) for path in paths]


def _read_labels(
    masks: Sequence[tuple[Path, dict[int, int] | None]], grid: Grid, axis: Axis, tables: _Tables
) -> np.ndarray | None:
    """Return the slices of the masks, uint8 or uint16 (slices, H, W); None without one, or if one is reported."""
    if not masks:
        return None
    values = np.zeros(grid.shape, np.uint16)
    for path, classes in masks:
        try:
            labels = read_mask_volume(path, grid, classes)
        except UnreadableImage as error:
            tables.report(path, error.reason)
            return None
        if ((values > 0) & (labels > 0)).any():
            others = ", ".join(str(other) for other, _ in masks if other != path)
            tables.report(path, f"it overlaps another mask of its volume ({others}); a label map has one class a voxel")
            return None
        values = np.maximum(values, labels)
    return slices_of(values if values.max(initial=0) > 255 else values.astype(np.uint8), grid, axis)


def draw_slice(slices: np.ndarray, number: int, windows: Sequence[Window], neighbours: bool) -> np.ndarray:
    """Return a slice as a picture, uint8: (H, W) of one window, or (H, W, 3).

    Two windows are three channels, of which the third repeats the second. At the ends of the volume the missing
    neighbour is the slice itself.

    Args:
        slices: (slices, H, W).
        number: number of the slice, from 0.
        windows: one to three windows.
        neighbours: the channels are the slice before, the slice, and the slice after it, by the first window.
    """
    if neighbours:
        places = np.clip([number - 1, number, number + 1], 0, len(slices) - 1)
        return np.stack([apply_window(slices[place], windows[0]) for place in places], axis=-1)
    channels = [apply_window(slices[number], window) for window in windows]
    if len(channels) == 1:
        return channels[0]
    return np.stack([channels[min(index, len(channels) - 1)] for index in range(3)], axis=-1)


def _earlier_files(out: Path) -> list[str]:
    """Return the slices and masks of an earlier result in the output folder; raise as `earlier_pictures`."""
    tables = (MANIFEST_FILE, VOLUMES_FILE)
    slices = earlier_pictures(out, tables, "volume", "slice", 5, "spacing_slices_mm", "slices")
    return slices + [f"{_MASKS}/{name}" for name in slices]
