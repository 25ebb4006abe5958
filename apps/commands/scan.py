"""`dinomed scan`: the manifest of a folder of images."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from dinomed.apps.options import (
    DuplicateBits,
    DuplicateCosine,
    Fps,
    Json,
    MinLuminance,
    MinSharpness,
    MinTissue,
    Output,
    Overwrite,
    Quiet,
    SceneChange,
    Seed,
)
from dinomed.notice import RESEARCH_USE

if TYPE_CHECKING:
    from dinomed.datasets.manifest import Manifest
    from dinomed.datasets.scan.scan import ScanResult

_VIDEO_ROWS = (("videos", "videos"), ("frames left out", "dropped"))


def scan(
    folder: Annotated[Path, Argument(help="Folder of images; its subfolders are scanned too.", show_default=False)],
    out: Output,
    labels: Annotated[
        str | None,
        Option(
            "--labels", help="CSV with one row per image (a path, or a name in FOLDER), or `folders`: FOLDER/CLASS/."
        ),
    ] = None,
    image_column: Annotated[
        str, Option("--image-column", help="Column of the CSV with the name of the image.")
    ] = "image",
    label: Annotated[
        str | None, Option("--label", help="Column of the classes [`label`, if there]; or `none`.")
    ] = None,
    group: Annotated[
        str | None,
        Option(
            "--group",
            help="Column of patients, lesions or videos, which are never in two splits [`group`, if there, or else the "
            "patient of DICOM files]; or `none`.",
        ),
    ] = None,
    mask: Annotated[str | None, Option("--mask", help="Column of mask files [`mask`, if there]; or `none`.")] = None,
    split: Annotated[
        str | None, Option("--split", help="Column of train, val, test [`split`, if there]; `none` makes new splits.")
    ] = None,
    ratios: Annotated[
        str | None,
        Option(
            "--ratios",
            help="Shares of train,val,test for new splits [0.7,0.1,0.2 if there are labels or masks; else no splits].",
        ),
    ] = None,
    seed: Seed = 0,
    workers: Annotated[int | None, Option("--workers", help="Number of threads [one per processor].", min=1)] = None,
    follow_links: Annotated[
        bool, Option("--follow-links", help="Follow symbolic links that lead out of FOLDER.")
    ] = False,
    keep: Annotated[
        list[str] | None,
        Option("--keep", help="Another column of the CSV to keep, such as age; may be repeated. Others are left out."),
    ] = None,
    keep_ids: Annotated[
        bool,
        Option(
            "--keep-ids",
            help="Keep groups of the CSV as written, and allow --keep for columns that may identify a patient.",
        ),
    ] = False,
    id_key: Annotated[
        Path | None,
        Option(
            "--id-key",
            help="File with a secret key: groups become keyed hashes, the same in all scans with this key.",
            show_default=False,
        ),
    ] = None,
    allow_unreadable: Annotated[
        bool, Option("--allow-unreadable", help="Continue if more than half of the files cannot be read.")
    ] = False,
    label_maps: Annotated[
        bool, Option("--label-maps", help="Masks are label maps with one value for each class.")
    ] = False,
    coco: Annotated[
        Path | None,
        Option(
            "--coco",
            help="Annotation file in the COCO format, from which masks are drawn to NAME.coco/ beside the manifest.",
        ),
    ] = None,
    videos: Annotated[
        bool,
        Option("--videos", help="Take frames of videos as rows, read from the video when needed; nothing is written."),
    ] = False,
    fps: Fps = 1.0,
    scene_change: SceneChange = None,
    duplicate_bits: DuplicateBits = 24,
    duplicate_cosine: DuplicateCosine = 0.7,
    min_luminance: MinLuminance = 16.0,
    min_sharpness: MinSharpness = 4.0,
    min_tissue: MinTissue = 0.25,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Read every image of a folder and write a manifest: content hash, size, label, group, split and mask.

    Files that cannot be read are listed in OUT.unreadable.csv, with reasons. Splits are by group. Groups are replaced
    by numbers, and other columns of the CSV are kept only with --keep. With --videos, selected frames of videos and of
    DICOM files of several frames are rows, called VIDEO/frame_000120; each video is a group (of DICOM the
    patient), and OUT.dropped.csv lists the frames that are left out. For research use only, not for diagnosis.
    """
    arguments = locals()
    from dinomed.apps.api.data.datasets import dropped_list, scan_with_report, unreadable_list
    from dinomed.apps.ending import after_manifest, print_end
    from dinomed.apps.output import api_arguments, emit

    result = scan_with_report(**api_arguments(arguments | {"ratios": _parse_ratios(ratios), "keep": keep or ()}))
    listed = str(unreadable_list(out)) if result.unreadable else None
    report = {"manifest": str(out), "unreadable_list": listed, **summarize(result)}
    if result.videos:
        report |= {"videos": len(result.videos), "dropped": len(result.dropped), "dropped_list": str(dropped_list(out))}
    emit(report, as_json, None if as_json else _table(report))
    with_masks = result.masks["masks"] > result.masks["empty"]
    step = after_manifest(out, result.manifest, masks=with_masks, label_maps=label_maps)
    print_end([out, listed, report.get("dropped_list")], step, as_json=as_json)


def summarize(result: "ScanResult") -> dict[str, Any]:
    """Return the counts of a scan, as ``--json`` prints them."""
    from dinomed.datasets.splits import SPLITS
    from dinomed.log import translate_options

    manifest = result.manifest
    used_splits = [name for name in SPLITS if manifest.has("split") and name in manifest.column("split")]
    return {
        **_count(manifest),
        "splits": {name: _count(manifest.select(split=name)) for name in used_splits},
        "masks": result.masks,
        "duplicates": result.duplicates,
        "unreadable": len(result.unreadable),
        "formats": _tally(manifest.column("format")),
        "fingerprint": manifest.fingerprint,
        "warnings": list(map(translate_options, result.warnings)),
        "notes": [*map(translate_options, result.notes), RESEARCH_USE],
    }


def _count(manifest: "Manifest") -> dict[str, Any]:
    classes = _tally(manifest.column("label")) if manifest.has("label") else {}
    return {"images": len(manifest), "groups": len(set(manifest.units())), "classes": classes}


def _tally(values: list[Any]) -> dict[str, int]:
    return dict(sorted(Counter(value for value in values if value is not None).items()))


def _table(report: dict[str, Any]) -> Any:
    """Return a table with classes in rows and splits in columns, and further counts below."""
    from dinomed.apps.output import build_table

    splits, masks, duplicates = report["splits"], report["masks"], report["duplicates"]
    rows: list[tuple[Any, ...]] = [
        (f"class {name}", total, *(part["classes"].get(name, 0) for part in splits.values()))
        for name, total in report["classes"].items()
    ]
    blank = [""] * len(splits)
    rows += [
        ("images", report["images"], *(part["images"] for part in splits.values())),
        ("groups", report["groups"], *(part["groups"] for part in splits.values())),
        ("masks", masks["masks"], *blank),
    ]
    rows += [(f"  {kind}", masks[kind], *blank) for kind in ("empty", "full") if masks[kind]]
    rows += [("sets of identical images", len(duplicates), *blank)] if duplicates else []
    rows += [(name, report[key], *blank) for name, key in _VIDEO_ROWS if key in report]
    rows += [("unreadable", report["unreadable"], *blank)]
    return build_table(("", "all", *splits), rows, title=report["manifest"])


def _parse_ratios(text: str | None) -> list[float] | None:
    from dinomed.errors import UsageError

    if text is None:
        return None
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"--ratios {text}: expected three numbers, such as 0.7,0.1,0.2") from None
