"""Volumes: slices of NIfTI files and DICOM series, with their manifest."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dinomed.apps.api.inputs import PathLike
from dinomed.errors import UsageError
from dinomed.io.pseudonyms import chosen_key

if TYPE_CHECKING:
    from dinomed.volumes.geometry import Axis
    from dinomed.volumes.write import SlicesResult


def slices(
    volumes: PathLike | Sequence[PathLike],
    out: PathLike,
    *,
    axis: "Axis" = "axial",
    window: str | Sequence[str] = (),
    neighbours: bool = False,
    masks: PathLike | None = None,
    keep_ids: bool = False,
    id_key: PathLike | None = None,
    mask_text: bool = False,
    overwrite: bool = False,
) -> "SlicesResult":
    """Write the slices of volumes as PNG files with a manifest, in which each patient is a group.

    Volumes are NIfTI (extra ``volumes``), MetaImage (.mha, .mhd) and NRRD (.nrrd, .nhdr) files, and DICOM series, whose
    slices are sorted by their positions. ``manifest.csv`` has the columns ``volume``, ``slice`` (number from 0) and the
    spacing in mm; ``volumes.json`` has the geometry of each volume. The command is ``dinomed slices``.

    Args:
        volumes: path of a volume or of a folder with volumes and DICOM series, or several of them.
        out: folder to write.
        axis: slices follow each other along this axis: ``axial``, ``coronal`` or ``sagittal``. Of an oblique volume the
            nearest axis of its voxels is taken; nothing is resampled.
        window: values of black and white: ``"LOW,HIGH"`` in modality units, or for CT a name: lung, mediastinum,
            soft_tissue, liver, bone, brain, stroke or subdural. Two or three windows become the channels. Without one
            they are the percentiles 0.5 and 99.5 of each volume.
        neighbours: the channels are the slice before, the slice and the slice after it (2.5D), by one window.
        masks: a label map (a volume), a DICOM segmentation, or a folder of them. A label map belongs to the volume of
            its name (or of its name and ``_0000``; of a series, of its folder), a DICOM segmentation to the series that
            it references. The slices are label maps in the column ``mask``. Masks are aligned by geometry and never
            resampled; one that does not align is refused, and one that has the name of several volumes.
        keep_ids: use names of files and folders and identifiers of patients and studies, instead of numbers.
        id_key: file with a secret key, as for `scan`: patients, studies and volumes are pseudonyms, instead of numbers.
        mask_text: fill burned-in text that the detector finds (`dinomed.burned_in_text`) in the written slices, in
            each channel. It misses text, and is no de-identification.
        overwrite: replace an earlier result in `out`.

    Returns:
        The folder, the manifest, the name of each volume, (path, reason) of what could not be used, and the
        counts of masked text.

    Raises:
        UsageError: there is no volume, a setting is wrong, or `out` is in use.
        DinomedError: no volume can be used, or nothing can be written.

    Example:
        >>> written = dinomed.slices("ct", out="slices", window="soft_tissue")
        >>> len(written.manifest), written.manifest.column("slice")[:2]
        (4, ['0', '1'])
    """
    from dinomed.burned_in_text.mask import TextMask
    from dinomed.volumes.find import find_volumes
    from dinomed.volumes.geometry import AXES
    from dinomed.volumes.masks import find_masks, without_masks
    from dinomed.volumes.windows import has_named, parse_windows
    from dinomed.volumes.write import SliceSettings, write_slices

    key = chosen_key(id_key, keep_ids)
    if axis not in AXES:
        raise UsageError(f"`axis={axis}`: give {', '.join(AXES[:-1])} or {AXES[-1]}")
    texts = [window] if isinstance(window, str) else list(window)
    windows = parse_windows(texts)
    if neighbours and len(windows) > 1:
        raise UsageError(f"`neighbours=True` makes channels of slices, and {len(windows)} windows too; give one window")
    search = find_volumes([Path(path) for path in ([volumes] if isinstance(volumes, str | Path) else volumes)])
    settings = SliceSettings(axis, tuple(windows), has_named(texts), neighbours)
    mask_files = None
    if masks is not None:
        mask_files = find_masks(Path(masks))
        search.sources = without_masks(search.sources, mask_files)
    text_mask = TextMask() if mask_text else None
    return write_slices(
        search, out, settings, masks=mask_files, keep_ids=keep_ids, key=key, text_mask=text_mask, overwrite=overwrite
    )
