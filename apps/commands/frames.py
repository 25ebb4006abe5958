"""`dinomed frames`: selected frames of videos as images with a manifest."""

from collections import Counter
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from dinomed.apps.options import (
    DuplicateBits,
    DuplicateCosine,
    Fps,
    Json,
    MaskText,
    MinLuminance,
    MinSharpness,
    MinTissue,
    Output,
    Overwrite,
    Quiet,
    SceneChange,
)


def frames(
    videos: Annotated[list[Path], Argument(help="Videos, or folders of videos.", show_default=False)],
    out: Output,
    fps: Fps = 1.0,
    scene_change: SceneChange = None,
    duplicate_bits: DuplicateBits = 24,
    duplicate_cosine: DuplicateCosine = 0.7,
    min_luminance: MinLuminance = 16.0,
    min_sharpness: MinSharpness = 4.0,
    min_tissue: MinTissue = 0.25,
    keep_ids: Annotated[bool, Option("--keep-ids", help="Call videos like their files, not by numbers.")] = False,
    id_key: Annotated[
        Path | None,
        Option(
            "--id-key",
            help="File with a secret key: videos are keyed hashes of their contents, patients of their IDs.",
            show_default=False,
        ),
    ] = None,
    mask_text: MaskText = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write selected frames of videos as PNG files, with a manifest in which each video, or patient of DICOM
    files, is a group.

    Videos are MP4, MOV, AVI, Matroska, WebM and MPEG files, and DICOM files of several frames. manifest.csv has the
    columns video, frame (number from 0) and time_s, dropped.csv the frames that were left out, with reasons. All other
    commands read the manifest. If a video is damaged or cannot be read to its end, the exit code is 1; the frames that
    were read are written. After an interruption nothing half-written stays. For research use only.
    """
    arguments = locals()
    from dinomed.apps.api.data.frames import frames as write_frames
    from dinomed.apps.ending import after_images, print_end
    from dinomed.apps.output import api_arguments, build_table, emit
    from dinomed.errors import DinomedError
    from dinomed.notice import RESEARCH_USE
    from dinomed.pretrain.curation.frames.write import DROPPED_FILE, MANIFEST_FILE

    written = write_frames(**api_arguments(arguments))
    report = {
        "output": str(written.folder),
        "manifest": str(written.folder / MANIFEST_FILE),
        "dropped_list": str(written.folder / DROPPED_FILE),
        "videos": written.videos,
        "frames": len(written.manifest),
        "dropped": written.dropped,
        "masked_text": written.masked_text,
        "problems": [{"video": video, "reason": reason} for video, reason in written.problems],
        "note": RESEARCH_USE,
    }
    rows = [("videos", len(written.videos)), ("frames", len(written.manifest))]
    rows += [(f"dropped: {reason}", count) for reason, count in sorted(written.dropped.items())]
    if written.masked_text is not None:
        rows.append(("regions of masked text", written.masked_text["regions"]))
    rows += [(f"problem: {reason}", count) for reason, count in Counter(r for _, r in written.problems).items()]
    emit(report, as_json, build_table(("", "count"), rows, title=str(report["manifest"])))
    manifest = written.folder / MANIFEST_FILE
    print_end([manifest, written.folder / DROPPED_FILE], after_images(manifest), as_json=as_json)
    if written.problems:
        first, reason = written.problems[0]
        raise DinomedError(
            f"{len(written.problems)} of {len(written.videos)} videos are damaged or cannot be read to their end (the "
            f"first: {first}: {reason}); the frames that were read are written"
        )
