"""`dinomed slices`: the slices of volumes as images with a manifest."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from dinomed.apps.options import Json, MaskText, Output, Overwrite, Quiet

_MAX_SHOWN = 50


def slices(
    volumes: Annotated[
        list[Path],
        Argument(help="NIfTI, MetaImage or NRRD files, or folders with them and DICOM series.", show_default=False),
    ],
    out: Output,
    axis: Annotated[str, Option("--axis", help="axial, coronal or sagittal.")] = "axial",
    window: Annotated[
        list[str] | None,
        Option(
            "--window",
            help="Values of black and white: LOW,HIGH, or for CT lung, mediastinum, soft_tissue, liver, bone, brain, "
            "stroke or subdural. Given two or three times, the windows are channels. Default: percentiles 0.5 and 99.5 "
            "of each volume.",
        ),
    ] = None,
    neighbours: Annotated[
        bool, Option("--neighbours", help="Channels are the slice before, the slice and the slice after it (2.5D).")
    ] = False,
    masks: Annotated[
        Path | None,
        Option(
            "--masks",
            help="Label maps and DICOM segmentations of the volumes: a folder or a file. They are matched by name or "
            "by the referenced series, and refused if their voxels are not those of the volume.",
        ),
    ] = None,
    keep_ids: Annotated[
        bool,
        Option("--keep-ids", help="Use names of files and folders and IDs of patients and studies, not numbers."),
    ] = False,
    id_key: Annotated[
        Path | None,
        Option(
            "--id-key",
            help="File with a secret key: patients, studies and volumes are keyed hashes, as in `dinomed scan`.",
            show_default=False,
        ),
    ] = None,
    mask_text: MaskText = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the slices of volumes as PNG files, with a manifest in which each patient is a group.

    Volumes are NIfTI, MetaImage and NRRD files and DICOM series. The slices of a series are sorted by their positions
    in the patient; a series with missing or doubled slices, several orientations or several patients is not used.
    manifest.csv has the columns volume, slice (number from 0), mask and the spacing in mm, and volumes.json the
    geometry of each volume. All other commands read the manifest. If a volume or a mask cannot be used, it is listed
    with its reason, the others are written, and the exit code is 1. After an interruption nothing half-written stays.
    For research use only.
    """
    arguments = locals()
    from dinomed.apps.api.data.slices import slices as write_slices
    from dinomed.apps.ending import after_manifest, print_end
    from dinomed.apps.output import api_arguments, build_table, emit
    from dinomed.errors import DinomedError
    from dinomed.notice import RESEARCH_USE
    from dinomed.volumes.write import MANIFEST_FILE

    written = write_slices(**api_arguments(arguments))
    report: dict[str, Any] = {
        "output": str(written.folder),
        "manifest": str(written.folder / MANIFEST_FILE),
        "volumes": written.volumes,
        "groups": len(set(written.manifest.groups())),
        "slices": len(written.manifest),
        "masks": sum(mask is not None for mask in written.manifest.column("mask")),
        "classes": {str(value): label for value, label in sorted(written.classes.items())},
        "masked_text": written.masked_text,
        "problems": [{"volume": volume, "reason": reason} for volume, reason in written.problems],
        "note": RESEARCH_USE,
    }
    rows: list[tuple[str, Any]] = [(name, report[name]) for name in ("groups", "slices", "masks")]
    rows = [("volumes", len(written.volumes)), *rows]
    rows += [(f"value {value} of the masks", label) for value, label in report["classes"].items()]
    if written.masked_text is not None:
        rows.append(("regions of masked text", written.masked_text["regions"]))
    rows += [(f"problem: {reason}", count) for reason, count in Counter(r for _, r in written.problems).items()]
    rows += list(written.volumes.items())[:_MAX_SHOWN]  # the order of the numbers is not that of the paths
    if len(written.volumes) > _MAX_SHOWN:
        rows.append(("further volumes: --json lists them", len(written.volumes) - _MAX_SHOWN))
    emit(report, as_json, build_table(("", "count, or name of the volume"), rows, title=str(report["manifest"])))
    step = after_manifest(report["manifest"], written.manifest, masks=report["masks"] > 0)
    print_end([report["manifest"]], step, as_json=as_json)
    if written.problems:
        first, reason = written.problems[0]
        raise DinomedError(
            f"{len(written.problems)} volumes or files are not used (the first: {first}: {reason}); the slices of the "
            f"other {len(written.volumes)} volumes are written"
        )
