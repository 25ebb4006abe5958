"""Masks drawn from COCO annotations, in the form that ``train segment`` reads, and their columns in a manifest.

- one category: binary masks of 0 and 255;
- several that never overlap: label maps, with one value for each category;
- several that overlap: a binary mask, in a column of its own, for each category.

Objects of one category are joined; crowd regions belong to their category. An image of the file without objects gets an
empty mask, and an image that the file does not list gets none.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml

from dinomed.datasets.coco.annotations import CocoAnnotations, Id
from dinomed.datasets.coco.rle import draw_outlines
from dinomed.datasets.manifest import Manifest, build_manifest, relative_root
from dinomed.datasets.rebase import rebase
from dinomed.datasets.scan.file_search import FileSearch
from dinomed.datasets.scan.scan import ScanResult
from dinomed.errors import UsageError
from dinomed.images.labelmap import write_label_map
from dinomed.images.read import write_mask
from dinomed.io.files import file_names, write_text
from dinomed.io.publish import list_ready
from dinomed.progress import track

SETTINGS_FILE = "segment.yaml"
MASK, MASK_FOLDER, BACKGROUND = "mask", "masks", "background"
_MAX_VALUE = 2**16 - 1


class _OverlapError(Exception):
    """Objects of two categories share a pixel."""


@dataclass(frozen=True)
class MaskLayout:
    """The form of the masks.

    Attributes:
        kind: binary, multiclass or multilabel, as the setting `kind` of a segmenter.
        classes: name of each category to its value or its column, as the setting `classes`.
        columns: the columns of the manifest that name the masks.
    """

    kind: str
    classes: dict[str, int | str]
    columns: tuple[str, ...]


def add_masks(
    scanned: ScanResult,
    annotations: CocoAnnotations,
    out: Path,
    stage: Path,
    *,
    allow_missing: bool = False,
) -> ScanResult:
    """Draw the masks of a scanned folder into a stage, and add their columns to the manifest.

    The root of the new manifest contains the images and the masks. `list_masks` is called next.

    Args:
        scanned: scan of the images, without masks.
        annotations: of these images.
        out: folder of the masks, and of `segment.yaml` with the classes, for ``train segment --config``.
        stage: of `out` (`dinomed.io.output_folder.open_output_folder`, whose marker is `SETTINGS_FILE`).
        allow_missing: list images that the folder lacks as unreadable, instead of an error.

    Raises:
        UsageError: the file names images that the folder lacks or that have another size, no image at all, or no
            object.
    """
    manifest = scanned.manifest
    row_of, missing = _match(manifest, annotations)
    if missing and not allow_missing:
        raise UsageError(
            f"{annotations.path} names {len(missing)} images that {manifest.root} does not hold, or that cannot be "
            f"read; the first is {missing[0][0]!r} ({missing[0][1]}); give the folder of all, or leave them out with "
            "`allow_unreadable=True`"
        )
    if not row_of:
        raise UsageError(f"{annotations.path} names no image of {manifest.root}")
    names = _used_categories(annotations, row_of)
    layout, shares, columns = _draw_all(manifest, annotations, row_of, names, stage)
    root = _common_folder(manifest.root, out)
    inside = relative_root(out, root)
    moved = rebase(manifest, root)
    values = moved.table.to_pydict() | {
        column: [None if name is None else f"{inside}/{name}" for name in files] for column, files in columns.items()
    }
    rebased = replace(build_manifest(values, root), file_times=moved.file_times)
    notes = [
        f"masks of {annotations.path.name} are in {out}: {layout.kind}, {', '.join(layout.classes)}; train on them "
        f"with dinomed train segment --config {out / SETTINGS_FILE}"
    ]
    if len(row_of) < len(manifest):
        notes.append(f"{len(manifest) - len(row_of)} images are not in {annotations.path.name} and get no mask")
    unused = [name for number, name in annotations.categories.items() if number not in names]
    if unused:
        notes.append(f"categories without an object here, left out: {', '.join(unused)}")
    warnings = (
        [f"{annotations.clipped} polygons of {annotations.path.name} reach out of their images and are cut at the edge"]
        if annotations.clipped
        else []
    )
    return replace(
        scanned,
        manifest=rebased,
        unreadable=[*scanned.unreadable, *missing],
        masks={"masks": len(shares), "empty": shares.count(0.0), "full": shares.count(1.0)},
        warnings=[*scanned.warnings, *warnings],
        notes=[*scanned.notes, *notes],
    )


def _match(manifest: Manifest, annotations: CocoAnnotations) -> tuple[dict[Id, int], list[tuple[str, str]]]:
    """Return the row of each image of the file, and (name, reason) of those that the folder lacks."""
    images = manifest.column("image")
    rows = {image: row for row, image in enumerate(images)}
    search = FileSearch(manifest.root, annotations.path.parent, images, images)
    row_of: dict[Id, int] = {}
    taken: dict[int, str] = {}
    missing: list[tuple[str, str]] = []
    widths, heights = manifest.column("width"), manifest.column("height")
    for number, image in annotations.images.items():
        path, reason = search.find(image.name)
        if path is None:
            missing.append((image.name, f"in {annotations.path.name}, but {reason}"))
            continue
        row = rows[path]
        if row in taken:
            raise UsageError(
                f"{annotations.path}: {taken[row]!r} and {image.name!r} are both the file {path}; keep one"
            )
        if (image.width, image.height) != (widths[row], heights[row]):
            raise UsageError(
                f"{annotations.path}: image {image.name!r} has {image.width} x {image.height} px, the file "
                f"{widths[row]} x {heights[row]} (upright); annotate the file as it is, or give the right one"
            )
        row_of[number], taken[row] = row, image.name
    return row_of, missing


def _used_categories(annotations: CocoAnnotations, row_of: Mapping[Id, int]) -> dict[Id, str]:
    """Return the categories that have an object in one of the images, without one that is called background."""
    used = {category for image in row_of for category, _ in annotations.objects.get(image, ())}
    names = {
        number: name for number, name in annotations.categories.items() if number in used and name.lower() != BACKGROUND
    }
    if not names:
        raise UsageError(f"{annotations.path} has no object in the images of the folder; there is nothing to learn")
    return names


def _draw_all(
    manifest: Manifest,
    annotations: CocoAnnotations,
    row_of: Mapping[Id, int],
    names: Mapping[Id, str],
    stage: Path,
) -> tuple[MaskLayout, list[float], dict[str, list[str | None]]]:
    """Draw the masks into the stage: their layout, the share of each that is covered, and their paths by column."""
    files = file_names(manifest.column("image"))
    layout = _layout(names, overlap=False)
    try:
        shares = _draw(annotations, row_of, names, layout, files, stage)
    except _OverlapError:
        shutil.rmtree(stage / MASK_FOLDER)
        layout = _layout(names, overlap=True)
        shares = _draw(annotations, row_of, names, layout, files, stage)
    settings = yaml.safe_dump({"kind": layout.kind, "classes": layout.classes}, allow_unicode=True, sort_keys=False)
    header = "# Classes of the masks that `dinomed scan --coco` drew, for `dinomed train segment --config`.\n"
    write_text(stage / SETTINGS_FILE, header + settings)
    used = set(row_of.values())
    return layout, shares, {
        column: [f"{folder}/{file}" if row in used else None for row, file in enumerate(files)]
        for column, folder in zip(layout.columns, _folders(layout), strict=True)
    }  # fmt: skip


def list_masks(stage: Path, out: Path) -> None:
    """List the masks of `add_masks` for `dinomed.io.publish.move_ready`, which replaces those of an earlier scan.

    No manifest of an earlier scan may exist now: the call after a kill would move the masks beside it.
    """
    new, earlier = (
        sorted(path.relative_to(place).as_posix() for path in (place / MASK_FOLDER).rglob("*") if path.is_file())
        for place in (stage, out)
    )
    list_ready(stage, out, [*new, SETTINGS_FILE], remove=[SETTINGS_FILE, *sorted(set(earlier) - set(new))])


def _layout(names: Mapping[Id, str], *, overlap: bool) -> MaskLayout:
    if len(names) == 1:
        return MaskLayout("binary", {next(iter(names.values())): 1}, (MASK,))
    if overlap:
        columns = {name: f"{MASK} {name}" for name in names.values()}
        return MaskLayout("multilabel", dict(columns), tuple(columns.values()))
    valid_ids = all(isinstance(number, int) and 0 < number <= _MAX_VALUE for number in names)
    values = {name: int(number) if valid_ids else place for place, (number, name) in enumerate(names.items(), start=1)}
    return MaskLayout("multiclass", dict(values), (MASK,))


def _folders(layout: MaskLayout) -> list[str]:
    """Return the folder of the masks of each column."""
    several = len(layout.columns) > 1
    return [f"{MASK_FOLDER}/{i}" if several else MASK_FOLDER for i in range(1, len(layout.columns) + 1)]


def _draw(
    annotations: CocoAnnotations,
    row_of: Mapping[Id, int],
    names: Mapping[Id, str],
    layout: MaskLayout,
    files: Sequence[str],
    stage: Path,
) -> list[float]:
    """Write the masks of all images into `stage`; return the share of each image that any category covers."""
    shares = []
    for number, row in track(row_of.items(), "drawing masks", len(row_of)):
        image = annotations.images[number]
        outlines: dict[Id, list] = {category: [] for category in names}
        for category, outline in annotations.objects.get(number, ()):
            if category in names:
                outlines[category].append(outline)
        size = (image.height, image.width)
        planes = {
            names[category]: draw_outlines(parts, *size) if parts else np.zeros(size, bool)
            for category, parts in outlines.items()
        }
        paths = [stage / folder / files[row] for folder in _folders(layout)]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        if layout.kind == "multiclass":
            labels = np.zeros(size, np.int64)
            for name, plane in planes.items():
                if labels[plane].any():
                    raise _OverlapError
                labels[plane] = layout.classes[name]
            write_label_map(paths[0], labels)
        else:
            for path, plane in zip(paths, planes.values(), strict=True):
                write_mask(path, plane)
        shares.append(float(np.any(list(planes.values()), axis=0).mean()))
    return shares


def _common_folder(images: Path, masks: Path) -> Path:
    """Return the folder that contains the images and the masks."""
    try:
        return Path(os.path.commonpath([images.resolve(), masks.resolve()]))
    except ValueError:  # different drives (Windows)
        raise UsageError(f"{masks} is on another drive than {images}; write the manifest on the drive of it") from None
