"""`dinomed predict`: masks, depth maps or probabilities of new images and videos."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from dinomed.apps.options import Device, Json, MaskText, Output, Overwrite, Quiet

_ROWS = {
    "output": "folder",
    "table": "table of predictions",
    "images": "predicted images",
    "groups": "predicted groups",
    "kept": "of these, predicted by an earlier, interrupted call",
    "unreadable": "images without a prediction",
    "volumes": "table of volumes",
    "sheet": "contact sheet",
    "abstained": "predictions marked as abstained",
    "abstention": "rule of abstention",
}
"""Entries of the report in words."""


def predict(
    adapter: Annotated[Path, Argument(help="Adapter folder, as `dinomed train` writes it.")],
    images: Annotated[Path, Argument(help="Folder of images or of videos, one image or video, or a manifest.")],
    out: Output,
    backbone: Annotated[str | None, Option("--backbone", "-b", help="Path of its backbone, if it was moved.")] = None,
    unit: Annotated[
        str | None,
        Option("--unit", help="For a classifier and a manifest with groups: group, one row for all images of a group."),
    ] = None,
    abstain: Annotated[
        float | None,
        Option(
            "--abstain",
            help="Mark the least confident predictions as abstained: the threshold that does so with this share of "
            "the validation images, such as 0.2.",
        ),
    ] = None,
    max_risk: Annotated[
        float | None,
        Option(
            "--max-risk",
            help="The same, with the threshold that keeps this mean loss on the validation images: share of wrong "
            "classes, or 1 - Dice.",
        ),
    ] = None,
    sheet: Annotated[
        bool, Option("--sheet/--no-sheet", help="Write index.html: thumbnails with outlines, sorted by buttons.")
    ] = True,
    names: Annotated[
        bool, Option("--names", help="Show paths of images in index.html; call folders of videos like their files.")
    ] = False,
    coco: Annotated[
        bool, Option("--coco", help="For a segmenter: write coco_results.json and coco_images.json too.")
    ] = False,
    coco_ids: Annotated[
        Path | None,
        Option("--coco-ids", help="COCO file of the images, whose ids the results have; includes --coco."),
    ] = None,
    dicom_seg: Annotated[
        bool,
        Option("--dicom-seg", help="For a segmenter and DICOM files: also write the masks as DICOM segmentations."),
    ] = False,
    keep_ids: Annotated[
        bool,
        Option("--keep-ids", help="With --dicom-seg: copy identifiers of the patient and the study."),
    ] = False,
    id_key: Annotated[
        Path | None,
        Option(
            "--id-key",
            help="File with a secret key: folders of videos are keyed hashes, and with --dicom-seg the patients.",
            show_default=False,
        ),
    ] = None,
    volumes: Annotated[
        bool,
        Option(
            "--volumes",
            help="For a segmenter and the manifest.csv of `dinomed slices`: also write the mask of each volume, "
            "and volumes.csv.",
        ),
    ] = False,
    series: Annotated[
        Path | None,
        Option(
            "--series",
            help="With --volumes and --dicom-seg: folder of the DICOM series of the slices, whose volumes are also "
            "written as DICOM segmentations.",
        ),
    ] = None,
    mask_text: MaskText = False,
    fps: Annotated[
        float | None, Option("--fps", help="For videos: read about so many frames a second; default is every frame.")
    ] = None,
    step: Annotated[int | None, Option("--step", help="For videos: read every N-th frame.", metavar="N", min=1)] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Predict every image of a folder or a manifest, or every frame of videos.

    A segmenter writes a mask (PNG, 0 and 255) of the size of each image under its relative path. Where two images would
    share a path, as a.jpg and a.png do, both keep their whole name: a.jpg.png, a.png.png. `predictions.csv` lists
    areas, or calibrated probabilities of a classifier; with --unit group it has one row for each group. With --coco a
    segmenter writes each connected region as an object of the COCO format too. Segmenters and classifiers write a
    contact sheet, `index.html`: thumbnails with outlines, at most 400, which buttons sort by area, uncertainty and
    unlikeness to the training images. It names no image without --names. With --mask-text, text that the detector finds
    in the pixels is masked there and in overlay videos. With --abstain or --max-risk the column `abstained` marks
    predictions of low confidence. With --dicom-seg the mask of a DICOM image is also written as a DICOM segmentation,
    a.seg.dcm, and those of a DICOM file of several frames as one, mask.seg.dcm. With --volumes the masks of slices are
    also written as volumes, in the geometry of the input: volumes/NAME.nii.gz (.mha or .nrrd of such input), and
    volumes.csv with Dice and HD95 in mm where the slices have masks; with --dicom-seg and --series also as DICOM
    segmentations, volumes/NAME.seg.dcm. Images that cannot be used are listed in `unreadable.csv`, and the exit code is
    1. After an interruption the same command continues where it stopped.

    For each video (MP4, MOV, AVI, Matroska, WebM, MPEG, DICOM of several frames or with a video stream) an adapter
    writes a numbered folder: `predictions.csv` with a row for each frame, a plot over time, `summary.json` with one
    answer, of a segmenter a mask video (exact) and an overlay video, and of a depth estimator a depth video (exact) and
    one in colours. A classifier for groups predicts evenly spaced frames. Frames without a prediction are marked in the
    table, and the exit code is 1. After an interruption finished videos are kept. For research use only.
    """
    arguments = locals()
    from dinomed.adapters.inference.plan import FAILED_FILE, TABLE_FILE
    from dinomed.adapters.tasks.volumes import TABLE_FILE as VOLUMES_TABLE
    from dinomed.adapters.video.result import VideoPredictionResult
    from dinomed.apps.api.heads import predict as predict_images
    from dinomed.apps.ending import demo_of, print_end
    from dinomed.apps.output import api_arguments, build_table, emit
    from dinomed.errors import DinomedError
    from dinomed.notice import RESEARCH_USE

    done = predict_images(**api_arguments(arguments))
    following = partial(demo_of, adapter, backbone)
    if isinstance(done, VideoPredictionResult):
        table = build_table(("", *(answer["video"] for answer in done.answers)), done.facts())
        table.caption = done.abstained_text()
        emit(done.report(), as_json, table)
        print_end([out], following, as_json=as_json)
        if done.unreadable:
            first, reason = done.unreadable[0]
            count = len({video for video, _ in done.unreadable})
            raise DinomedError(
                f"{count} of {len(done.groups)} videos have a problem (the first: {first}: {reason}); all that can be "
                "predicted is written"
            )
        return
    report: dict[str, Any] = {"output": str(done.folder), "table": str(done.folder / TABLE_FILE)}
    if unit == "group":
        report |= {"groups": done.images, "kept": done.kept}
    else:
        report |= {"images": done.images, "kept": done.kept, "unreadable": len(done.unreadable)}
        if volumes:
            report |= {"volumes": str(done.folder / VOLUMES_TABLE)}
        if done.sheet is not None:
            report |= {"sheet": str(done.sheet)}
    if done.masked_text is not None:
        report |= {"masked_text": done.masked_text}
    if (rule := done.rule) is not None:
        kind = "group" if unit == "group" else "image"
        report |= {"abstained": done.abstained, "abstention": rule.describe(kind, kind)}
    report |= {"note": RESEARCH_USE}
    emit(report, as_json, None if as_json else build_table(("", ""), list(_named_rows(report))))
    print_end([done.folder, done.sheet], following, as_json=as_json)
    if done.unreadable:
        first, reason = done.unreadable[0]
        raise DinomedError(
            f"{len(done.unreadable)} images have no prediction, listed in {done.folder / FAILED_FILE} "
            f"(the first: {first}: {reason}); the other {done.images} are done"
        )


def _named_rows(report: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield a name in words and a value for each entry of a report."""
    for key, value in report.items():
        if key == "masked_text":
            yield "images with masked text", value["images_with_text"]
        elif key != "kept" or value:
            yield _ROWS.get(key, key), value
